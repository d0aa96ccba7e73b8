"""How many bytes of a pool are written, and how many it can still promise.

The same formula serves GetCapacity, CreateVolume and expansion.
"""

import collections
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pycsi.backends.limits import LimitError
from pycsi.model.records import Snapshot, Volume, VolumeType
from pycsi.model.size import LARGEST, MIB, round_down
from pycsi.pool.adoptions import Adoptions
from pycsi.pool.catalog import Catalog
from pycsi.pool.layout import Layout
from pycsi.pool.moves import Moves
from pycsi.pool.trash import Trash, image_blocks

_DATA_PER_METADATA = {"btrfs": 12}
"""The bytes of data for which a filesystem needs at most one byte of metadata.

Measured with 4 KiB blocks that were written in random order: 0.5 % on XFS, 0.2 % on ext4, 8.4 % on
btrfs, which keeps more metadata for each block, and two copies of it.
"""

_DATA_PER_METADATA_ELSEWHERE = 128
_LEAST_METADATA = 4 * MIB

_STEPS = 4096
_LEAST_STEP = 4 * MIB

_SHARE = 20
"""The pause after a measurement, in times its duration: measuring takes under 5 % of the time."""

_QUICK = 0.001
"""Seconds; a measurement that takes less may be repeated at once."""

_FREEING = 40.0
"""Seconds that a filesystem may take to free deleted blocks: btrfs until its next commit."""

_LONGEST = 30.0
"""Seconds after which a measurement is repeated, even if nothing seems to have changed."""


def metadata_for(size: int, filesystem: str) -> int:
    """Return the most bytes of metadata that the filesystem needs for `size` bytes in files."""
    return (
        max(0, size) // _DATA_PER_METADATA.get(filesystem, _DATA_PER_METADATA_ELSEWHERE)
        + _LEAST_METADATA
    )


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

    @property
    def limit(self) -> int:
        """The most bytes that may be promised in all."""
        return max(0, int(min((self.size - self.reserve) * self.overcommit, LARGEST)))

    @property
    def unwritten(self) -> int:
        """The promised bytes that are not on the disk yet, and so need free space."""
        return self.committed - min(self.committed, max(0, self.usable - self.free))

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
        # In coarse steps, so that not every inode that is made or freed outside the pool changes
        # the capacity that the pool offers.
        step = max(_LEAST_STEP, self.size // _STEPS)
        ours = self.usable // step * step - self.reserve
        unwritten = self.unwritten
        written = self.committed - unwritten
        spare = ours - metadata_for(ours, self.filesystem) - written  # negative: so many lack
        ratio = max(1.0, self.overcommit)
        if thick:
            left = spare - int(unwritten / ratio)
        else:
            left = int(min(max(0, spare) * ratio, LARGEST)) - unwritten
        return round_down(min(left, self.limit - self.committed))


@dataclasses.dataclass(frozen=True, slots=True)
class _Measured:
    """A measurement: `written` bytes were on the disk when `free` bytes were left on it.

    It was `taken`, and the next is `due`, at these seconds of the monotonic clock.
    """

    free: int
    written: int
    taken: float
    due: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The content of a pool, and the kind of `filesystem` that it lies on.

    `owned` returns the bytes that a volume has to itself, given whether it may share blocks with
    snapshots or volumes. `uncounted` returns why those of directories are not known now, or None.
    """

    layout: Layout
    filesystem: str
    volumes: Catalog[Volume]
    snapshots: Catalog[Snapshot]
    trash: Trash
    adoptions: Adoptions
    moves: Moves
    owned: Callable[[Volume, bool], int]
    uncounted: Callable[[], str | None]


class UsableSpace:
    """The bytes of the disk that a pool can use, without measuring every volume each time.

    They are those that are free, and those that its volumes and snapshots have written.

    A volume that writes or discards changes its own bytes and the free space by the same amount, so
    their sum stays the same until something outside the pool takes or frees space. A measurement is
    therefore good while the free space does not change. If there is less, something else is assumed
    to have taken it, until the volumes are measured again. The result is slightly low and changes
    in steps, so that not every file outside the pool changes the capacity that the pool offers.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._mutex = threading.Lock()
        self._measured: _Measured | None = None
        self._reported = 0

    def usable(self, free: int, *, exact: bool) -> int:
        """Return the bytes of the disk that are free, `free` of them, or written for volumes.

        With `exact` measure again if the free space has changed, and a measurement is due.
        """
        known = self._measured
        now = time.monotonic()
        if known is None or now - known.taken > _LONGEST or (exact and known.free != free):
            known = self._renewed(now)
        # Bytes freed since then are taken for the pool's own, bytes taken since then for others'.
        usable = min(known.free, free) + known.written
        slack = metadata_for(usable, self._contents.filesystem) // 4
        if not 0 <= usable - self._reported <= 2 * slack:
            self._reported = max(0, usable - slack)
        return self._reported

    def _renewed(self, now: float) -> _Measured:
        """Return a new measurement; the last one if none is due, or another thread is measuring."""
        known = self._measured
        if known and (now < known.due or self._mutex.locked()):
            return known
        with self._mutex:
            if self._measured is None or self._measured is known:
                self._measured = self._measure(known)
            return self._measured

    def _measure(self, known: _Measured | None) -> _Measured:
        started = time.monotonic()
        before = free_at(self._contents.layout.root)
        # In this order: an object that is moved to the trash meanwhile is missed, not counted
        # twice.
        written = (
            self._contents.trash.written() + self._contents.snapshots.held + self._of_volumes()
        )
        with contextlib.suppress(OSError):
            written += sum(image_blocks(place) for place in self._contents.layout.tmp.iterdir())
        # The lesser, so that bytes written meanwhile do not count as both free and written.
        free = min(before, free_at(self._contents.layout.root))
        done = time.monotonic()
        if known and done - self._contents.trash.changed < _FREEING:
            # Deleted blocks may not be free yet, and are not in use by others either.
            written = max(written, min(known.free, free) + known.written - free)
        pause = 0 if done - started < _QUICK else _SHARE * (done - started)
        return _Measured(free, written, done, done + pause)

    def _of_volumes(self) -> int:
        snapshots = self._contents.snapshots
        copied = {snapshot.volume.id for snapshot in (*snapshots.indexed(), *snapshots.hidden())}
        owned: collections.Counter[VolumeType] = collections.Counter()
        for volume in self._contents.volumes.indexed():
            with contextlib.suppress(OSError, LimitError):  # what cannot be measured is left out
                owned[volume.type] += self._contents.owned(
                    volume, volume.id in copied or bool(volume.request.source)
                )
        # Checked last, so that usage read after accounting stopped is never counted.
        if owned[VolumeType.DIRECTORY] and self._contents.uncounted():
            del owned[VolumeType.DIRECTORY]
        return owned.total()


def free_at(path: Path) -> int:
    """Return the bytes that are free to users other than root on the filesystem of `path`."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize
