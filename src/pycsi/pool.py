"""A pool: the volumes in one directory of one filesystem, and the rules of their life.

A volume is a directory under `volumes/` with its record and its data. It is built under `tmp/` and
renamed into place when it is whole; it is deleted by a rename into `trash/`, then reaped. A crash
leaves litter under `tmp/` and `trash/`, which the next start sweeps away, and never half a volume.
"""

import contextlib
import dataclasses
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import structlog

from pycsi.backends import Backend
from pycsi.backends.choice import backend_for
from pycsi.backends.directory import DATA
from pycsi.capacity import Capacity
from pycsi.config import ConfigError, PoolConfig
from pycsi.errors import FailedPrecondition, ResourceExhausted
from pycsi.limits import Limiter, NoLimiter, limiter_for
from pycsi.linux import mount
from pycsi.model import Volume, show
from pycsi.store import (
    RecordError,
    publish,
    read_record,
    remove_tree,
    sync_directory,
    write_record,
)

log = structlog.get_logger()

POOL_RECORD = "pool.json"
VOLUME_RECORD = "volume.json"
_VOLATILE = frozenset({"tmpfs", "ramfs"})


class Layout:
    """Where things lie in a pool."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / POOL_RECORD
        self.volumes = root / "volumes"
        self.tmp = root / "tmp"
        self.trash = root / "trash"

    def read_volumes(self) -> Iterator[Volume]:
        """Read all volume records; a damaged one is logged and passed over, never touched."""
        for entry in sorted(os.scandir(self.volumes), key=lambda entry: entry.name):
            try:
                yield Volume.from_json(read_record(Path(entry.path) / VOLUME_RECORD))
            except (RecordError, OSError, TypeError, KeyError, ValueError) as error:
                log.error("a volume's record cannot be read", place=entry.path, error=str(error))


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
        self._mutex = threading.Lock()
        self._reopening = threading.Lock()
        self._volumes: dict[str, Volume] = {}
        self._pending: dict[str, int] = {}
        self._committed = 0
        self._fd = _open_directory(config)
        try:
            self._claim()
        except BaseException:
            os.close(self._fd)
            raise

    def _claim(self) -> None:
        """Lock the pool, look at its filesystem, and read or make its record."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"pool {self.name}: {self.config.path} is in use by another driver"
            ) from None
        self.mount = mount.mount_of(self._fd)
        if self.mount.fstype in _VOLATILE and not self.config.allow_volatile:
            raise ConfigError(
                f"pool {self.name}: {self.config.path} is on {self.mount.fstype}, which a reboot "
                "empties; use a disk, or accept that with allow-volatile"
            )
        if self.config.require_mount and self.mount.target != os.path.realpath(self.config.path):
            raise ConfigError(
                f"pool {self.name}: nothing is mounted at {self.config.path}; mount its disk"
            )
        if self._readonly():
            raise ConfigError(f"pool {self.name}: {self.config.path} is mounted read-only")
        try:
            self.uuid = _identify(self.layout)
        except RecordError as error:
            raise ConfigError(f"pool {self.name}: {error}") from None

    def recover(self) -> None:
        """Sweep what a crash has left, and read the volumes. Call once, before anything else."""
        for folder in (self.layout.volumes, self.layout.tmp, self.layout.trash):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.config.path.chmod(0o700)
        sync_directory(self.layout.root)
        self.limiter = limiter_for(self.config.path, self.mount.fstype, self.uuid)
        for folder in (self.layout.tmp, self.layout.trash):
            for entry in list(folder.iterdir()):
                self._reap(entry)
        for volume in self.layout.read_volumes():
            self._volumes[volume.id] = volume
            self._committed += volume.capacity
        log.info(
            "pool is open",
            pool=self.name,
            path=str(self.config.path),
            filesystem=self.mount.fstype,
            directories_limited_by=self.limiter.name,
            volumes=len(self._volumes),
        )

    def close(self) -> None:
        """Release the pool to another process."""
        os.close(self._fd)

    # Is it the pool it was?

    def check(self) -> None:
        """Raise `FailedPrecondition` unless the pool is there, writable, and the one we opened."""
        try:
            if not self._in_place():
                with self._reopening:
                    if not self._in_place():
                        self._reopen()
        except (OSError, RecordError, ConfigError) as error:
            raise FailedPrecondition(
                f"pool {self.name}: {self.config.path} is missing ({error}); mount its disk again"
            ) from None
        if self._readonly():
            raise FailedPrecondition(
                f"pool {self.name}: {self.config.path} is read-only; look at the kernel's log for "
                "the disk's errors, then mount it read-write"
            )

    def _in_place(self) -> bool:
        now = self.config.path.stat()
        here = os.fstat(self._fd)
        return (now.st_dev, now.st_ino) == (here.st_dev, here.st_ino)

    def _readonly(self) -> bool:
        return bool(os.fstatvfs(self._fd).f_flag & os.ST_RDONLY)

    def _reopen(self) -> None:
        """Follow the pool to where it is mounted now, if it is the same one."""
        found = read_record(self.layout.record)["uuid"]
        if found != self.uuid:
            raise FailedPrecondition(
                f"pool {self.name}: {self.config.path} holds pool {found}, not {self.uuid}; "
                "mount the right disk"
            )
        fd = _open_directory(self.config)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise FailedPrecondition(f"pool {self.name} is in use by another driver") from None
        old, self._fd = self._fd, fd
        os.close(old)
        self.mount = mount.mount_of(fd)

    # Looking

    def get(self, volume_id: str) -> Volume | None:
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
                del self._pending[key]

    def create(self, volume: Volume) -> Volume:
        """Make a volume whole and durable, and return it as recorded."""
        self.check()
        with self._room(volume.id, volume.capacity, thick=volume.thick):
            building = self.layout.tmp / volume.id
            self._reap(building)
            building.mkdir(mode=0o700)
            try:
                backend = backend_for(building, volume, self.limiter, self.mount)
                made = dataclasses.replace(volume, project=backend.create())
                write_record(building / VOLUME_RECORD, made.to_json())
                publish(building, self.place(volume.id))
                self._settle()
            except BaseException:
                self._reap(building)
                raise
            self._remember(made)
        return made

    def delete(self, volume: Volume) -> None:
        """Delete a volume that is not in use: gone when this returns, also after a power cut."""
        self.check()
        doomed = self.layout.trash / f"{volume.id}.{uuid.uuid4().hex[:8]}"
        publish(self.place(volume.id), doomed)
        self._reap(doomed)
        with self._mutex:
            del self._volumes[volume.id]
            self._committed -= volume.capacity

    def resize(self, volume: Volume, size: int) -> Volume:
        """Make a volume's data larger: `size` bytes. The filesystem on an image is not grown."""
        self.check()
        with self._room(volume.id, size - volume.capacity, thick=volume.thick):
            self.backend(volume).resize(size)
            if size == volume.capacity:
                return volume
            larger = dataclasses.replace(volume, capacity=size)
            self._record(larger)
        return larger

    def update(self, volume: Volume) -> None:
        """Record a volume anew, durably."""
        self.check()
        self._record(volume)

    def _record(self, volume: Volume) -> None:
        write_record(self.place(volume.id) / VOLUME_RECORD, volume.to_json())
        self._settle()
        self._remember(volume)

    def _remember(self, volume: Volume) -> None:
        with self._mutex:
            before = self._volumes.get(volume.id)
            self._committed += volume.capacity - (before.capacity if before else 0)
            self._volumes[volume.id] = volume

    def _settle(self) -> None:
        # On btrfs a new subvolume and its limit are durable with the next commit, not by fsync.
        if self.mount.fstype == "btrfs":
            mount.syncfs(self.layout.root)

    def _reap(self, place: Path) -> None:
        """Delete what is left of a volume under `tmp/` or `trash/`."""
        if not place.exists():
            return
        self.limiter.remove(place / DATA)
        remove_tree(place)


def _open_directory(config: PoolConfig) -> int:
    try:
        return os.open(config.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"pool {config.name}: {config.path}: {error.strerror}; make the directory or mount "
            "its disk"
        ) from None


def _identify(layout: Layout) -> str:
    """Return the UUID of the pool at `layout`, made now if the directory is empty."""
    try:
        return str(uuid.UUID(read_record(layout.record)["uuid"]))
    except FileNotFoundError:
        pass
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RecordError(f"{layout.record} is damaged: {error}") from None
    harmless = {"lost+found", f".{POOL_RECORD}.new"}
    foreign = [entry.name for entry in os.scandir(layout.root) if entry.name not in harmless]
    if foreign:
        raise RecordError(
            f"{layout.root} is neither a pool nor empty (it holds {foreign[0]!r}); give an empty "
            "directory, or the pool's own disk"
        )
    made = str(uuid.uuid4())
    write_record(layout.record, {"uuid": made, "created": time.time()})
    return made
