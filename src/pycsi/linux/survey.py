"""A look at a directory tree that others have made: its size, and what is unusual in it."""

import dataclasses
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pycsi.linux.treecopy import walk

_SECTOR = 512
_PRIVILEGED = stat.S_ISUID | stat.S_ISGID


@dataclasses.dataclass(slots=True)
class Survey:
    """What a tree has in it.

    `occupied` are its bytes on the disk, and `entries` the number of its files and directories.
    `privileged` are files with the bits setuid or setgid, `devices` are device nodes, and `shared`
    are files that have names outside of the tree too (hard links). `users` describe the processes
    that have something in the tree open.
    """

    occupied: int = 0
    entries: int = 0
    privileged: int = 0
    devices: int = 0
    shared: int = 0
    users: list[str] = dataclasses.field(default_factory=list)


def survey(root: Path, used: Mapping[tuple[int, int], str]) -> Survey:
    """Return what is in the tree of the directory `root`; the errors are those of `treecopy.walk`.

    `used` describes who uses files, by their device and inode numbers.
    """
    found = Survey()
    names: dict[int, int] = {}  # of files with several: how many were not found yet

    def look(_: str, status: os.stat_result | None, __: int) -> None:
        if status is None:
            return
        mode = status.st_mode
        found.entries += 1
        user = used.get((status.st_dev, status.st_ino))
        if user and user not in found.users:
            found.users.append(user)
        found.devices += stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
        if stat.S_ISREG(mode):
            found.privileged += bool(mode & _PRIVILEGED)
        if stat.S_ISDIR(mode) or status.st_ino not in names:
            found.occupied += status.st_blocks * _SECTOR
        if not stat.S_ISDIR(mode) and status.st_nlink > 1:
            names[status.st_ino] = names.get(status.st_ino, status.st_nlink) - 1

    walk(root, look)
    found.shared = sum(left > 0 for left in names.values())
    return found
