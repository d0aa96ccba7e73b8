"""The rows of the lists: pools, volumes, snapshots and trash, as disk and kernel show them.

Sizes are in bytes, times in ISO 8601. Whatever is not known, or is not there, is None.
"""

import contextlib
import datetime as dt
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

from pycsi.backends import Backend
from pycsi.backends.limits import LimitError
from pycsi.backends.throttle import Throttle
from pycsi.cli.inspection import InspectedPool, inspect_all
from pycsi.linux.kernel import IndexedKernelView
from pycsi.model import iolimits
from pycsi.model.config import PoolConfig
from pycsi.model.health import Fault
from pycsi.model.parameters import CLAIM_NAME, CLAIM_NAMESPACE, ORCHESTRATOR
from pycsi.model.records import Snapshot, Volume, VolumeType
from pycsi.pool.catalog import Catalog
from pycsi.pool.trash import Entry
from pycsi.volumes.health import look_at
from pycsi.volumes.staging import Staging

Row: TypeAlias = dict[str, Any]


class Names:
    """The names that were asked for: all, if none was given; `missing` are those not met yet."""

    def __init__(self, given: Collection[str]) -> None:
        self._given = frozenset(given)
        self._met: set[str] = set()
        self._order = tuple(given)

    def take(self, *names: str | None) -> bool:
        """Tell whether something that has these names was asked for."""
        if not self._given:
            return True
        met = self._given.intersection(names)
        self._met |= met
        return bool(met)

    @property
    def missing(self) -> list[str]:
        return [name for name in dict.fromkeys(self._order) if name not in self._met]


def look(
    what: str,
    configs: Iterable[PoolConfig],
    names: Names | None = None,
    throttle: Throttle | None = None,
) -> tuple[list[Row], list[str]]:
    """Return the rows of a list, and one message for each thing that could not be read.

    `what` is "pools", "volumes", "snapshots" or "trash"; `names` are those that are wanted.
    """
    wanted = names or Names(())
    found, faults = inspect_all(configs, lambda seen: _ROWS[what](seen, wanted), throttle)
    rows = [row for those in found for row in those]
    longest: Row = max(rows, key=len, default={})
    every = dict.fromkeys(longest)
    return [row if len(row) == len(every) else every | row for row in rows], faults


def _damaged(seen: InspectedPool, catalog: Catalog[Any], names: Names) -> list[Row]:
    """Return rows for the volumes or snapshots whose records cannot be read: little is known."""
    return [
        {"id": name, "pool": seen.config.name, "condition": reason}
        for name, reason in catalog.unreadable.items()
        if names.take(name)
    ]


def pool_row(seen: InspectedPool) -> Row:
    """Return the row of a pool."""
    config, capacity = seen.config, seen.room.capacity()
    return {
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


def _pools(seen: InspectedPool, names: Names) -> list[Row]:
    return [pool_row(seen)] if names.take(seen.config.name) else []


def claim_of(volume: Volume) -> Row:
    """Return the claim or pod for which a volume was made, as far as the orchestrator told it."""
    namespace, _, pod = volume.name.partition("/") if volume.handle else ("", "", "")
    given = volume.request.parameters
    return {
        "namespace": given.get(CLAIM_NAMESPACE) or namespace or None,
        "pvc": given.get(CLAIM_NAME),
        "pod": pod or None,
    }


def used(backend: Backend) -> int | None:
    """Return the bytes that a volume occupies in its pool, if that is known without a search."""
    if backend.volume.type is VolumeType.IMAGE or backend.volume.enforced:
        with contextlib.suppress(OSError, LimitError):
            return backend.occupied()
    return None


def volume_row(volume: Volume, backend: Backend, faults: Iterable[Fault]) -> Row:
    """Return the row of a volume that has these faults."""
    found = list(faults)
    return {
        "id": volume.id,
        "name": volume.name,
        "pool": volume.pool,
        **claim_of(volume),
        "type": volume.type.value,
        "reason": volume.reason,
        "access": volume.access.value,
        "filesystem": volume.filesystem,
        "capacity": volume.capacity,
        "used": used(backend),
        "allocation": "thick" if volume.thick else "thin",
        "size_enforced": volume.enforced,
        "inline": volume.handle is not None,
        "source": None if volume.request.source is None else str(volume.request.source),
        **volume.settings,
        "io_limits": iolimits.shown(volume.settings),
        "encryption": volume.encryption,
        "created": time_of(volume.created),
        "in_use_at": Staging(backend).in_use(),
        "condition": "; ".join(map(str, found)) or "healthy",
        "faults": [fault_row(fault) for fault in found],
    }


def _volumes(seen: InspectedPool, names: Names) -> list[Row]:
    kernel = IndexedKernelView()
    check = seen.check(kernel)
    rows = []
    for volume in seen.volumes:
        if names.take(volume.id, volume.name, volume.handle):
            backend = seen.backend(volume, kernel)
            rows.append(volume_row(volume, backend, look_at(check, backend)))
    return rows + _damaged(seen, seen.volumes, names)


def fault_row(fault: Fault) -> dict[str, str]:
    return {"status": fault.status.name, "reason": fault.reason.value, "message": fault.message}


def snapshot_row(snapshot: Snapshot) -> Row:
    """Return the row of a snapshot."""
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "pool": snapshot.volume.pool,
        "volume": snapshot.volume.id,
        "namespace": snapshot.parameters.get(f"{ORCHESTRATOR}volumesnapshot/namespace")
        or claim_of(snapshot.volume)["namespace"],
        "volume_snapshot": snapshot.parameters.get(f"{ORCHESTRATOR}volumesnapshot/name"),
        "pvc": claim_of(snapshot.volume)["pvc"],
        "group": snapshot.group,
        "type": snapshot.volume.type.value,
        "filesystem": snapshot.volume.filesystem,
        "size": snapshot.size,
        "held": snapshot.held,
        "created": time_of(snapshot.created),
        "condition": None,
    }


def _snapshots(seen: InspectedPool, names: Names) -> list[Row]:
    rows = [snapshot_row(one) for one in seen.snapshots if names.take(one.id, one.name)]
    return rows + _damaged(seen, seen.snapshots, names)


def trash_row(seen: InspectedPool, entry: Entry) -> Row:
    """Return the row of what was deleted."""
    record, due = entry.record(), entry.due(seen.config.retain_for)
    volume = record.volume if isinstance(record, Snapshot) else record
    claim = claim_of(volume) if volume else {}
    return {
        "entry": entry.path.name,
        "id": entry.id,
        "pool": seen.config.name,
        "kind": type(record).__name__.lower() if record else None,
        "namespace": claim.get("namespace"),
        "pvc": claim.get("pvc"),
        "size": entry.size(),
        "deleted": time_of(entry.deleted),
        "kept_until": "ever" if due == float("inf") else time_of(due) if due else None,
        "condition": entry.fault(),
    }


def _trash(seen: InspectedPool, names: Names) -> list[Row]:
    return [trash_row(seen, entry) for entry in seen.trash if names.take(entry.path.name, entry.id)]


_ROWS: Mapping[str, Callable[[InspectedPool, Names], list[Row]]] = {
    "pools": _pools,
    "volumes": _volumes,
    "snapshots": _snapshots,
    "trash": _trash,
}


def time_of(seconds: float) -> str:
    """Return a time, in seconds since the epoch, in ISO 8601."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
