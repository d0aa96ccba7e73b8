"""`pycsi describe`: all that the disk and the kernel tell of one volume, snapshot or pool."""

import datetime as dt
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pycsi.backends import Backend
from pycsi.backends.throttle import throttle_at
from pycsi.cli import history, listing, rows, tables
from pycsi.cli.errors import UnknownNameError
from pycsi.cli.inspection import InspectedPool, inspect_all
from pycsi.cli.pools import chosen
from pycsi.linux.kernel import KernelView
from pycsi.linux.waiting import NoAnswerError, NotAskedError, call
from pycsi.model.config import PoolConfig
from pycsi.model.health import Fault, ranked
from pycsi.model.parameters import ORCHESTRATOR, without_orchestrator_keys
from pycsi.model.records import Snapshot, Usage, Volume
from pycsi.model.request import SourceKind
from pycsi.volumes.health import look_at
from pycsi.volumes.notes import Notes

Description = dict[str, Any]


def show(
    kind: str,
    given: Sequence[PoolConfig],
    names: Sequence[str],
    *,
    output: str,
    cgroup_root: Path | None = None,
) -> int:
    """Print what is known of each thing that is named; return the exit status.

    `UnknownNameError` if one is not there, once the others are printed.
    """
    wanted = rows.Names(names)
    describe = functools.partial(_DESCRIBE[kind], wanted=wanted)
    found, faults = inspect_all(
        chosen(given), lambda seen: list(describe(seen)), throttle_at(cgroup_root)
    )
    every = [item for those in found for item in those]
    if output != "text":
        click.echo(listing.structured(every, output))
    else:
        click.echo("\n\n".join("\n".join(lines(item)) for item in every), nl=bool(every))
    for fault in faults:
        click.echo(f"pycsi: {fault}", err=True)
    if wanted.missing and not faults:
        raise UnknownNameError(
            f"there is no {kind} {', '.join(wanted.missing)}; see: pycsi get {kind}s"
        )
    return 1 if faults else 0


# What is known


def _volumes(seen: InspectedPool, wanted: rows.Names) -> Iterator[Description]:
    kernel = KernelView()
    for volume in seen.volumes:
        if wanted.take(volume.id, volume.name, volume.handle):
            yield _volume(seen, volume, kernel)
    yield from _damaged(seen.volumes.unreadable, wanted)


def _damaged(unreadable: Mapping[str, str], wanted: rows.Names) -> Iterator[Description]:
    for name, reason in unreadable.items():
        if wanted.take(name):
            yield {"id": name, "condition": reason}


def _volume(seen: InspectedPool, volume: Volume, kernel: KernelView) -> Description:
    backend = seen.backend(volume, kernel)
    row = rows.volume_row(volume, backend, look_at(seen.check(kernel), backend))
    request = volume.request
    named = {key: row.pop(key) for key in ("id", "name", "pool")}
    created, in_use_at, condition, faults = (
        row.pop(key) for key in ("created", "in_use_at", "condition", "faults")
    )
    settings = {key: row.pop(key) for key in volume.settings}
    return {
        **named,
        "directory": backend.where,
        "persistent_volume": request.parameters.get(f"{ORCHESTRATOR}pv/name"),
        **row,
        **_usage(backend),
        "access_modes": sorted({str(item.mode) for item in request.capabilities}),
        "parameters": without_orchestrator_keys(request.parameters),
        "settings": settings,
        "created": created,
        "attached_to": volume.attachment.node if volume.attachment else None,
        "in_use_at": in_use_at,
        "mounts": _mounts(backend),
        "loop_devices": [str(item.path) for item in kernel.loops(backend.content)],
        "snapshots": [_brief(item) for item in seen.snapshots if item.volume.id == volume.id],
        "clones": _made_from(seen, SourceKind.VOLUME, volume.id),
        "condition": condition,
        "faults": faults,
        "history": list(history.of(seen, volume, backend)),
    }


def _usage(backend: Backend) -> Description:
    """Return the usage of a mounted volume, unless its filesystem does not answer."""
    mounts = backend.mounts()
    if not mounts or backend.kernel.mounts.topmost(mounts[0].target) != mounts[0]:
        return {}
    at = mounts[0].target
    try:
        usage = call(at, functools.partial(backend.usage, Path(at)))
    except (OSError, NoAnswerError, NotAskedError):
        return {}
    return _counted(usage)


def _counted(usage: Usage) -> Description:
    counted = {
        "used": usage.used,
        "available": usage.available,
        "inodes": usage.inodes,
        "inodes_used": usage.inodes_used,
    }
    return {key: value for key, value in counted.items() if value is not None}


def _mounts(backend: Backend) -> list[Description]:
    """Return where the volume is staged and published, as the notes and the kernel tell it."""
    notes = Notes(backend.where)
    found = []
    for item in backend.mounts():
        call_of = "NodePublishVolume" if item.target in notes.published else "NodeStageVolume"
        known = item.target in notes.published or item.target in notes.staged
        found.append(
            {
                "path": item.target,
                "by": call_of if known else None,
                "options": ",".join(sorted(item.options)),
            }
        )
    there = {item["path"] for item in found}
    staged = [path for path in notes.staged if path not in there and os.path.lexists(path)]
    return found + [
        {"path": path, "by": "NodeStageVolume", "options": None}
        for path in staged
        if backend.is_staged(path)
    ]


def _brief(snapshot: Snapshot) -> Description:
    return {
        "id": snapshot.id,
        "created": rows.time_of(snapshot.created),
        "held": snapshot.held,
        "group": snapshot.group,
    }


def _made_from(seen: InspectedPool, kind: SourceKind, source: str) -> list[str]:
    """Return the volumes of the pool that were filled from a snapshot or a volume."""
    return [
        volume.id
        for volume in seen.volumes
        if volume.request.source
        and (volume.request.source.kind, volume.request.source.id) == (kind, source)
    ]


def _snapshots(seen: InspectedPool, wanted: rows.Names) -> Iterator[Description]:
    for snapshot in seen.snapshots:
        if wanted.take(snapshot.id, snapshot.name):
            yield {
                **rows.snapshot_row(snapshot),
                "directory": seen.snapshots.place(snapshot.id),
                "parameters": without_orchestrator_keys(snapshot.parameters),
                "volume_exists": snapshot.volume.id in seen.volumes,
                "restored_volumes": _made_from(seen, SourceKind.SNAPSHOT, snapshot.id),
            }
    yield from _damaged(seen.snapshots.unreadable, wanted)


def _pools(seen: InspectedPool, wanted: rows.Names) -> Iterator[Description]:
    if not wanted.take(seen.config.name):
        return
    config, mount = seen.config, seen.location.mount
    yield {
        **rows.pool_row(seen),
        "mounted_at": mount.target,
        "device": mount.source,
        "require_mount": config.require_mount,
        "freeze_limit": config.freeze_limit,
        "retain_for": "ever" if config.retain_for is None else config.retain_for,
        "entries_in_trash": len(seen.trash),
        "faults": [rows.fault_row(fault) for fault in _faults(seen)],
        "records_unreadable": list(seen.unreadable()),
    }


def _faults(seen: InspectedPool) -> Sequence[Fault]:
    check = seen.check(KernelView())
    limit = check.limit_fault() if seen.limiter.name and not check.out_of_reach else None
    return ranked([*check.faults, *([limit] if limit else [])])


_DESCRIBE: Mapping[str, Callable[..., Iterator[Description]]] = {
    "volume": _volumes,
    "snapshot": _snapshots,
    "pool": _pools,
}


# How it is written

_SIZES = frozenset(
    {
        "capacity", "used", "available", "size", "held", "free", "reserve", "committed",
        "unwritten", "in_snapshots", "in_trash",
    }
)  # fmt: skip
_TIMES = frozenset({"freeze_limit", "retain_for"})
_ACRONYMS = frozenset({"id", "pvc", "uuid"})
_INDENT = "  "


def lines(described: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a description: a name and a value, or a list below its name."""
    wide = max(map(len, described)) + len(_INDENT)
    for key, value in described.items():
        label = _label(key).ljust(wide)
        if isinstance(value, Mapping):
            value = [f"{name}={text}" for name, text in value.items()]  # noqa: PLW2901
        if not isinstance(value, list):
            yield f"{label}{_text(key, value)}".rstrip()
        elif not value:
            yield f"{label}-"
        else:
            first, *others = [_item(item) for item in value]
            yield f"{label}{first}"
            yield from (f"{' ' * wide}{item}" for item in others)


def _label(key: str) -> str:
    return key.upper() if key in _ACRONYMS else key.replace("_", " ").capitalize()


def _item(item: Any) -> str:
    if not isinstance(item, Mapping):
        return tables.printable(str(item))
    known = {key: value for key, value in item.items() if value is not None}
    return _INDENT.join(
        value if key == "created" else _text(key, value) for key, value in known.items()
    )


def _text(key: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in _SIZES:
        return f"{tables.brief(value)} ({value} bytes)" if value >= 1024 else f"{value} bytes"  # noqa: PLR2004
    if key in _TIMES and not isinstance(value, str):
        return tables.age(value)
    if key == "created":
        then = dt.datetime.fromisoformat(value).timestamp()
        return f"{value} ({tables.age(time.time() - then)} ago)"
    return tables.printable(str(value))
