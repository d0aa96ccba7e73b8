"""OpenEBS Local PV Hostpath: a directory for each volume, with the PersistentVolume's name.

As of dynamic-localpv-provisioner 4.0 (`provisioner_hostpath.go`), by default in
/var/openebs/local.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pycsi.cli.adoption.candidates import Candidate
from pycsi.cli.adoption.layouts.naming import UUID, named

NAME = "openebs-hostpath"

_FOLDER = re.compile(f"pvc-{UUID}")


def recognises(path: Path) -> bool:
    return any(named(path, _FOLDER))


def read(path: Path) -> Iterator[Candidate]:
    for folder, _ in named(path, _FOLDER):
        yield Candidate(path=str(folder), name=folder.name, layout=NAME)
