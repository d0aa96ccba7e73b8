"""The room in a pool: what is promised, and what is being promised."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator

from pycsi.model.config import PoolConfig
from pycsi.model.errors import ResourceExhausted
from pycsi.model.size import show
from pycsi.pool.capacity import Capacity
from pycsi.pool.written import Contents, Written

_PATIENCE = 2.0
"""Seconds to wait for room while the trash is being emptied."""


class Reservation:
    """Bytes of a pool's room for something that is being made, or grows."""

    def __init__(self, room: "Room") -> None:
        self._room = room
        self.size = 0

    def resize(self, size: int, *, thick: bool) -> None:
        """Reserve `size` bytes instead, or raise `ResourceExhausted`."""
        self._room.reserve(self, size, thick=thick)

    def replaced(self) -> contextlib.AbstractContextManager[None]:
        """Count what becomes known in the `with` block in place of this."""
        return self._room.replaced(self)


class Room:
    """What a pool has promised to its volumes, snapshots and trash, and can still promise."""

    def __init__(self, config: PoolConfig, contents: Contents) -> None:
        self._config = config
        self._contents = contents
        self._written = Written(contents)
        self._mutex = threading.Lock()
        self._reserved = 0

    def capacity(self) -> Capacity:
        """Measure the pool; what is promised is counted, what is in the trash too."""
        facts, usable = self._measure(exact=True)
        with self._mutex:
            return self._counting_promises(facts, usable)

    def _measure(self, *, exact: bool) -> tuple[os.statvfs_result, int]:
        """Ask the filesystem, and look for what others have changed; not under the lock."""
        change_count = self._contents.layout.change_count()
        self._contents.volumes.refresh(change_count)
        self._contents.trash.refresh(change_count)
        facts = os.statvfs(self._contents.layout.root)
        return facts, self._written.usable(facts.f_bavail * facts.f_frsize, exact=exact)

    def _counting_promises(self, facts: os.statvfs_result, usable: int) -> Capacity:
        held = (
            self._contents.volumes.held + self._contents.snapshots.held + self._contents.trash.held
        )
        return Capacity.of(
            self._config,
            facts,
            self._contents.filesystem,
            committed=held + self._reserved,
            usable=usable,
        )

    @contextlib.contextmanager
    def reserved(self, size: int, *, thick: bool) -> Iterator[Reservation]:
        """Reserve `size` bytes through the `with` block, or raise `ResourceExhausted`."""
        reservation = Reservation(self)
        self.reserve(reservation, size, thick=thick)
        try:
            yield reservation
        finally:
            with self.replaced(reservation):
                pass

    def reserve(self, reservation: Reservation, size: int, *, thick: bool) -> None:
        """Let a reservation have `size` bytes, or raise `ResourceExhausted`.

        While the trash is being emptied it is worth waiting for a moment.
        """
        deadline = time.monotonic() + _PATIENCE
        # What was measured before is enough where there is room; otherwise it has to be exact.
        if not self._try_reserve(reservation, size, thick=thick, exact=False):
            return
        while refusal := self._try_reserve(reservation, size, thick=thick, exact=True):
            if time.monotonic() > deadline or not self._contents.trash.is_emptying():
                raise ResourceExhausted(refusal)
            time.sleep(0.01)

    def _try_reserve(
        self, reservation: Reservation, size: int, *, thick: bool, exact: bool
    ) -> str | None:
        """Reserve room, or return why there is none."""
        facts, usable = self._measure(exact=exact)
        with self._mutex:
            more = size - reservation.size
            capacity = self._counting_promises(facts, usable)
            if more > 0 and capacity.lacks_inodes:
                return self._lacks_inodes(facts)
            left = capacity.available(thick=thick)
            if more > left:
                return self._lacks_room(more, left, capacity)
            self._reserved += more
            reservation.size = size
            return None

    def _lacks_inodes(self, facts: os.statvfs_result) -> str:
        return (
            f"pool {self._config.name}: {facts.f_favail} of {facts.f_files} inodes are "
            "free on its disk, too few for anything new; delete files or snapshots there, "
            "or make a filesystem with more inodes (mkfs.ext4 -N)"
        )

    def _lacks_room(self, more: int, left: int, capacity: Capacity) -> str:
        remedy = (
            "free space, lower the request or raise overcommit"
            if capacity.limit
            else "lower its reserve, which leaves nothing of the disk"
        )
        return (
            f"pool {self._config.name}: {show(more)} wanted, {show(left)} left of "
            f"{show(capacity.limit)} (overcommit {capacity.overcommit:g}, "
            f"{show(capacity.free)} free on disk, {show(capacity.unwritten)} promised and "
            f"not yet written, {show(capacity.reserve)} reserved, "
            f"{show(self._contents.trash.held)} in the trash); {remedy}"
        )

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Raise `ResourceExhausted` where what is recorded in the `with` block finds no room."""
        try:
            yield
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise ResourceExhausted(self._cannot_record(error)) from None

    def _cannot_record(self, error: OSError) -> str:
        facts = os.statvfs(self._contents.layout.root)
        return (
            f"pool {self._config.name}: no room to record this ({error.strerror}): "
            f"{show(facts.f_bavail * facts.f_frsize)} and {facts.f_favail} inodes are free on its "
            f"disk, {show(self._contents.trash.held)} in the trash; delete volumes or snapshots, "
            "run pycsi trash empty, or make the disk larger"
        )

    @contextlib.contextmanager
    def replaced(self, reservation: Reservation) -> Iterator[None]:
        """See `Reservation.replaced`."""
        with self._mutex:
            self._reserved -= reservation.size
            reservation.size = 0
            yield
