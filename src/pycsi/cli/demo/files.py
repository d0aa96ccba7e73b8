"""Files for a volume that is to be copied, and the properties that the copies must keep."""

import dataclasses
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pycsi.model.size import BLOCK, MIB

DATA = "data"
"""The largest file; it has a second name (hard link)."""

_LINK = "second-name"
_SPARSE = "holes"
_LATER = "written-later"
_MODE = 0o640
_HOLE = 8 * MIB
_CHANGE = MIB
_SECTOR = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """The properties of a file that a copy keeps. `first` is the first of the file's names."""

    digest: str
    size: int
    mode: int
    first: str
    holes: bool


Inventory = Mapping[str, File]
"""All files in a volume, by their paths."""


def inventory(folder: Path) -> dict[str, File]:
    """Return the inventory of all files below `folder`, with their content's SHA-256."""
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
    """Write a file of `size` bytes with a second name, and a file with a hole; return all files."""
    data = folder / DATA
    data.write_bytes(os.urandom(size))
    data.chmod(_MODE)
    (folder / _LINK).hardlink_to(data)
    with (folder / _SPARSE).open("xb") as file:
        file.seek(_HOLE)
        file.write(os.urandom(BLOCK))
    return inventory(folder)


def change(folder: Path) -> dict[str, File]:
    """Change the content, names and mode of the files from `fill`; return all files."""
    data = folder / DATA
    with data.open("r+b") as file:
        file.seek(data.stat().st_size // 2)
        file.write(os.urandom(_CHANGE))
    data.chmod(0o600)
    (folder / _LINK).unlink()
    (folder / _LATER).write_bytes(os.urandom(BLOCK))
    return inventory(folder)
