"""Pools as they are on the disk, read without the driver."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pycsi.backends import Backend
from pycsi.backends.limiter_choice import existing_limiter
from pycsi.backends.limits import Limiter
from pycsi.backends.throttle import Throttle
from pycsi.cli.errors import InspectionError
from pycsi.linux import filecopy
from pycsi.linux.descriptor import opened
from pycsi.linux.kernel import KernelView
from pycsi.linux.location import Location
from pycsi.linux.record import RecordError
from pycsi.linux.waiting import NoAnswerError, NotAskedError, call
from pycsi.model.config import PoolConfig
from pycsi.model.health import Fault, Reason
from pycsi.model.records import Volume
from pycsi.pool.adoptions import Adoptions
from pycsi.pool.capacity import Contents
from pycsi.pool.groups import hide_prepared, recorded_groups
from pycsi.pool.layout import Layout, snapshot_catalog, volume_catalog
from pycsi.pool.moves import Moves
from pycsi.pool.options import recalled
from pycsi.pool.pool import backend_for
from pycsi.pool.room import Room
from pycsi.pool.trash import Trash, entries
from pycsi.volumes.faults import PoolCheck

Found = TypeVar("Found")


class InspectedPool:
    """A pool as it is on the disk; `InspectionError` if it is missing or cannot be read.

    Whether the pods that use its volumes are held to their limits on I/O is looked at only with a
    `throttle`.
    """

    def __init__(self, config: PoolConfig, throttle: Throttle | None = None) -> None:
        self._throttle = throttle
        self.layout = Layout(config.path)
        self.config = recalled(self.layout.options, config)
        try:
            self.uuid = self._read_uuid()
            with opened(config.path, os.O_DIRECTORY) as fd:
                self.location = Location.of(config.path, fd)
            self._refuse_mount_point()
            self.volumes = volume_catalog(self.layout)
            if self.layout.volumes.is_dir():
                self.volumes.load()
            self.snapshots = snapshot_catalog(self.layout)
            if self.layout.snapshots.is_dir():
                self.snapshots.load()
                hide_prepared(self.snapshots, recorded_groups(self.layout))
            self.trash = entries(self.layout) if self.layout.trash.is_dir() else []
        except RecordError as error:
            raise InspectionError(
                f"pool {config.name}: {error}; mount the pool's own disk, or restore the record"
            ) from None
        except OSError as error:
            denied = isinstance(error, PermissionError)
            advice = "run this as root" if denied else "look at the kernel's log"
            place = error.filename or config.path
            raise InspectionError(
                f"pool {config.name}: {place}: {error.strerror}; {advice}"
            ) from None

    def _read_uuid(self) -> str:
        name, path = self.config.name, self.config.path
        try:
            found = self.layout.read_uuid()
        except FileNotFoundError:
            if not path.exists():
                raise InspectionError(
                    f"pool {name} is missing: {path} does not exist; mount its disk, or correct "
                    "the path"
                ) from None
            raise InspectionError(
                f"pool {name} is missing: {path} is not a pool, for it has no pool.json; mount its "
                "disk, or correct the path"
            ) from None
        except NotADirectoryError:
            raise InspectionError(
                f"pool {name}: {path} is not a directory; give the path of the pool"
            ) from None
        if self.config.uuid not in {None, found}:
            raise InspectionError(
                f"pool {name} is missing: {path} is the pool {found}, not {self.config.uuid}; "
                "mount its disk"
            )
        return found

    def _refuse_mount_point(self) -> None:
        """Raise `InspectionError` if the pool's disk must be mounted at its path, but is not."""
        if self.config.require_mount and not self.location.is_disk:
            raise InspectionError(
                f"pool {self.config.name} is missing: no filesystem of its own is mounted at "
                f"{self.config.path}; mount its disk"
            )

    @functools.cached_property
    def limiter(self) -> Limiter:
        """How the pool's filesystem limits directories."""
        return existing_limiter(self.location.real_path, self.location.mount.fstype, self.uuid)

    @property
    def shares_blocks(self) -> bool:
        """Whether files on the pool's filesystem can share their blocks (reflink)."""
        return filecopy.can_reflink(self.layout.record)

    def faults(self) -> Iterator[Fault]:
        """Yield a fault if the pool cannot be written to."""
        if os.statvfs(self.config.path).f_flag & os.ST_RDONLY:
            yield Fault(Reason.POOL_READ_ONLY, f"pool {self.config.name}: it is read-only")

    @property
    def directory_limit(self) -> str | None:
        """The name of the pool's limiter, or why it is not enforced now; None if there is none."""
        limiter = self.limiter
        fault = limiter.fault() if limiter.name else None
        return f"not enforced: {fault}" if fault else limiter.name

    @property
    def room(self) -> Room:
        """The bytes that the pool has promised to volumes, and can still promise."""

        def owned(volume: Volume, shares: bool) -> int:  # noqa: FBT001
            return self.backend(volume).owned(may_share=shares)

        contents = Contents(
            layout=self.layout,
            filesystem=self.location.mount.fstype,
            volumes=self.volumes,
            snapshots=self.snapshots,
            trash=Trash(self.layout, self.config.retain_for),
            adoptions=Adoptions(self.layout),
            moves=Moves(self.layout),
            owned=owned,
            uncounted=self.limiter.fault,
        )
        return Room(self.config, contents)

    def backend(self, volume: Volume, kernel: KernelView | None = None) -> Backend:
        """Return the backend of one of the pool's volumes."""
        place = os.fspath(self.layout.volumes / volume.id)
        return backend_for(place, volume, self.limiter, self.location, kernel)

    def check(self, kernel: KernelView) -> PoolCheck:
        """Return a look at the pool, for the health of its volumes."""
        return PoolCheck(
            self.config.name,
            self.location,
            kernel,
            self.limiter,
            self.faults(),
            throttle=self._throttle,
        )

    def unreadable(self) -> Iterator[str]:
        """Yield a message for each record of the pool that cannot be read."""
        for catalog in (self.volumes, self.snapshots):
            for name, reason in catalog.unreadable.items():
                yield f"pool {self.config.name}: {catalog.place(name)}: {reason}"
        for entry in self.trash:
            if damage := entry.fault():
                yield f"pool {self.config.name}: {entry.path}: {damage}"


def inspect(
    config: PoolConfig, look: Callable[[InspectedPool], Found], throttle: Throttle | None = None
) -> Found:
    """Return what `look` returns of a pool; `InspectionError` if the pool cannot be looked at."""
    name, path = config.name, config.path
    try:
        call(str(path), functools.partial(os.access, path, os.F_OK))
        return look(InspectedPool(config, throttle))
    except NoAnswerError:
        raise InspectionError(
            f"pool {name}: {path} does not answer; look for what hangs: a disk, a FUSE, an NFS"
        ) from None
    except NotAskedError as error:
        raise InspectionError(f"pool {name}: {error}; try again") from None
    except OSError as error:
        place = error.filename or path
        raise InspectionError(f"pool {name}: {place}: {error.strerror}; try again") from None


def inspect_all(
    configs: Iterable[PoolConfig],
    look: Callable[[InspectedPool], Found],
    throttle: Throttle | None = None,
) -> tuple[list[Found], list[str]]:
    """Return what `look` returns of each pool, and a message for what could not be read."""
    found: list[Found] = []
    faults: list[str] = []

    def seen(pool: InspectedPool) -> None:
        found.append(look(pool))
        faults.extend(pool.unreadable())

    for config in configs:
        try:
            inspect(config, seen, throttle)
        except InspectionError as error:
            faults.append(str(error))
    return found, faults
