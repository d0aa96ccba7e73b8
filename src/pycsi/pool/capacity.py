"""How many bytes a pool can still promise, for GetCapacity, CreateVolume and expansion alike."""

import dataclasses
import os
from typing import Self

from pycsi.model.config import PoolConfig
from pycsi.model.size import LARGEST, MIB, round_down

_INODES = 8
"""More inodes than a new volume or snapshot takes for its directories, records and data."""

_RECORDS = {"btrfs": 12}
"""The divisor that gives the most a filesystem's metadata takes for a number of data bytes.

Measured with 4 KiB blocks that were written in random order: 0.5 % on XFS, 0.2 % on ext4, 8.4 % on
btrfs, which keeps more metadata for each block, and two copies of it.
"""

_RECORDS_ELSEWHERE = 128
_LEAST_RECORDS = 4 * MIB

_STEPS = 4096
_LEAST_STEP = 4 * MIB


def records_of(size: int, filesystem: str) -> int:
    """Return the most bytes of metadata that the filesystem needs for `size` bytes in files."""
    return max(0, size) // _RECORDS.get(filesystem, _RECORDS_ELSEWHERE) + _LEAST_RECORDS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """A pool's capacity, in bytes.

    `size` and `free` are the filesystem's. `reserve` is never given to volumes. `committed` is the
    sum of all volumes' sizes, reservations, the bytes that snapshots hold, and those in the trash.
    `usable` bytes of the disk are free, or written for what is committed, or will be free in a
    moment. `lacks_inodes` means that the filesystem has too few inodes for one more volume.
    """

    filesystem: str = ""
    size: int
    free: int
    reserve: int
    overcommit: float
    committed: int
    usable: int
    lacks_inodes: bool = False

    @classmethod
    def of(
        cls,
        config: PoolConfig,
        facts: os.statvfs_result,
        filesystem: str,
        *,
        committed: int,
        usable: int,
    ) -> Self:
        """Return the capacity of a pool from the `facts` that statvfs(3) returned for it."""
        size = facts.f_blocks * facts.f_frsize
        return cls(
            filesystem=filesystem,
            size=size,
            free=facts.f_bavail * facts.f_frsize,
            reserve=config.reserve.of(size),
            overcommit=config.overcommit,
            committed=committed,
            lacks_inodes=bool(facts.f_files) and facts.f_favail < _INODES,
            usable=usable,
        )

    @property
    def limit(self) -> int:
        """The most bytes that may be promised in all."""
        return max(0, int(min((self.size - self.reserve) * self.overcommit, LARGEST)))

    @property
    def written(self) -> int:
        """The promised bytes that are on the disk already, and so need no more free space."""
        return min(self.committed, max(0, self.usable - self.free))

    @property
    def unwritten(self) -> int:
        """The promised bytes that are not on the disk yet."""
        return self.committed - self.written

    @property
    def spare(self) -> int:
        """The bytes of the disk that can still be written for volumes; negative: so many lack.

        The usable bytes are rounded down in coarse steps, so that not every inode that is made or
        freed outside the pool changes the capacity that the pool offers.
        """
        step = max(_LEAST_STEP, self.size // _STEPS)
        ours = self.usable // step * step - self.reserve
        return ours - records_of(ours, self.filesystem) - self.written

    @property
    def lacking(self) -> int:
        """The promised bytes for which the disk has no room now, whatever the overcommit."""
        return max(0, self.unwritten - max(0, self.free - self.reserve))

    def available(self, *, thick: bool) -> int:
        """Return the size in bytes of the largest volume that can be made now.

        Each promised byte that is not written yet has `1 / overcommit` bytes of the disk set aside
        for it, and never more than one. A thick volume takes all its bytes at once. Without free
        inodes nothing can be made.
        """
        if self.lacks_inodes:
            return 0
        ratio = max(1.0, self.overcommit)
        if thick:
            left = self.spare - int(self.unwritten / ratio)
        else:
            left = int(min(max(0, self.spare) * ratio, LARGEST)) - self.unwritten
        return round_down(min(left, self.limit - self.committed))
