"""The room in a pool: what is promised, and what is being promised."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from pycsi.capacity import Capacity
from pycsi.config import PoolConfig
from pycsi.errors import ResourceExhausted
from pycsi.layout import Layout
from pycsi.model import Snapshot, Volume, show
from pycsi.shelf import Shelf
from pycsi.trash import Trash

_PATIENCE = 2.0
"""Seconds to wait for room while the trash is being emptied."""


class Room:
    """What an open pool has promised to its volumes, snapshots and trash, and can still promise."""

    def __init__(
        self,
        config: PoolConfig,
        layout: Layout,
        volumes: Shelf[Volume],
        snapshots: Shelf[Snapshot],
        trash: Trash,
    ) -> None:
        self._config = config
        self._layout = layout
        self._volumes = volumes
        self._snapshots = snapshots
        self._trash = trash
        self._mutex = threading.Lock()
        self._pending: dict[str, int] = {}

    def capacity(self) -> Capacity:
        """Measure the pool; what is promised is counted, what is in the trash too."""
        facts = self._measure()
        with self._mutex:
            return self._counting_promises(facts)

    def _measure(self) -> os.statvfs_result:
        """Ask the filesystem, and look for what others have changed; not under the lock."""
        announced = self._layout.announced()
        self._volumes.listen(announced)
        self._trash.listen(announced)
        return os.statvfs(self._layout.root)

    def _counting_promises(self, facts: os.statvfs_result) -> Capacity:
        held = self._volumes.held + self._snapshots.held + self._trash.held
        return Capacity.of(self._config, facts, held + sum(self._pending.values()))

    def reserve(self, place: str, size: int, *, thick: bool) -> None:
        """Reserve `size` bytes for what shall be at `place`, or raise `ResourceExhausted`.

        While the trash is being emptied it is worth waiting for a moment.
        """
        deadline = time.monotonic() + _PATIENCE
        while refusal := self._try_reserve(place, size, thick=thick):
            if time.monotonic() > deadline or not self._trash.dwindles():
                raise ResourceExhausted(refusal)
            time.sleep(0.01)

    def _try_reserve(self, place: str, size: int, *, thick: bool) -> str | None:
        """Reserve room, or return why there is none."""
        facts = self._measure()
        with self._mutex:
            more = size - self._pending.get(place, 0)
            capacity = self._counting_promises(facts)
            if more > 0 and capacity.lacks_inodes:
                return (
                    f"pool {self._config.name}: {facts.f_favail} of {facts.f_files} inodes are "
                    "free on its disk, too few for anything new; delete files or snapshots there, "
                    "or make a filesystem with more inodes (mkfs.ext4 -N)"
                )
            left = capacity.available(thick=thick)
            if more <= left:
                self._pending[place] = size
                return None
            return (
                f"pool {self._config.name}: {show(more)} wanted, {show(left)} left of "
                f"{show(capacity.limit)} (overcommit {capacity.overcommit:g}, "
                f"{show(capacity.free)} free on disk, {show(self._trash.held)} in the trash); "
                "free space, lower the request or raise overcommit"
            )

    @contextlib.contextmanager
    def reserved(self, place: str, size: int, *, thick: bool) -> Iterator[None]:
        """Reserve `size` bytes through the `with` block, or raise `ResourceExhausted`."""
        self.reserve(place, size, thick=thick)
        try:
            yield
        finally:
            with self._mutex:
                self._pending.pop(place, None)

    @contextlib.contextmanager
    def taken(self, place: str) -> Iterator[None]:
        """Count what is put on its shelf in the `with` block in place of what was reserved."""
        with self._mutex:
            self._pending.pop(place, None)
            yield
