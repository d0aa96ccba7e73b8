"""A pool: the volumes and snapshots in one directory of one filesystem, and how they are made.

Each is a directory with a record and data. It is built under `tmp/` and renamed into place when it
is complete; it is deleted by a rename into `trash/`, and removed from there in the background. A
crash leaves unfinished builds under `tmp/`, which the next start deletes; never half a volume.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import structlog

from pycsi.backends import Backend
from pycsi.backends.directory import Directory
from pycsi.backends.filesystem import FilesystemImage
from pycsi.backends.limits import Limiter, NoLimiter
from pycsi.backends.raw import RawImage
from pycsi.backends.throttle import Throttle
from pycsi.linux.descriptor import exists, sync_directory
from pycsi.linux.kernel import KernelView
from pycsi.linux.location import Location
from pycsi.linux.mount import syncfs
from pycsi.linux.record import rename_durably
from pycsi.model.config import PoolConfig
from pycsi.model.encryption import Passphrase
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Snapshot, Volume, VolumeType
from pycsi.model.request import Access
from pycsi.model.rootdirectory import RootDirectory
from pycsi.model.trace import phase
from pycsi.pool import layout, trash
from pycsi.pool.adoptions import Adoptions
from pycsi.pool.capacity import Contents
from pycsi.pool.deletions import Deletions
from pycsi.pool.directory import PoolDirectory
from pycsi.pool.freezing import FreezeTarget
from pycsi.pool.groups import Groups
from pycsi.pool.moves import Move, Moves
from pycsi.pool.room import Reservation, Room

log = structlog.get_logger()


@dataclasses.dataclass(frozen=True, slots=True)
class Build:
    """A volume or snapshot that is being built in `directory`, and will lie at `place`."""

    directory: str
    place: str
    reservation: Reservation

    def commit(self, finish: Callable[[], None]) -> None:
        """Move the complete directory to its place, durably, with `finish` as the last step.

        If `finish` fails the directory is moved back. `FailedPrecondition` if the place is taken.
        """
        if os.path.lexists(self.place):
            raise FailedPrecondition(
                f"{self.place} exists, but was not there when the driver started; restart the "
                "driver, or move it away"
            )
        sync_directory(self.directory)
        rename_durably(self.directory, self.place)
        try:
            finish()
        except BaseException:
            os.rename(self.place, self.directory)
            raise


class Pool(PoolDirectory):
    """An open pool: its directory, what lies in it, and the room that it has.

    `opening` brings it up after it was opened; `changing` changes and deletes what is there. A
    pool is opened as `PoolDirectory` says.
    """

    def __init__(self, config: PoolConfig, *, create: bool) -> None:
        super().__init__(config, create=create)
        self.limiter: Limiter = NoLimiter()
        self.throttle = Throttle()
        self.reflinks = False
        self.volumes = layout.volume_catalog(self.layout)
        self.snapshots = layout.snapshot_catalog(self.layout)
        self.groups = Groups(self.layout)
        self.trash = trash.Trash(self.layout, config.retain_for)
        self.adoptions = Adoptions(self.layout)
        self.moves = Moves(self.layout)
        self.deletions = Deletions(self.layout.deletions)
        self.missing: Callable[[], Iterable[str]] = tuple
        """Returns the names of the other pools that are missing; set if there may be others."""
        contents = Contents(
            layout=self.layout,
            filesystem=self.location.mount.fstype,
            volumes=self.volumes,
            snapshots=self.snapshots,
            trash=self.trash,
            adoptions=self.adoptions,
            moves=self.moves,
            owned=lambda volume, shares: self.backend(volume).owned(may_share=shares),
            uncounted=lambda: self.limiter.fault(),  # noqa: PLW0108  (there will be another)
        )
        self.room = Room(config, contents)

    def limit_fault(self) -> str | None:
        """Return why limits of directories are not enforced now, or None; see `Limiter.fault`."""
        self.check()
        return self.limiter.fault()

    def backend(
        self,
        volume: Volume,
        kernel: KernelView | None = None,
        *,
        place: str | None = None,
        passphrase: Passphrase | None = None,
    ) -> Backend:
        """Return the backend of a volume; its directory is `place` if it is not in its own."""
        where = place or self.volumes.place(volume.id)
        found = backend_for(where, volume, self.limiter, self.location, kernel)
        found.passphrase = passphrase
        return found

    def backend_of(self, snapshot: Snapshot) -> Backend:
        """Return the backend of a snapshot that exists."""
        return self.backend(snapshot.volume, place=self.snapshots.place(snapshot.id))

    def healthy_path(self, volume: Volume) -> str:
        """Return the volume's `Backend.healthy_path`; "" if it was ever staged or published.

        `OSError` if the volume's notes are not accessible.
        """
        backend = self.backend(volume)
        return backend.healthy_path if layout.never_noted(backend.where) else ""

    def freeze_target(self, backend: Backend) -> FreezeTarget:
        """Return what `frozen` needs to freeze a mounted volume."""
        marker = self.layout.frozen / backend.volume.id
        return FreezeTarget(marker=marker, backend=backend, throttle=self.throttle)

    # Making; callers hold the volume's or the snapshot's lock

    def create(
        self,
        volume: Volume,
        root: RootDirectory | None = None,
        *,
        fill: Callable[[Backend], int | None] | None = None,
        extra: int = 0,
        passphrase: Passphrase | None = None,
    ) -> Volume:
        """Make a volume, durably, and return it as recorded.

        Its root directory gets the attributes `root`. Or else `fill` makes its data from a source
        and returns its project id, if it has one; meanwhile that takes `extra` bytes beyond the
        volume's size. The `passphrase` is that of an encrypted one.
        `OutOfRange` or `ResourceExhausted` for a size that the pool cannot have, or has no room
        for.
        """
        with self.building(volume, extra) as building:
            backend = self.backend(volume, place=building.directory, passphrase=passphrase)
            if fill:
                project = fill(backend)
            else:
                with phase("make"):
                    project = backend.create(root)
            if extra:
                self.room.adjust(building.reservation, volume.held, thick=True)
            return self.commit(building, backend, project)

    @contextlib.contextmanager
    def building(self, volume: Volume, extra: int = 0) -> Iterator[Build]:
        """Reserve the room of a volume, and `extra` bytes, and build it.

        The `with` block fills the build's empty directory and passes the build to `commit`. If the
        block fails before that, the directory is deleted. The errors are those of `create`.
        """
        self.room.refuse_impossible(volume)
        thick = volume.thick or extra > 0  # a copy of a thick source gets its own blocks at once
        with (
            self.volumes.creating(volume.id) as place,
            self._build(place, volume.held + extra, thick=thick) as building,
        ):
            yield building

    def commit(self, building: Build, backend: Backend, project: int | None) -> Volume:
        """Record a complete volume, move it to its place, durably, and make it known.

        `backend` is that of its data, and `project` the project id, if it has one. Return the
        volume as recorded.
        """
        volume = backend.volume
        made = dataclasses.replace(volume, project=project) if project else volume
        with self.room.explaining_full_disk(), phase("commit"):
            layout.write_new_volume(building.directory, made)
            backend.sync_names()
            building.commit(lambda: self.sync_subvolume(made))
        with self.room.replaced(building.reservation):
            self.volumes.put(made)
        return made

    @contextlib.contextmanager
    def building_arrival(self, volume: Volume) -> Iterator[Build]:
        """Do as `building` for a copy that arrives from another pool; see `commit_arrival`."""
        self.room.refuse_impossible(volume)
        place = self.moves.arriving(volume.id)
        with self._build(place, volume.held, thick=volume.thick) as building:
            yield building

    def commit_arrival(self, building: Build, backend: Backend, move: Move) -> None:
        """Record a copy that arrives, and move it to its place, durably; it is no volume yet."""
        with self.room.explaining_full_disk():
            layout.write_new_volume(building.directory, backend.volume)
            self.moves.write(building.directory, move)
            backend.sync_names()
            building.commit(lambda: self.sync_subvolume(backend.volume))
        with self.room.replaced(building.reservation):
            self.moves.look()

    def build_snapshot(
        self, snapshot_id: str, size: int, *, thick: bool
    ) -> contextlib.AbstractContextManager[Build]:
        """Reserve `size` bytes for a snapshot, and build it; `thick` if it will share no blocks.

        The `with` block fills the build's empty directory and passes the build to
        `commit_snapshot`. If the block fails before that, the directory is deleted.
        """
        place = self.snapshots.place(snapshot_id)
        return self._build(place, size, thick=thick or not self.reflinks)

    def commit_snapshot(self, building: Build, snapshot: Snapshot) -> None:
        """Move a complete snapshot to its place, durably; `index_snapshot` makes it known."""
        self.room.adjust(building.reservation, snapshot.held, thick=False)
        with self.room.explaining_full_disk():
            layout.write_new_snapshot(building.directory, snapshot)
            building.commit(lambda: self.sync_subvolume(snapshot.volume))

    def index_snapshot(self, building: Build, snapshot: Snapshot, *, hidden: bool = False) -> None:
        """Make a committed snapshot known in the catalog, where it replaces its reservation.

        A `hidden` one only counts: the catalog shows it later.
        """
        with self.room.replaced(building.reservation):
            (self.snapshots.put_hidden if hidden else self.snapshots.put)(snapshot)

    @contextlib.contextmanager
    def _build(self, place: str, size: int, *, thick: bool) -> Iterator[Build]:
        """Reserve `size` bytes, and make an empty directory for an object that will be at `place`.

        If the `with` block fails, the directory is deleted, unless it was committed.
        """
        self.check()
        with self.room.reserved(size, thick=thick) as reservation:
            # A unique name: a mkfs that outlived its driver may still write into an older one.
            name = place.rpartition("/")[2]
            directory = f"{self.layout.tmp}/{name}.{os.urandom(4).hex()}"
            os.mkdir(directory, 0o700)
            try:
                yield Build(directory, place, reservation)
            except BaseException:
                self._destroy(directory)
                raise

    def _destroy(self, directory: str) -> None:
        """Delete an unfinished build; if that fails, the next start does it."""
        if not exists(directory):
            return
        try:
            trash.destroy(Path(directory), self.limiter)
        except Exception as error:  # noqa: BLE001  (it must not hide why the build failed)
            log.warning("cannot be deleted now", path=directory, error=str(error))

    def sync_subvolume(self, volume: Volume) -> None:
        """Make the subvolume of a volume or snapshot durable, if its data is one."""
        # On btrfs fsync does not make a new subvolume and its limit durable, only the next commit
        # does. An image is a file, and has been synchronised.
        if self.location.mount.fstype == "btrfs" and volume.type is VolumeType.DIRECTORY:
            syncfs(self.layout.root)


def backend_for(
    where: str,
    volume: Volume,
    limiter: Limiter,
    location: Location,
    kernel: KernelView | None = None,
) -> Backend:
    """Return the backend for the data of `volume` in the directory `where`."""
    kind: type[Backend] = FilesystemImage
    if volume.type is VolumeType.DIRECTORY:
        kind = Directory
    elif volume.access is Access.BLOCK:
        kind = RawImage
    return kind(where, volume, limiter, location, kernel or KernelView())
