"""rancher's local-path-provisioner: a directory for each volume, PV_NAMESPACE_CLAIM.

As of v0.0.37 (`provisioner.go`, `provisionFor`). Volumes of a class with a `pathPattern` lie
elsewhere; the cluster's list of PersistentVolumes tells where.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pycsi.cli.adoption.candidates import Candidate, Claim
from pycsi.cli.adoption.layouts.naming import UUID, named

NAME = "local-path"

_FOLDER = re.compile(rf"(?P<volume>pvc-{UUID})_(?P<namespace>[a-z0-9-]+)_(?P<claim>[a-z0-9.-]+)")


def recognises(path: Path) -> bool:
    return any(named(path, _FOLDER))


def read(path: Path) -> Iterator[Candidate]:
    for folder, match in named(path, _FOLDER):
        yield Candidate(
            path=str(folder),
            name=match["volume"],
            layout=NAME,
            claim=Claim(namespace=match["namespace"], name=match["claim"]),
        )
