"""How much a pool can still promise: for GetCapacity, CreateVolume and expansion alike."""

import dataclasses
import os
from typing import Self

from pycsi.config import PoolConfig
from pycsi.model import LARGEST, MIB, round_down

_INODES = 8
"""More than making a volume or a snapshot takes: directories, records and data."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """A pool's numbers, in bytes.

    `size` and `free` are the filesystem's, `reserve` is what volumes never get, `committed` the
    sizes of all volumes, also of those being made, what snapshots hold, and what is in the trash.
    Where the filesystem `lacks_inodes` there are too few of them for one more volume.
    """

    size: int
    free: int
    reserve: int
    overcommit: float
    committed: int
    lacks_inodes: bool = False

    @classmethod
    def of(cls, config: PoolConfig, facts: os.statvfs_result, committed: int) -> Self:
        """Return the numbers of a pool whose filesystem statvfs(3) has measured."""
        size = facts.f_blocks * facts.f_frsize
        return cls(
            size=size,
            free=facts.f_bavail * facts.f_frsize,
            reserve=config.reserve.of(size),
            overcommit=config.overcommit,
            committed=committed,
            lacks_inodes=bool(facts.f_files) and facts.f_favail < _INODES,
        )

    @property
    def limit(self) -> int:
        """What may be promised in all."""
        return max(0, int(min((self.size - self.reserve) * self.overcommit, LARGEST)))

    def available(self, *, thick: bool) -> int:
        """Return the size of the largest volume that can be made now.

        A thick one needs its blocks at once, and some for the filesystem's own records of them.
        """
        if self.lacks_inodes:
            return 0
        promised = self.limit - self.committed
        if thick:
            free = self.free - self.reserve
            promised = min(promised, free - free // 128 - 4 * MIB)
        return round_down(promised)
