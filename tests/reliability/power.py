"""A disk whose power can be cut: a file on a filesystem that shares blocks.

A copy that shares all blocks (FICLONE) has what the filesystem on the disk has written so far, at
one point in time, and nothing that was only in memory: what a power cut would leave. The load goes
on, so the power can be cut many times.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

from conftest import run

from pycsi.linux import filecopy, loop
from pycsi.linux.descriptor import opened

FSCK = {
    "ext4": ["e2fsck", "-fn"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--readonly"],
}


@dataclasses.dataclass(frozen=True)
class Cut:
    """A power cut between two moments of the monotonic clock, and what it has left on the disk."""

    began: float
    ended: float
    left: Path


def cut(file: Path, number: int) -> Cut:
    """Cut the power of the disk in a file, for the time with this number."""
    left = file.with_name(f"cut-{number}.img")
    with opened(file) as old, opened(left, os.O_RDWR | os.O_CREAT) as new:
        began = time.monotonic()
        assert filecopy.reflink(old, new)
        return Cut(began=began, ended=time.monotonic(), left=left)


def wait_until_free(file: Path) -> None:
    """Wait until no loop device has a file: the kernel closes that of a btrfs after umount(2)."""
    deadline = time.monotonic() + 30
    while loop.find(file) and time.monotonic() < deadline:
        time.sleep(0.01)


class Disk:
    """A disk with a filesystem of the kind `ground`, which is mounted always at the same place.

    `file` lies on a filesystem that shares blocks.
    """

    def __init__(self, file: Path, place: Path, ground: str, size: int) -> None:
        self.file = file
        self.pool = place / "pool"
        self._place = place
        self._ground = ground
        self._cuts = 0
        with file.open("wb") as made:
            made.truncate(size)
        run(f"mkfs.{ground}", "-q", file)
        place.mkdir()
        with self.mounted(file):
            self.pool.mkdir()

    @contextlib.contextmanager
    def mounted(self, file: Path) -> Iterator[Path]:
        """Mount the disk, or what a cut has left of it, through the `with` block: the pool."""
        # What was mounted before has the same UUID, and may live on in somebody's mount namespace.
        options = "loop,nouuid" if self._ground == "xfs" else "loop"
        run("mount", "-o", options, file, self._place)
        try:
            yield self.pool
        finally:
            run("umount", self._place)
            wait_until_free(file)

    def cut(self) -> Cut:
        """Cut the power; of this disk nobody notices."""
        self._cuts += 1
        return cut(self.file, self._cuts)

    def check(self, file: Path) -> None:
        """Check the disk's own filesystem, which is not mounted, and changes nothing."""
        run(*FSCK[self._ground], file)
