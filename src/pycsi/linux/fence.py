"""A time that tells files which have changed since from those which have not."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pycsi.linux import treecopy

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_JITTER = 1_000_000
"""The nanoseconds by which the reading of two clocks, one after the other, may differ."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A time in nanoseconds; every file that changes after it has a later ctime.

    That holds until the machine is booted anew, or its clock is set back: `ahead` is how far the
    clock was ahead of the time since `boot`.
    """

    time: int
    boot: str
    ahead: int

    @classmethod
    def now(cls) -> Self:
        return cls(time=treecopy.fence(), boot=_boot(), ahead=_ahead())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(time=data["time"], boot=data["boot"], ahead=data["ahead"])

    @property
    def holds(self) -> bool:
        """Whether times after the fence can be told from those before it."""
        return self.boot == _boot() and _ahead() >= self.ahead - _JITTER


def _boot() -> str:
    return _BOOT.read_text().strip()


def _ahead() -> int:
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
