"""Files for a volume that is to be copied, and what has to be the same in the copies."""

import dataclasses
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pycsi.model.size import BLOCK, MIB

DATA = "data"
"""The largest file; it has a second name."""

_LINK = "second-name"
_SPARSE = "holes"
_LATER = "written-later"
_MODE = 0o640
_HOLE = 8 * MIB
_CHANGE = MIB
_SECTOR = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What a copy of a file keeps. `first` is the first name that the file has."""

    digest: str
    size: int
    mode: int
    first: str
    holes: bool


Inventory = Mapping[str, File]
"""All the files in a volume by their paths."""


def inventory(folder: Path) -> dict[str, File]:
    """Read all files in `folder`."""
    found: dict[str, File] = {}
    names: dict[int, str] = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            name = str(path.relative_to(folder))
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = File(
                digest=digest,
                size=status.st_size,
                mode=stat.S_IMODE(status.st_mode),
                first=names.setdefault(status.st_ino, name),
                holes=status.st_blocks * _SECTOR < status.st_size,
            )
    return found


def fill(folder: Path, size: int) -> dict[str, File]:
    """Write `size` bytes of data, a second name for them, and a file with a hole."""
    data = folder / DATA
    data.write_bytes(os.urandom(size))
    data.chmod(_MODE)
    (folder / _LINK).hardlink_to(data)
    with (folder / _SPARSE).open("xb") as file:
        file.seek(_HOLE)
        file.write(os.urandom(BLOCK))
    return inventory(folder)


def change(folder: Path) -> dict[str, File]:
    """Change what `fill` has written: in the middle of the data, in its names, in its mode."""
    data = folder / DATA
    with data.open("r+b") as file:
        file.seek(data.stat().st_size // 2)
        file.write(os.urandom(_CHANGE))
    data.chmod(0o600)
    (folder / _LINK).unlink()
    (folder / _LATER).write_bytes(os.urandom(BLOCK))
    return inventory(folder)
