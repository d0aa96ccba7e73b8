"""Tables of pools, volumes, snapshots and trash, read from disk and kernel without the driver."""

import datetime as dt
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pycsi.backends.limiter_choice import existing_limiter
from pycsi.backends.limits import Limiter
from pycsi.linux.descriptor import opened
from pycsi.linux.kernel import IndexedKernelView
from pycsi.linux.location import Location
from pycsi.linux.record import RecordError
from pycsi.linux.waiting import NoAnswerError, NotAskedError, call
from pycsi.model.config import PoolConfig
from pycsi.model.health import Fault, Reason
from pycsi.model.records import Volume
from pycsi.model.size import show
from pycsi.pool.capacity import Contents
from pycsi.pool.catalog import Catalog
from pycsi.pool.groups import hide_prepared, recorded_groups
from pycsi.pool.layout import Layout, snapshot_catalog, volume_catalog
from pycsi.pool.pool import backend_for
from pycsi.pool.room import Room
from pycsi.pool.trash import Trash, entries
from pycsi.volumes.faults import PoolCheck
from pycsi.volumes.health import look_at
from pycsi.volumes.staging import Staging

_LABELS = {"pvc": "csi.storage.k8s.io/pvc/name", "namespace": "csi.storage.k8s.io/pvc/namespace"}


class InspectionError(Exception):
    """A pool cannot be read or changed; the message says why."""


class InspectedPool:
    """A pool as it is on the disk; `InspectionError` if it is missing or cannot be read."""

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.layout = Layout(config.path)
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
            raise InspectionError(f"pool {config.name}: {error}") from None
        except OSError as error:
            advice = "; run this as root" if isinstance(error, PermissionError) else ""
            place = error.filename or config.path
            raise InspectionError(
                f"pool {config.name}: {place}: {error.strerror}{advice}"
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

    @property
    def limiter(self) -> Limiter:
        """How the pool's filesystem limits directories."""
        return existing_limiter(self.location.real_path, self.location.mount.fstype, self.uuid)

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
        limiter = self.limiter

        def owned(volume: Volume, shares: bool) -> int:  # noqa: FBT001
            place = os.fspath(self.layout.volumes / volume.id)
            return backend_for(place, volume, limiter, self.location).owned(may_share=shares)

        contents = Contents(
            layout=self.layout,
            filesystem=self.location.mount.fstype,
            volumes=self.volumes,
            snapshots=self.snapshots,
            trash=Trash(self.layout, self.config.retain_for),
            owned=owned,
            uncounted=limiter.fault,
        )
        return Room(self.config, contents)


def look(what: str, configs: Sequence[PoolConfig]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a table, and one message for each thing that could not be read.

    `what` is "pools", "volumes", "snapshots" or "trash". Sizes are in bytes, times in ISO 8601.
    """
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for config in configs:
        try:
            call(str(config.path), functools.partial(os.access, config.path, os.F_OK))
            seen = InspectedPool(config)
            rows += _LOOKS[what](seen)
            faults += _unreadable(seen)
        except InspectionError as error:
            faults.append(str(error))
        except NoAnswerError:
            faults.append(f"pool {config.name}: {config.path} does not answer")
        except NotAskedError as error:
            faults.append(f"pool {config.name}: {error}; try again")
        except OSError as error:
            faults.append(f"pool {config.name}: {error}")
    return rows, faults


def _unreadable(seen: InspectedPool) -> Iterator[str]:
    for catalog in (seen.volumes, seen.snapshots):
        for name, reason in catalog.unreadable.items():
            yield f"pool {seen.config.name}: {catalog.place(name)}: {reason}"
    for entry in seen.trash:
        if damage := entry.fault():
            yield f"pool {seen.config.name}: {entry.path}: {damage}"


def _damaged(what: str, seen: InspectedPool, catalog: Catalog[Any]) -> list[dict[str, Any]]:
    """Return rows for the volumes or snapshots whose records cannot be read."""
    unknown = dict.fromkeys(_COLUMNS[what])
    return [
        {**unknown, "id": name, "pool": seen.config.name, "condition": reason}
        for name, reason in catalog.unreadable.items()
    ]


def _pool(seen: InspectedPool) -> list[dict[str, Any]]:
    config, capacity = seen.config, seen.room.capacity()
    return [
        {
            "name": config.name,
            "path": str(config.path),
            "uuid": seen.uuid,
            "filesystem": seen.location.mount.fstype,
            "directory_limit": seen.directory_limit,
            "volumes": len(seen.volumes),
            "snapshots": len(seen.snapshots),
            "size": capacity.size,
            "free": capacity.free,
            "reserve": capacity.reserve,
            "overcommit": capacity.overcommit,
            "committed": capacity.committed,
            "unwritten": capacity.unwritten,
            "in_snapshots": seen.snapshots.held,
            "in_trash": sum(entry.size() for entry in seen.trash),
            "available": capacity.available(thick=False),
        }
    ]


def _volumes(seen: InspectedPool) -> list[dict[str, Any]]:
    rows = []
    kernel = IndexedKernelView()
    limiter = seen.limiter
    check = PoolCheck(seen.config.name, seen.location, kernel, limiter, seen.faults())
    for volume in seen.volumes:
        place = seen.layout.volumes / volume.id
        backend = backend_for(os.fspath(place), volume, limiter, seen.location, kernel)
        faults = look_at(check, backend)
        rows.append(
            {
                "id": volume.id,
                "name": volume.name,
                "pool": volume.pool,
                "type": volume.type.value,
                "reason": volume.reason,
                "access": volume.access.value,
                "filesystem": volume.filesystem,
                "capacity": volume.capacity,
                "allocation": "thick" if volume.thick else "thin",
                "size_enforced": volume.enforced,
                "inline": volume.handle is not None,
                "source": None if volume.request.source is None else str(volume.request.source),
                **volume.settings,
                "created": _time(volume.created),
                "in_use_at": Staging(backend).in_use(),
                "condition": "; ".join(map(str, faults)) or "healthy",
                "faults": [_fault(fault) for fault in faults],
                **{key: volume.request.parameters.get(of) for key, of in _LABELS.items()},
            }
        )
    return rows + _damaged("volumes", seen, seen.volumes)


def _fault(fault: Fault) -> dict[str, str]:
    return {"status": fault.status.name, "reason": fault.reason, "message": fault.message}


def _snapshots(seen: InspectedPool) -> list[dict[str, Any]]:
    rows = [
        {
            "id": snapshot.id,
            "name": snapshot.name,
            "pool": snapshot.volume.pool,
            "volume": snapshot.volume.id,
            "group": snapshot.group,
            "type": snapshot.volume.type.value,
            "filesystem": snapshot.volume.filesystem,
            "size": snapshot.size,
            "held": snapshot.held,
            "created": _time(snapshot.created),
            "condition": None,
        }
        for snapshot in seen.snapshots
    ]
    return rows + _damaged("snapshots", seen, seen.snapshots)


def _trash(seen: InspectedPool) -> list[dict[str, Any]]:
    rows = []
    for entry in seen.trash:
        record, due = entry.record(), entry.due(seen.config.retain_for)
        rows.append(
            {
                "entry": entry.path.name,
                "id": entry.id,
                "pool": seen.config.name,
                "kind": type(record).__name__.lower() if record else None,
                "size": entry.size(),
                "deleted": _time(entry.deleted),
                "kept_until": "ever" if due == float("inf") else _time(due) if due else None,
                "condition": entry.fault(),
            }
        )
    return rows


_LOOKS = {"pools": _pool, "volumes": _volumes, "snapshots": _snapshots, "trash": _trash}


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


_COLUMNS: dict[str, dict[str, Literal["left", "right"]]] = {
    "pools": {
        "name": "left",
        "path": "left",
        "filesystem": "left",
        "directory_limit": "left",
        "volumes": "right",
        "snapshots": "right",
        "size": "right",
        "committed": "right",
        "unwritten": "right",
        "in_trash": "right",
        "available": "right",
        "free": "right",
    },
    "volumes": {
        "id": "left",
        "pool": "left",
        "type": "left",
        "filesystem": "left",
        "capacity": "right",
        "inline": "left",
        "pvc": "left",
        "in_use_at": "left",
        "condition": "left",
    },
    "snapshots": {
        "id": "left",
        "pool": "left",
        "volume": "left",
        "group": "left",
        "size": "right",
        "held": "right",
        "created": "left",
        "condition": "left",
    },
    "trash": {
        "entry": "left",
        "pool": "left",
        "kind": "left",
        "size": "right",
        "kept_until": "left",
        "condition": "left",
    },
}
_SIZES = frozenset(
    {
        "size",
        "committed",
        "unwritten",
        "available",
        "free",
        "capacity",
        "held",
        "in_trash",
        "in_snapshots",
    }
)


def _cell(key: str, value: Any) -> str:
    if value is None or value is False:
        return "-"
    if value is True:
        return "yes"
    return show(value) if key in _SIZES else str(value)


_WIDEST = 10_000
"""The table's width in columns if the output is not a terminal."""


def print_table(what: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table: folded to a terminal's width, or unfolded for another program."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for column, justify in _COLUMNS[what].items():
        table.add_column(column.replace("_", " ").upper(), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(key, row[key]) for key in _COLUMNS[what]))
    console = Console()
    if not console.is_terminal:
        console.width = _WIDEST
    console.print(table)
