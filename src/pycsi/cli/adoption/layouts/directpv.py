"""DirectPV: a directory with a project quota for each volume, on each of its XFS drives.

As of v4.1 (`pkg/types/types.go`, `pkg/xfs/quota_linux.go`): a drive is mounted at
/var/lib/directpv/mnt/FSUUID, where `.directpv` has its record, `.FSUUID.FSUUID` is a symbolic link
to `.`, and each volume's directory has the volume's name.
"""

from collections.abc import Iterator
from pathlib import Path

from pycsi.cli.adoption.candidates import Candidate
from pycsi.cli.adoption.layouts.naming import directories
from pycsi.linux import quota

NAME = "directpv"

_RECORD = ".directpv"


def _drives(path: Path) -> list[Path]:
    """Return the mounted drives: the path itself, or those that are in it, or in its `mnt`."""
    places = [path, *directories(path), *directories(path / "mnt")] if path.is_dir() else []
    return [place for place in places if (place / _RECORD).is_dir()]


def recognises(path: Path) -> bool:
    return bool(_drives(path))


def read(path: Path) -> Iterator[Candidate]:
    for drive in _drives(path):
        for folder in directories(drive):
            if not folder.name.startswith("."):
                yield Candidate(
                    path=str(folder), name=folder.name, layout=NAME, limit=_limit(folder)
                )


def _limit(folder: Path) -> int | None:
    """Return the limit of the directory's project, or None where nothing counts projects."""
    if not quota.project_state(folder).counted:
        return None
    project = quota.project_of(folder)
    return quota.usage(folder, project).limit or None if project else None
