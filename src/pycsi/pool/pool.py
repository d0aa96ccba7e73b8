"""A pool: the volumes and snapshots in one directory of one filesystem, and their life's rules.

Each is a directory with its record and its data. It is built under `tmp/` and renamed into place
when it is whole; it is deleted by a rename into `trash/`, and reaped from there in the background.
A crash leaves litter under `tmp/`, which the next start sweeps away, and never half a volume.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog

from pycsi.backends import Backend
from pycsi.backends.choice import backend_for
from pycsi.backends.enforcement import limiter_for
from pycsi.backends.limits import Limiter, LimitError, NoLimiter
from pycsi.linux import clone
from pycsi.linux.descriptor import exists, sync_directory
from pycsi.linux.kernel import KernelView
from pycsi.linux.location import Location
from pycsi.linux.mount import syncfs
from pycsi.linux.mounttable import Mount
from pycsi.linux.record import publish
from pycsi.linux.tree import refuse_listed
from pycsi.model import mkfsoptions
from pycsi.model.config import PoolConfig
from pycsi.model.errors import FailedPrecondition, OutOfRange
from pycsi.model.records import (
    Group,
    Snapshot,
    Volume,
    VolumeType,
)
from pycsi.model.size import LARGEST, round_down, show
from pycsi.pool import layout, trash
from pycsi.pool.capacity import Capacity
from pycsi.pool.catalog import Catalog
from pycsi.pool.directory import PoolDirectory
from pycsi.pool.freezing import Frozen, thaw_after_crash
from pycsi.pool.room import Room
from pycsi.pool.written import Contents

log = structlog.get_logger()

_MOST_BLOCKS = 2**32 - 1
"""How many blocks a file on ext4 can have."""


def _from_nothing(backend: Backend) -> int | None:
    return backend.create()


class Pool:
    """An open pool. It belongs to this process: the directory is locked with flock(2)."""

    def __init__(self, config: PoolConfig, *, begin: bool) -> None:
        self.config = config
        self.name = config.name
        self.layout = layout.Layout(config.path)
        self.limiter: Limiter = NoLimiter()
        self.reflinks = False
        self.volumes = layout.volume_catalog(self.layout)
        self.snapshots = layout.snapshot_catalog(self.layout)
        self.groups: dict[str, Group] = {}
        self.trash = trash.Trash(self.layout, config.retain_for)
        self._directory = PoolDirectory(config, begin=begin)
        contents = Contents(
            layout=self.layout,
            filesystem=self.mount.fstype,
            volumes=self.volumes,
            snapshots=self.snapshots,
            trash=self.trash,
            owned=lambda volume, shares: self.backend(volume).owned(shares=shares),
        )
        self.room = Room(config, contents)

    @property
    def uuid(self) -> str:
        return self._directory.uuid

    @property
    def mount(self) -> Mount:
        """The filesystem that the pool lies on."""
        return self._directory.mount

    def load(self) -> None:
        """Read the volumes, and thaw those that a crash has left frozen. Call once, first.

        `OSError` where the pool cannot be used.
        """
        for folder in self.layout.folders:
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
        self.volumes.load()
        self._thaw()

    def recover(self) -> None:
        """Put right what else a crash has left, and read the other records. Call once.

        `OSError` where the pool cannot be used.
        """
        self.config.path.chmod(0o700)
        # A process that was killed may have left what is found now, and so is acknowledged when it
        # is asked for again, in memory only.
        syncfs(self.layout.root)
        self.limiter = limiter_for(self.location.real_path, self.mount.fstype, self.uuid)
        self.reflinks = clone.can_share(self.layout.record)
        self.snapshots.load()
        self.groups = layout.read_groups(self.layout)
        for litter in list(self.layout.tmp.iterdir()):
            litter.rename(trash.doomed_place(self.layout, litter.name))
        for unwritten in list(self.layout.groups.glob(".*")):
            unwritten.unlink()
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
        """Log that volumes may meet a full disk, if more was promised than it has."""
        with contextlib.suppress(OSError):  # the pool's disk is away
            capacity = self.capacity()
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
        """Where the pool lies on its filesystem."""
        return self._directory.location

    def close(self) -> None:
        """Release the pool to another process."""
        self._directory.close()

    @functools.cached_property
    def largest_file(self) -> int:
        """The most bytes that one file on this filesystem can have."""
        if self.mount.fstype != "ext4":
            return LARGEST
        return round_down(_MOST_BLOCKS * os.statvfs(self.layout.root).f_bsize)

    def _refuse_impossible(self, volume: Volume) -> None:
        """Refuse a size that an image here cannot have, however much room there is."""
        if volume.type is not VolumeType.IMAGE:
            return
        most = mkfsoptions.largest(volume.filesystem, volume.mkfs_options)
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
        """Raise `PoolMissing` unless the pool is there and the one we opened."""
        self._directory.check(writable=writable)

    def unlimited(self) -> str | None:
        """Return why limits of directories do not hold now: see `Limiter.fault`."""
        self.check()
        return self.limiter.fault()

    def backend(self, volume: Volume, kernel: KernelView | None = None) -> Backend:
        """Return the data of a volume that exists."""
        where = self.volumes.place(volume.id)
        return backend_for(where, volume, self.limiter, self.location, kernel)

    def backend_of(self, snapshot: Snapshot) -> Backend:
        """Return the data of a snapshot that exists."""
        return self.backend_at(self.snapshots.place(snapshot.id), snapshot.volume)

    def backend_at(self, place: Path | str, volume: Volume) -> Backend:
        """Return the data of a volume, or of a snapshot of it, in the directory `place`."""
        return backend_for(os.fspath(place), volume, self.limiter, self.location)

    def healthy_path(self, volume: Volume) -> str:
        """Return the `Backend.healthy_path` of a volume that was never staged or published, or none.

        `OSError` where that cannot be seen.
        """
        backend = self.backend(volume)
        return backend.healthy_path if layout.never_noted(backend.where) else ""

    def to_freeze(self, backend: Backend) -> Frozen:
        """Return what is to be frozen of a volume that is mounted."""
        return Frozen(marker=self.layout.frozen / backend.volume.id, backend=backend)

    def capacity(self) -> Capacity:
        """Measure the pool; what is promised is counted, what is in the trash too."""
        return self.room.capacity()

    # Changing; callers hold the volume's or the snapshot's lock

    @contextlib.contextmanager
    def _building(self, place: str, size: int, *, thick: bool) -> Iterator[str]:
        """Make an empty directory for what shall be at `place`, and reserve room for it.

        If the `with` block fails it is deleted, unless it was published.
        """
        self.check()
        with self.room.reserved(place, size, thick=thick):
            # A name of its own: a mkfs that outlived its driver may still write into an older one.
            name = place.rpartition("/")[2]
            building = f"{self.layout.tmp}/{name}.{os.urandom(4).hex()}"
            os.mkdir(building, 0o700)  # noqa: PTH102  (Path's costs as much as the call)
            try:
                yield building
            except BaseException:
                self._destroy_or_log(building)
                raise

    def create(
        self,
        volume: Volume,
        fill: Callable[[Backend], int | None] = _from_nothing,
        *,
        more: int = 0,
    ) -> Volume:
        """Make a volume whole and durable, and return it as recorded.

        `fill` makes its data and returns the project id; it needs `more` bytes while it does so.
        """
        self._refuse_impossible(volume)
        thick = volume.thick or more > 0
        with (
            self.volumes.coming(volume.id) as place,
            self._building(place, volume.capacity + more, thick=thick) as building,
        ):
            backend = self.backend_at(building, volume)
            project = fill(backend)
            if more:
                self.room.reserve(place, volume.capacity, thick=thick)
            made = dataclasses.replace(volume, project=project) if project else volume
            layout.write_new_volume(building, made)
            backend.sync_names()
            self._publish(building, place, made)
            self._remember(self.volumes, place, made)
        return made

    @contextlib.contextmanager
    def taking(self, snapshot_id: str, size: int, *, thick: bool) -> Iterator[Path]:
        """Make an empty directory for a snapshot that will occupy about `size` bytes.

        Of a thick volume these are bytes of its own, now. The directory is to be given to `keep` in
        the `with` block; if that fails it is deleted.
        """
        place = self.snapshots.place(snapshot_id)
        with self._building(place, size, thick=thick or not self.reflinks) as building:
            yield Path(building)

    def keep(self, building: Path, snapshot: Snapshot) -> None:
        """Put a snapshot that is whole in its place; `remember` makes it known."""
        place = self.snapshots.place(snapshot.id)
        self.room.reserve(place, snapshot.held, thick=False)
        layout.write_new_snapshot(building, snapshot)
        self._publish(building, place, snapshot.volume)

    def remember(self, snapshot: Snapshot) -> None:
        """Make a snapshot known that is in its place."""
        self._remember(self.snapshots, self.snapshots.place(snapshot.id), snapshot)

    def forget(self, snapshot_id: str) -> None:
        """Delete a snapshot, also one whose record cannot be read; absent is fine."""
        self.check()
        self._throw_away(self.snapshots, snapshot_id, trash.Fate.GONE)

    def _publish(self, building: Path | str, place: str, volume: Volume) -> None:
        if os.path.lexists(place):
            raise FailedPrecondition(
                f"{place} exists, but was not there when the driver started; restart the driver, "
                "or move it away"
            )
        sync_directory(building)
        publish(building, place)
        try:
            self._make_durable(volume)
        except BaseException:
            os.rename(place, building)  # noqa: PTH104
            raise

    def delete(self, backend: Backend, fate: trash.Fate) -> None:
        """Delete a volume that is not in use: gone when this returns, also after a power cut.

        The kernel that `backend` has asked whether it is in use is not asked again.
        """
        self.check()
        refuse_listed(backend.kernel.mounts, self.location.real(backend.where))
        self._throw_away(self.volumes, backend.volume.id, fate)

    def _throw_away(
        self, catalog: Catalog[Volume] | Catalog[Snapshot], object_id: str, fate: trash.Fate
    ) -> None:
        place = catalog.place(object_id)
        try:
            if exists(place):
                self.trash.throw_away(place, object_id, fate, catalog.held_by(object_id))
        finally:
            if not exists(place):
                catalog.drop(object_id)

    def resize(self, volume: Volume, size: int) -> Volume:
        """Make a volume's data larger: `size` bytes. The filesystem on an image is not grown."""
        self.check()
        larger = dataclasses.replace(volume, capacity=size)
        if size > volume.capacity:
            self._refuse_impossible(larger)
        place = self.volumes.place(volume.id)
        with self.room.reserved(place, size - volume.capacity, thick=volume.thick):
            backend = self.backend(volume)
            try:
                backend.resize(size)
                if larger != volume:
                    self.update(larger)
            except BaseException:
                with contextlib.suppress(OSError, LimitError):
                    recorded = self.volumes.get(volume.id) or volume
                    backend.resize(recorded.capacity)
                raise
            backend.expose()
        return larger

    def update(self, volume: Volume) -> None:
        """Record a volume anew, durably."""
        self.check()
        place = self.volumes.place(volume.id)
        before = self.volumes.get(volume.id)
        try:
            layout.write_volume(place, volume)
            self._make_durable(volume)
        except BaseException:
            # The new record may be in its place, and not on the disk: then the old one goes back.
            with contextlib.suppress(OSError):
                if before:
                    layout.write_volume(place, before)
            self.volumes.read_again(volume.id)
            raise
        self._remember(self.volumes, place, volume)

    def write_group_record(self, group: Group) -> None:
        """Record a group snapshot, durably: now it exists, with all its members."""
        self.check()
        layout.write_group(self.layout, group)

    def delete_group_record(self, group_id: str) -> None:
        """Delete the record of a group snapshot, durably, or not at all; absent is fine."""
        self.check()
        try:
            self.layout.group(group_id).unlink(missing_ok=True)
            sync_directory(self.layout.groups)
        except BaseException:
            with contextlib.suppress(OSError):
                if group := self.groups.get(group_id):
                    layout.write_group(self.layout, group)
            raise

    def _remember(
        self, catalog: Catalog[Volume] | Catalog[Snapshot], place: str, item: Any
    ) -> None:
        with self.room.taken(place):
            catalog.put(item)

    def _make_durable(self, volume: Volume) -> None:
        # On btrfs a new subvolume and its limit are durable with the next commit, not by fsync; an
        # image is a file, and has been synchronised.
        if self.mount.fstype == "btrfs" and volume.type is VolumeType.DIRECTORY:
            syncfs(self.layout.root)

    def _destroy_or_log(self, place: str) -> None:
        """Delete what was half built; what cannot be deleted waits for the next start."""
        if not exists(place):
            return
        try:
            trash.destroy(Path(place), self.limiter)
        except Exception as error:  # noqa: BLE001  (the reason of the failure counts, not this one)
            log.warning("cannot be deleted now", path=place, error=str(error))
