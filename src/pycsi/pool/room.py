"""The room in a pool: bytes promised to what it holds, and reserved for what is being made."""

import contextlib
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Iterator

from pycsi.linux.descriptor import NO_ROOM
from pycsi.model.config import PoolConfig
from pycsi.model.errors import OutOfRange, ResourceExhausted
from pycsi.model.records import Volume, VolumeType
from pycsi.model.size import LARGEST, round_down, show
from pycsi.model.spec import largest_image
from pycsi.pool.capacity import Capacity, Contents, UsableSpace

_PATIENCE = 2.0
"""Seconds to wait for room while the trash is being emptied."""

_INODES = 8
"""More inodes than a new volume or snapshot takes for its directories, records and data."""

_MOST_BLOCKS = 2**32 - 1
"""The number of blocks that a file on ext4 can have."""


@dataclasses.dataclass(slots=True)
class Reservation:
    """The `size`, in bytes, that is promised to an object that is being made, or that grows."""

    size: int = 0


class Room:
    """The bytes that a pool has promised to its volumes, snapshots and trash, and still can."""

    def __init__(self, config: PoolConfig, contents: Contents) -> None:
        self._config = config
        self._contents = contents
        self._space = UsableSpace(contents)
        self._mutex = threading.Lock()
        self._reserved = 0

    @functools.cached_property
    def largest_file(self) -> int:
        """The largest size of a file on the pool's filesystem, in bytes."""
        if self._contents.filesystem != "ext4":
            return LARGEST
        return round_down(_MOST_BLOCKS * os.statvfs(self._contents.layout.root).f_bsize)

    def refuse_impossible(self, volume: Volume) -> None:
        """Raise `OutOfRange` for a size that an image in this pool can never have."""
        if volume.type is not VolumeType.IMAGE:
            return
        most = largest_image(volume.filesystem, volume.mkfs_options)
        if volume.capacity > most:
            raise OutOfRange(
                f"{show(volume.capacity)} wanted, and {volume.filesystem} as it would be made has "
                f"at most {most} bytes ({show(most)}); ask for less, or change mkfsOptions"
            )
        if volume.held > self.largest_file:
            raise OutOfRange(
                f"pool {self._config.name}: {show(volume.capacity)} wanted, and a file on its "
                f"{self._contents.filesystem} has at most {self.largest_file} bytes "
                f"({show(self.largest_file)}); ask for less, or use a pool on XFS"
            )

    def capacity(self) -> Capacity:
        """Return the pool's capacity, measured now."""
        facts, usable = self._measure(exact=True)
        with self._mutex:
            return self._capacity(facts, usable)

    def _measure(self, *, exact: bool) -> tuple[os.statvfs_result, int]:
        """Return statvfs(3) of the pool, and its usable bytes, with what other processes changed.

        The caller does not hold the lock, for this may take long.
        """
        self._contents.layout.changes.catch_up()
        facts = os.statvfs(self._contents.layout.root)
        return facts, self._space.usable(facts.f_bavail * facts.f_frsize, exact=exact)

    def _capacity(self, facts: os.statvfs_result, usable: int) -> Capacity:
        """Return the capacity, with all promises of this moment; the caller holds the lock."""
        held = (
            self._contents.volumes.held
            + self._contents.snapshots.held
            + self._contents.trash.held
            + self._contents.adoptions.held
            + self._contents.moves.held
        )
        size = facts.f_blocks * facts.f_frsize
        return Capacity(
            filesystem=self._contents.filesystem,
            size=size,
            free=facts.f_bavail * facts.f_frsize,
            reserve=self._config.reserve.of(size),
            overcommit=self._config.overcommit,
            committed=held + self._reserved,
            usable=usable,
            lacks_inodes=bool(facts.f_files) and facts.f_favail < _INODES,
        )

    @contextlib.contextmanager
    def reserved(self, size: int, *, thick: bool) -> Iterator[Reservation]:
        """Reserve `size` bytes for the `with` block, or raise `ResourceExhausted`."""
        reservation = Reservation()
        self.adjust(reservation, size, thick=thick)
        try:
            yield reservation
        finally:
            with self.replaced(reservation):
                pass

    def adjust(self, reservation: Reservation, size: int, *, thick: bool) -> None:
        """Make a reservation larger or smaller, or raise `ResourceExhausted`; `size` is in bytes.

        If the trash is being emptied, wait a moment for the room that this frees.
        """
        deadline = time.monotonic() + _PATIENCE
        # The last measurement will do if there is room; only a refusal needs an exact one.
        if not self._try_adjust(reservation, size, thick=thick, exact=False):
            return
        while refusal := self._try_adjust(reservation, size, thick=thick, exact=True):
            if time.monotonic() > deadline or not self._contents.trash.is_emptying():
                raise ResourceExhausted(refusal)
            time.sleep(0.01)

    def _try_adjust(
        self, reservation: Reservation, size: int, *, thick: bool, exact: bool
    ) -> str | None:
        """Do as `adjust`, with an `exact` measurement or the last; return None, or the refusal."""
        facts, usable = self._measure(exact=exact)
        with self._mutex:
            more = size - reservation.size
            capacity = self._capacity(facts, usable)
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
    def explaining_full_disk(self) -> Iterator[None]:
        """Raise `ResourceExhausted` for ENOSPC and EDQUOT in the `with` block, which records."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
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
        """End a reservation, and in the same step index, in the `with` block, what it was for."""
        with self._mutex:
            self._reserved -= reservation.size
            reservation.size = 0
            yield
