"""A pool: the volumes in one directory of one filesystem, and the rules of their life.

A volume is a directory under `volumes/` with its record and its data. It is built under `tmp/` and
renamed into place when it is whole; it is deleted by a rename into `trash/`, then reaped. A crash
leaves litter under `tmp/` and `trash/`, which the next start sweeps away, and never half a volume.
"""

import contextlib
import dataclasses
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePath

import structlog

from pycsi.backends import Backend
from pycsi.backends.choice import backend_for
from pycsi.backends.directory import DATA
from pycsi.capacity import Capacity
from pycsi.claim import Claim
from pycsi.config import PoolConfig
from pycsi.errors import FailedPrecondition, ResourceExhausted
from pycsi.layout import Layout, read_project, write_new_volume, write_volume
from pycsi.limits import Limiter, NoLimiter, limiter_for
from pycsi.linux.mount import Mount, syncfs
from pycsi.linux.tree import refuse_mounts, remove
from pycsi.model import BLOCK, GIB, LARGEST, Volume, show
from pycsi.store import publish, sync_directory

log = structlog.get_logger()

_LARGEST_FILES = {"ext4": 16 * 1024 * GIB - BLOCK}


def capacity_of(config: PoolConfig, committed: int) -> Capacity:
    """Measure the filesystem under a pool of which `committed` bytes are promised."""
    facts = os.statvfs(config.path)
    size = facts.f_blocks * facts.f_frsize
    return Capacity(
        size=size,
        free=facts.f_bavail * facts.f_frsize,
        reserve=config.reserve.of(size),
        overcommit=config.overcommit,
        committed=committed,
    )


class Pool:
    """An open pool. It belongs to this process: the directory is locked with flock(2)."""

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.name = config.name
        self.layout = Layout(config.path)
        self.limiter: Limiter = NoLimiter()
        self._claim = Claim(config)
        self._mutex = threading.Lock()
        self._volumes: dict[str, Volume] = {}
        self._unreadable: dict[str, str] = {}
        self._pending: dict[str, int] = {}
        self._committed = 0

    @property
    def uuid(self) -> str:
        return self._claim.uuid

    @property
    def mount(self) -> Mount:
        """The filesystem that the pool lies on."""
        return self._claim.mount

    def recover(self) -> None:
        """Sweep what a crash has left, and read the volumes. Call once, before anything else."""
        for folder in (self.layout.volumes, self.layout.tmp, self.layout.trash):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.config.path.chmod(0o700)
        sync_directory(self.layout.root)
        self.limiter = limiter_for(self.config.path, self.mount.fstype, self.uuid)
        for folder in (self.layout.tmp, self.layout.trash):
            for entry in list(folder.iterdir()):
                self._reap_or_log(entry)
        self._volumes, self._unreadable = self.layout.read_volumes()
        self._committed = sum(volume.capacity for volume in self._volumes.values())
        log.info(
            "pool is open",
            pool=self.name,
            path=str(self.config.path),
            filesystem=self.mount.fstype,
            directories_limited_by=self.limiter.name,
            volumes=len(self._volumes),
        )

    @property
    def whereabouts(self) -> tuple[int, PurePath]:
        """The filesystem's device number, and the pool's path from the filesystem's own root."""
        return self._claim.whereabouts

    def close(self) -> None:
        """Release the pool to another process."""
        self._claim.close()

    @property
    def largest_file(self) -> int:
        """The most bytes that one file on this filesystem can have."""
        return _LARGEST_FILES.get(self.mount.fstype, LARGEST)

    def check(self, *, writable: bool = True) -> None:
        """Raise `FailedPrecondition` unless the pool is there and the one we opened."""
        self._claim.check(writable=writable)

    # Looking

    def get(self, volume_id: str) -> Volume | None:
        """Return a volume, or None; `FailedPrecondition` where its record cannot be read."""
        if reason := self._unreadable.get(volume_id):
            raise FailedPrecondition(
                f"volume {volume_id} is there, but {reason}; restore the record, or move the "
                "volume's directory away, and restart the driver"
            )
        return self._volumes.get(volume_id)

    def volumes(self) -> list[Volume]:
        with self._mutex:
            return list(self._volumes.values())

    def place(self, volume_id: str) -> Path:
        """Return the directory of a volume that exists."""
        return self.layout.volumes / volume_id

    def backend(self, volume: Volume) -> Backend:
        """Return the volume's data."""
        return backend_for(self.place(volume.id), volume, self.limiter, self.mount)

    def capacity(self) -> Capacity:
        with self._mutex:
            return capacity_of(self.config, self._committed + sum(self._pending.values()))

    # Changing; callers hold the volume's lock

    @contextlib.contextmanager
    def _room(self, key: str, size: int, *, thick: bool) -> Iterator[None]:
        """Reserve `size` bytes through the `with` block, or raise `ResourceExhausted`."""
        with self._mutex:
            pending = sum(self._pending.values())
            capacity = capacity_of(self.config, self._committed + pending)
            left = capacity.available(thick=thick)
            if size > left:
                raise ResourceExhausted(
                    f"pool {self.name}: {show(size)} wanted, {show(left)} left of "
                    f"{show(capacity.limit)} (overcommit {capacity.overcommit:g}, "
                    f"{show(capacity.free)} free on disk); free space, lower the request or "
                    "raise overcommit"
                )
            self._pending[key] = size
        try:
            yield
        finally:
            with self._mutex:
                self._pending.pop(key, None)

    def create(self, volume: Volume) -> Volume:
        """Make a volume whole and durable, and return it as recorded."""
        self.check()
        with self._room(volume.id, volume.capacity, thick=volume.thick):
            # A name of its own: a mkfs that outlived its driver may still write into an older one.
            building = self.layout.tmp / f"{volume.id}.{uuid.uuid4().hex[:8]}"
            building.mkdir(mode=0o700)
            place = building
            try:
                backend = backend_for(building, volume, self.limiter, self.mount)
                made = dataclasses.replace(volume, project=backend.create())
                write_new_volume(building, made)
                self._refuse_occupied(volume.id)
                place = self.place(volume.id)
                publish(building, place)
                self._settle()
            except BaseException:
                self._reap_or_log(building)
                if place != building:
                    self._reap_or_log(place)
                raise
            self._remember(made)
        return made

    def _refuse_occupied(self, volume_id: str) -> None:
        if os.path.lexists(self.place(volume_id)):
            raise FailedPrecondition(
                f"{self.place(volume_id)} exists, but was not there when the driver started; "
                "restart the driver, or move it away"
            )

    def delete(self, volume: Volume) -> None:
        """Delete a volume that is not in use: gone when this returns, also after a power cut."""
        self.check()
        refuse_mounts(self.place(volume.id))
        doomed = self.layout.trash / f"{volume.id}.{uuid.uuid4().hex[:8]}"
        publish(self.place(volume.id), doomed)
        with self._mutex:
            del self._volumes[volume.id]
            self._committed -= volume.capacity
        self._reap_or_log(doomed)

    def resize(self, volume: Volume, size: int) -> Volume:
        """Make a volume's data larger: `size` bytes. The filesystem on an image is not grown."""
        self.check()
        with self._room(volume.id, size - volume.capacity, thick=volume.thick):
            backend = self.backend(volume)
            larger = dataclasses.replace(volume, capacity=size)
            try:
                backend.resize(size)
                if larger != volume:
                    self._record(larger)
            except BaseException:
                with contextlib.suppress(OSError):
                    backend.resize(volume.capacity)
                raise
            backend.expose()
        return larger

    def update(self, volume: Volume) -> None:
        """Record a volume anew, durably."""
        self.check()
        self._record(volume)

    def _record(self, volume: Volume) -> None:
        write_volume(self.place(volume.id), volume)
        self._settle()
        self._remember(volume)

    def _remember(self, volume: Volume) -> None:
        with self._mutex:
            self._pending.pop(volume.id, None)
            before = self._volumes.get(volume.id)
            self._committed += volume.capacity - (before.capacity if before else 0)
            self._volumes[volume.id] = volume

    def _settle(self) -> None:
        # On btrfs a new subvolume and its limit are durable with the next commit, not by fsync.
        if self.mount.fstype == "btrfs":
            syncfs(self.layout.root)

    def _reap_or_log(self, place: Path) -> None:
        """Delete what is left of a volume; what cannot be deleted waits for the next start.

        Nothing that a volume's user has put into it may keep the pool from being opened.
        """
        try:
            self._reap(place)
        except Exception as error:  # noqa: BLE001
            log.warning("cannot be deleted now", path=str(place), error=str(error))

    def _reap(self, place: Path) -> None:
        """Delete what is left of a volume under `tmp/` or `trash/`."""
        if not place.exists():
            return
        self.limiter.remove(place / DATA, read_project(place))
        remove(place)
