"""How much of what a pool has promised is on its disk already, and needs no more of it."""

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
from pycsi.pool.capacity import records_of
from pycsi.pool.catalog import Catalog
from pycsi.pool.layout import Layout
from pycsi.pool.trash import Trash, image_blocks

_SHARE = 20
"""Measuring takes at most one part in so many of the time, however many volumes there are."""

_QUICK = 0.001
"""Seconds; what takes no longer may be repeated at once."""

_FREEING = 40.0
"""Seconds that a filesystem may take to free what was deleted: btrfs until its next commit."""

_LONGEST = 30.0
"""Seconds after which what was measured is measured anew, also where nothing seems to change."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Measured:
    """`written` bytes were on the disk when `free` were left on it."""

    free: int
    written: int
    taken: float
    due: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What lies in a pool on a `filesystem` of that kind.

    `owned` returns how many bytes of the pool a volume has to itself, given whether it may share
    some with snapshots or volumes. `uncounted` returns why those of directories are not known now.
    """

    layout: Layout
    filesystem: str
    volumes: Catalog[Volume]
    snapshots: Catalog[Snapshot]
    trash: Trash
    owned: Callable[[Volume, bool], int]
    uncounted: Callable[[], str | None]


class Written:
    """What the volumes of a pool have written, without asking each of them each time.

    A volume that writes or discards changes what it has written, and what is free, by the same
    amount: the sum stays, until somebody else takes or frees something. So what was measured stays
    good while the free space does not change; where that has become less it is taken for somebody
    else's doing until the volumes are asked again. A little less is told than there is, and the
    same for a while: not every file of others shall change what the pool offers.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._mutex = threading.Lock()
        self._measured: _Measured | None = None
        self._told = 0

    def usable(self, free: int, *, exact: bool) -> int:
        """Return how much of the disk is free or written for volumes, of which `free` bytes are.

        `exact` asks for a new measurement where the last one does not fit, and may be repeated.
        """
        known = self._measured
        now = time.monotonic()
        if known is None or now - known.taken > _LONGEST or (exact and known.free != free):
            known = self._renewed(now)
        # Freed since: it was ours. Taken since: that was not, as far as we know.
        usable = min(known.free, free) + known.written
        slack = records_of(usable, self._contents.filesystem) // 4
        if not 0 <= usable - self._told <= 2 * slack:
            self._told = max(0, usable - slack)
        return self._told

    def _renewed(self, now: float) -> _Measured:
        """Measure anew, unless that is not due or somebody else does it; return what is known."""
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
        # In this order: what moves on meanwhile is missed, not counted twice.
        written = (
            self._contents.trash.written() + self._contents.snapshots.held + self._of_volumes()
        )
        with contextlib.suppress(OSError):
            written += sum(image_blocks(place) for place in self._contents.layout.tmp.iterdir())
        # The lesser: what was written meanwhile shall not be both free and written.
        free = min(before, free_at(self._contents.layout.root))
        done = time.monotonic()
        if known and done - self._contents.trash.changed < _FREEING:
            # What has gone is not free yet, and nobody else's.
            written = max(written, min(known.free, free) + known.written - free)
        pause = 0 if done - started < _QUICK else _SHARE * (done - started)
        return _Measured(free, written, done, done + pause)

    def _of_volumes(self) -> int:
        copied = {snapshot.volume.id for snapshot in self._contents.snapshots}
        owned: collections.Counter[VolumeType] = collections.Counter()
        for volume in self._contents.volumes:
            with contextlib.suppress(OSError, LimitError):  # what cannot be seen counts for nothing
                owned[volume.type] += self._contents.owned(
                    volume, volume.id in copied or bool(volume.request.source)
                )
        # Asked last: what was read before limits ceased to hold was true.
        if owned[VolumeType.DIRECTORY] and self._contents.uncounted():
            del owned[VolumeType.DIRECTORY]
        return owned.total()


def free_at(path: Path) -> int:
    """Return how many bytes are free on the filesystem of `path` for who is not root."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize
