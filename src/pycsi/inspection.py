"""Pools and volumes for people: read from the disk and the kernel, without asking the driver."""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal

from pycsi.backends.choice import backend_for
from pycsi.config import PoolConfig
from pycsi.layout import Layout
from pycsi.limits import Limiter, NoLimiter, limiter_for, limiter_name
from pycsi.linux import mount
from pycsi.model import Volume, show
from pycsi.pool import capacity_of
from pycsi.staging import Staging
from pycsi.store import RecordError

_LABELS = {"pvc": "csi.storage.k8s.io/pvc/name", "namespace": "csi.storage.k8s.io/pvc/namespace"}


class InspectionError(Exception):
    """A pool cannot be read; the text says why."""


def _read(config: PoolConfig) -> tuple[Layout, str, list[Volume]]:
    layout = Layout(config.path)
    try:
        return layout, layout.read_uuid(), list(layout.read_volumes()[0].values())
    except FileNotFoundError:
        raise InspectionError(
            f"pool {config.name}: {config.path} is not a pool; the driver makes it one when it "
            "starts"
        ) from None
    except (OSError, RecordError) as error:
        raise InspectionError(f"pool {config.name}: {error}; try as root") from None


def pools(configs: Sequence[PoolConfig]) -> list[dict[str, Any]]:
    """Return a row per pool; sizes are in bytes."""
    rows = []
    for config in configs:
        _, uuid, found = _read(config)
        ground = mount.mount_under(config.path)
        capacity = capacity_of(config, sum(volume.capacity for volume in found))
        rows.append(
            {
                "name": config.name,
                "path": str(config.path),
                "uuid": uuid,
                "filesystem": ground.fstype,
                "directory_limit": limiter_name(config.path, ground.fstype),
                "volumes": len(found),
                "size": capacity.size,
                "free": capacity.free,
                "reserve": capacity.reserve,
                "overcommit": capacity.overcommit,
                "committed": capacity.committed,
                "available": capacity.available(thick=False),
            }
        )
    return rows


def volumes(configs: Sequence[PoolConfig]) -> list[dict[str, Any]]:
    """Return a row per volume; sizes are in bytes, times in ISO 8601."""
    rows = []
    for config in configs:
        layout, uuid, found = _read(config)
        ground = mount.mount_under(config.path)
        limited = limiter_name(config.path, ground.fstype)
        limiter: Limiter = NoLimiter()
        if limited:
            limiter = limiter_for(config.path, ground.fstype, uuid)
        for volume in found:
            backend = backend_for(layout.volumes / volume.id, volume, limiter, ground)
            notes = Staging(backend)
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
                    "created": _time(volume.created),
                    "in_use_at": notes.in_use(),
                    **{key: volume.request.parameters.get(of) for key, of in _LABELS.items()},
                }
            )
    return rows


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


_COLUMNS: dict[str, dict[str, Literal["left", "right"]]] = {
    "pools": {
        "name": "left",
        "path": "left",
        "filesystem": "left",
        "directory_limit": "left",
        "volumes": "right",
        "size": "right",
        "committed": "right",
        "available": "right",
        "free": "right",
    },
    "volumes": {
        "id": "left",
        "pool": "left",
        "type": "left",
        "filesystem": "left",
        "capacity": "right",
        "pvc": "left",
        "in_use_at": "left",
        "reason": "left",
    },
}
_SIZES = frozenset({"size", "committed", "available", "free", "capacity"})


def print_table(what: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table for a terminal of any width."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for column, justify in _COLUMNS[what].items():
        table.add_column(column.replace("_", " ").upper(), justify=justify, overflow="fold")
    for row in rows:
        cells = [show(row[key]) if key in _SIZES else row[key] for key in _COLUMNS[what]]
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    Console().print(table)
