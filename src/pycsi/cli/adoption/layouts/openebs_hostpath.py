"""OpenEBS Local PV Hostpath: a directory for each volume, with the PersistentVolume's name.

As of dynamic-localpv-provisioner 4.0 (`provisioner_hostpath.go`), by default in
/var/openebs/local.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pycsi.cli.adoption.candidates import Candidate
from pycsi.cli.adoption.layouts.naming import UUID, directories

NAME = "openebs-hostpath"

_FOLDER = re.compile(f"pvc-{UUID}")


def recognises(path: Path) -> bool:
    return any(_FOLDER.fullmatch(folder.name) for folder in directories(path))


def read(path: Path) -> Iterator[Candidate]:
    for folder in directories(path):
        if _FOLDER.fullmatch(folder.name):
            yield Candidate(path=str(folder), name=folder.name, layout=NAME)
