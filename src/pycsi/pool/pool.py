"""A pool: the volumes and snapshots in one directory of one filesystem, and their life cycle.

Each is a directory with a record and data. It is built under `tmp/` and renamed into place when it
is complete; it is deleted by a rename into `trash/`, and removed from there in the background. A
crash leaves litter under `tmp/`, which the next start sweeps away, and never half a volume.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from pycsi.backends import Backend
from pycsi.backends.choice import backend_for
from pycsi.backends.enforcement import limiter_for
from pycsi.backends.limits import Limiter, LimitError, NoLimiter
from pycsi.linux import clone
from pycsi.linux.descriptor import exists
from pycsi.linux.kernel import KernelView, Mount
from pycsi.linux.location import Location
from pycsi.linux.mount import syncfs
from pycsi.linux.tree import refuse_listed
from pycsi.model.config import PoolConfig
from pycsi.model.errors import FailedPrecondition, OutOfRange
from pycsi.model.records import (
    Snapshot,
    Volume,
    VolumeType,
)
from pycsi.model.rootdirectory import RootDirectory
from pycsi.model.size import LARGEST, round_down, show
from pycsi.model.spec import largest
from pycsi.pool import layout, trash
from pycsi.pool.building import Build, build
from pycsi.pool.capacity import Capacity
from pycsi.pool.catalog import Catalog
from pycsi.pool.deletions import Deletions
from pycsi.pool.directory import PoolDirectory
from pycsi.pool.freezing import Frozen, thaw_after_crash
from pycsi.pool.groups import Groups
from pycsi.pool.room import Room
from pycsi.pool.written import Contents

log = structlog.get_logger()

_MOST_BLOCKS = 2**32 - 1
"""The number of blocks that a file on ext4 can have."""


class Pool:
    """An open pool, whose directory this process has locked with flock(2).

    `ConfigError` if it cannot be opened; `begin` as for `PoolDirectory`.
    """

    def __init__(self, config: PoolConfig, *, begin: bool) -> None:
        self.config = config
        self.name = config.name
        self.layout = layout.Layout(config.path)
        self.limiter: Limiter = NoLimiter()
        self.reflinks = False
        self.volumes = layout.volume_catalog(self.layout)
        self.snapshots = layout.snapshot_catalog(self.layout)
        self.groups = Groups(self.layout)
        self.trash = trash.Trash(self.layout, config.retain_for)
        self.deletions = Deletions(self.layout.deletions)
        self.missing: Callable[[], Iterable[str]] = tuple
        """Returns the names of the other pools that are missing; set if there may be others."""
        self._directory = PoolDirectory(config, begin=begin)
        contents = Contents(
            layout=self.layout,
            filesystem=self.mount.fstype,
            volumes=self.volumes,
            snapshots=self.snapshots,
            trash=self.trash,
            owned=lambda volume, shares: self.backend(volume).owned(shares=shares),
            uncounted=self._uncounted,
        )
        self.room = Room(config, contents)

    def _uncounted(self) -> str | None:
        return self.limiter.fault()

    @property
    def uuid(self) -> str:
        return self._directory.uuid

    @property
    def mount(self) -> Mount:
        """The filesystem that the pool lies on."""
        return self._directory.mount

    def load(self) -> None:
        """Load the volumes, and thaw those that a crash has left frozen. Call once, first.

        `OSError` if the pool cannot be used.
        """
        for folder in self.layout.folders:
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
        self.volumes.load()
        self._thaw()

    def recover(self) -> None:
        """Clean up after a crash, and load the snapshots and groups. Call once, after `load`.

        `OSError` if the pool cannot be used.
        """
        self.config.path.chmod(0o700)
        # A driver that was killed may have left writes in the page cache only. A repeated call is
        # acknowledged for what is found now, so that must be durable.
        syncfs(self.layout.root)
        self.limiter = limiter_for(self.location.real_path, self.mount.fstype, self.uuid)
        self.reflinks = clone.can_share(self.layout.record)
        self.snapshots.load()
        self.groups.load()
        for litter in list(self.layout.tmp.iterdir()):
            litter.rename(trash.reaping_place(self.layout, litter.name))
        log.info(
            "pool is open",
            pool=self.name,
            path=str(self.config.path),
            filesystem=self.mount.fstype,
            directories_limited_by=self.limiter.name,
            shares_blocks=self.reflinks,
            volumes=len(self.volumes),
            snapshots=len(self.snapshots),
        )
        self.warn_of_promises()

    def warn_of_promises(self) -> None:
        """Log a warning if the pool cannot promise anything, or has promised more than it has."""
        with contextlib.suppress(OSError):  # the pool's disk is away
            capacity = self.capacity()
            if not capacity.limit:
                log.warning(
                    "the pool takes no volume: its reserve leaves nothing of its disk; lower it",
                    pool=self.name,
                    size=show(capacity.size),
                    reserve=show(capacity.reserve),
                )
            if capacity.lacking:
                log.warning(
                    "the pool promises more than its disk has; free space there, or delete volumes",
                    pool=self.name,
                    unwritten=show(capacity.unwritten),
                    free=show(capacity.free),
                    reserve=show(capacity.reserve),
                    lacking=show(capacity.lacking),
                )

    def _thaw(self) -> None:
        for marker in list(self.layout.frozen.iterdir()):
            try:
                if volume := self.volumes.get(marker.name):
                    thaw_after_crash(marker, self.backend(volume))
                else:
                    marker.unlink()
            except (OSError, FailedPrecondition) as error:
                log.warning("cannot be thawed", volume=marker.name, error=str(error))

    @property
    def location(self) -> Location:
        """The location of the pool's directory."""
        return self._directory.location

    def close(self) -> None:
        """Close the pool, which releases it for another process."""
        self._directory.close()

    @functools.cached_property
    def largest_file(self) -> int:
        """The largest size of a file on the pool's filesystem, in bytes."""
        if self.mount.fstype != "ext4":
            return LARGEST
        return round_down(_MOST_BLOCKS * os.statvfs(self.layout.root).f_bsize)

    def _refuse_impossible(self, volume: Volume) -> None:
        """Raise `OutOfRange` for a size that an image in this pool can never have."""
        if volume.type is not VolumeType.IMAGE:
            return
        most = largest(volume.filesystem, volume.mkfs_options)
        if volume.capacity > most:
            raise OutOfRange(
                f"{show(volume.capacity)} wanted, and {volume.filesystem} as it would be made has "
                f"at most {most} bytes ({show(most)}); ask for less, or change mkfsOptions"
            )
        if volume.capacity > self.largest_file:
            raise OutOfRange(
                f"pool {self.name}: {show(volume.capacity)} wanted, and a file on its "
                f"{self.mount.fstype} has at most {self.largest_file} bytes "
                f"({show(self.largest_file)}); ask for less, or use a pool on XFS"
            )

    def check(self, *, writable: bool = True) -> None:
        """Raise `PoolMissing` unless the pool that was opened is still at its path.

        Unless `writable` is False it must also be on a filesystem that can be written to.
        """
        self._directory.check(writable=writable)

    def unlimited(self) -> str | None:
        """Return why limits of directories are not enforced now, or None; see `Limiter.fault`."""
        self.check()
        return self.limiter.fault()

    def backend(self, volume: Volume, kernel: KernelView | None = None) -> Backend:
        """Return the backend of a volume that exists."""
        where = self.volumes.place(volume.id)
        return backend_for(where, volume, self.limiter, self.location, kernel)

    def backend_of(self, snapshot: Snapshot) -> Backend:
        """Return the backend of a snapshot that exists."""
        return self.backend_at(self.snapshots.place(snapshot.id), snapshot.volume)

    def backend_at(self, place: Path | str, volume: Volume) -> Backend:
        """Return the backend of a volume, or of a snapshot of it, in the directory `place`."""
        return backend_for(os.fspath(place), volume, self.limiter, self.location)

    def healthy_path(self, volume: Volume) -> str:
        """Return the volume's `Backend.healthy_path`; "" if it was ever staged or published.

        `OSError` if the volume's notes are not accessible.
        """
        backend = self.backend(volume)
        return backend.healthy_path if layout.never_noted(backend.where) else ""

    def to_freeze(self, backend: Backend) -> Frozen:
        """Return what `frozen` needs to freeze a mounted volume."""
        return Frozen(marker=self.layout.frozen / backend.volume.id, backend=backend)

    def capacity(self) -> Capacity:
        """Return the pool's capacity, measured now."""
        return self.room.capacity()

    # Changing; callers hold the volume's or the snapshot's lock

    def create(
        self,
        volume: Volume,
        root: RootDirectory | None = None,
        *,
        fill: Callable[[Backend], int | None] | None = None,
        more: int = 0,
    ) -> Volume:
        """Make a volume, durably, and return it as recorded.

        Its root directory gets the attributes `root`. Or else `fill` makes its data from a source
        and returns its project id, if it has one; that takes `more` bytes beside the volume's size.
        `OutOfRange` or `ResourceExhausted` for a size that the pool cannot have, or has no room
        for.
        """
        self._refuse_impossible(volume)
        thick = volume.thick or more > 0
        with (
            self.volumes.creating(volume.id) as place,
            self._build(place, volume.capacity + more, thick=thick) as building,
        ):
            backend = self.backend_at(building.directory, volume)
            project = fill(backend) if fill else backend.create(root)
            if more:
                building.reservation.resize(volume.capacity, thick=thick)
            made = dataclasses.replace(volume, project=project) if project else volume
            with self.room.recording():
                layout.write_new_volume(building.directory, made)
                backend.sync_names()
                building.commit(lambda: self._make_durable(made))
            building.index(self.volumes, made)
        return made

    def build_snapshot(
        self, snapshot_id: str, size: int, *, thick: bool
    ) -> contextlib.AbstractContextManager[Build]:
        """Build a snapshot that will occupy about `size` bytes; of a thick volume, all its own.

        The `with` block fills the build's empty directory and passes the build to
        `commit_snapshot`. If the block fails before that, the directory is deleted.
        """
        place = self.snapshots.place(snapshot_id)
        return self._build(place, size, thick=thick or not self.reflinks)

    def commit_snapshot(self, building: Build, snapshot: Snapshot) -> None:
        """Move a complete snapshot to its place, durably; `Build.index` makes it known."""
        building.reservation.resize(snapshot.held, thick=False)
        with self.room.recording():
            layout.write_new_snapshot(Path(building.directory), snapshot)
            building.commit(lambda: self._make_durable(snapshot.volume))

    def _build(
        self, place: str, size: int, *, thick: bool
    ) -> contextlib.AbstractContextManager[Build]:
        self.check()
        return build(
            self.layout,
            self.room,
            place,
            size,
            thick=thick,
            destroy=lambda directory: trash.destroy(directory, self.limiter),
        )

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot, even if its record cannot be read; absent is fine."""
        self.check()
        self.deletions.note("snapshot", snapshot_id, self.missing())
        self._move_to_trash(self.snapshots, snapshot_id, trash.Fate.GONE)

    def delete(self, backend: Backend, fate: trash.Fate) -> None:
        """Delete a volume that is not in use: durable when this returns.

        Use is judged by the kernel view of `backend`, which is not read again.
        """
        self.check()
        refuse_listed(backend.kernel.mounts, self.location.real(backend.where))
        self.deletions.note("volume", backend.volume.id, self.missing())
        self._move_to_trash(self.volumes, backend.volume.id, fate)

    def _move_to_trash(
        self, catalog: Catalog[Volume] | Catalog[Snapshot], object_id: str, fate: trash.Fate
    ) -> None:
        place = catalog.place(object_id)
        try:
            if exists(place):
                self.trash.put(place, object_id, fate, catalog.held_by(object_id))
        finally:
            if not exists(place):
                catalog.drop(object_id)

    def resize(self, volume: Volume, size: int) -> Volume:
        """Grow a volume's data to `size` bytes, and return the volume as recorded.

        The filesystem on an image is not grown. If recording fails, the old size is restored.
        """
        self.check()
        larger = dataclasses.replace(volume, capacity=size)
        if size > volume.capacity:
            self._refuse_impossible(larger)
        with self.room.reserved(size - volume.capacity, thick=volume.thick) as reservation:
            backend = self.backend(volume)
            try:
                backend.resize(size)
                if larger != volume:
                    self._record(larger, reservation.replaced)
            except BaseException:
                with contextlib.suppress(OSError, LimitError):
                    recorded = self.volumes.get(volume.id) or volume
                    backend.resize(recorded.capacity)
                raise
            backend.expose()
        return larger

    def update(self, volume: Volume) -> None:
        """Replace a volume's record, durably."""
        self.check()
        self._record(volume, contextlib.nullcontext)

    def _record(
        self, volume: Volume, known: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        """Replace a volume's record, durably, and index the volume in a block of `known`."""
        place = self.volumes.place(volume.id)
        before = self.volumes.get(volume.id)
        try:
            with self.room.recording():
                layout.write_volume(place, volume)
                self._make_durable(volume)
        except BaseException:
            # The new record may be in its place but not durable, so the old one is put back.
            with contextlib.suppress(OSError):
                if before:
                    layout.write_volume(place, before)
            self.volumes.read_again(volume.id)
            raise
        with known():
            self.volumes.put(volume)

    def _make_durable(self, volume: Volume) -> None:
        # On btrfs fsync does not make a new subvolume and its limit durable, only the next commit
        # does. An image is a file, and has been synchronised.
        if self.mount.fstype == "btrfs" and volume.type is VolumeType.DIRECTORY:
            syncfs(self.layout.root)
