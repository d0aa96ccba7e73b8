"""How much a pool can still promise: for GetCapacity, CreateVolume and expansion alike."""

import dataclasses
import os
from typing import Self

from pycsi.model.config import PoolConfig
from pycsi.model.size import LARGEST, MIB, round_down

_INODES = 8
"""More than making a volume or a snapshot takes: directories, records and data."""

_RECORDS = {"btrfs": 12}
"""What a filesystem's records of blocks take at most, as a share of these: one part in so many.

Measured with blocks of 4 KiB that were written in random order: 0.5 % on XFS, 0.2 % on ext4, 8.4 %
on btrfs, which keeps more of each, twice.
"""

_RECORDS_ELSEWHERE = 128
_LEAST_RECORDS = 4 * MIB

_STEPS = 4096
_LEAST_STEP = 4 * MIB


def records_of(size: int, filesystem: str) -> int:
    """Return what the filesystem's own records of `size` bytes in files may take."""
    return max(0, size) // _RECORDS.get(filesystem, _RECORDS_ELSEWHERE) + _LEAST_RECORDS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """A pool's numbers, in bytes.

    `size` and `free` are the filesystem's, `reserve` is what volumes never get, `committed` the
    sizes of all volumes, also of those being made, what snapshots hold, and what is in the trash.
    Of the disk `usable` bytes are free, or written for these already, or were and will be free in a
    moment. Where the filesystem `lacks_inodes` there are too few of them for one more volume.
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
        """Return the numbers of a pool whose filesystem statvfs(3) has measured."""
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
        """What may be promised in all."""
        return max(0, int(min((self.size - self.reserve) * self.overcommit, LARGEST)))

    @property
    def written(self) -> int:
        """What is promised and on the disk already, so that it needs no more of it."""
        return min(self.committed, max(0, self.usable - self.free))

    @property
    def unwritten(self) -> int:
        """What is promised and not yet on the disk."""
        return self.committed - self.written

    @property
    def spare(self) -> int:
        """The bytes of the disk that can still be written for volumes; negative: that many lack.

        What is not there for the pool (others' files, the filesystem's own) is counted in coarse
        steps: not every inode that is made or freed shall change what the pool offers.
        """
        step = max(_LEAST_STEP, self.size // _STEPS)
        ours = self.usable // step * step - self.reserve
        return ours - records_of(ours, self.filesystem) - self.written

    @property
    def lacking(self) -> int:
        """How many bytes of what is promised could not be written now, whatever the overcommit."""
        return max(0, self.unwritten - max(0, self.free - self.reserve))

    def available(self, *, thick: bool) -> int:
        """Return the size of the largest volume that can be made now.

        Each byte that is promised and not yet written has `1 / overcommit` bytes of the disk to
        itself, and never needs more than one. What is thick takes its bytes at once. Nothing can be
        made without inodes.
        """
        if self.lacks_inodes:
            return 0
        ratio = max(1.0, self.overcommit)
        if thick:
            left = self.spare - int(self.unwritten / ratio)
        else:
            left = int(min(max(0, self.spare) * ratio, LARGEST)) - self.unwritten
        return round_down(min(left, self.limit - self.committed))
