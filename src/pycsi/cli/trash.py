"""Commands for the trash and for inline volumes, which work whether the driver runs or not.

A volume is restored by one rename, so if a driver reaps it at the same time, only one of the two
succeeds. A running driver is told by an announcement in the pool.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence

from pycsi.cli.tables import InspectedPool, InspectionError
from pycsi.linux.record import rename_durably
from pycsi.linux.tree import refuse_mounts
from pycsi.model.config import PoolConfig
from pycsi.model.records import Volume
from pycsi.pool.layout import Layout
from pycsi.pool.pool import backend_for
from pycsi.pool.trash import (
    Entry,
    Fate,
    new_entry,
    reap,
)
from pycsi.volumes.staging import Staging


def restore(configs: Iterable[PoolConfig], name: str) -> str:
    """Restore the deleted volume of the trash entry `name`; return its id.

    `InspectionError` if the entry is no complete volume, or a volume with its id exists again.
    """
    configs = tuple(configs)
    for seen, entry in _found(configs, [name]):
        if not isinstance(entry.record(), Volume) or entry.reaping:
            raise InspectionError(f"{name} is not a complete volume; it cannot be restored")
        place = seen.layout.volumes / entry.id
        for config in configs:
            if (Layout(config.path).volumes / entry.id).exists():
                raise _there_again(entry)
        try:
            with _announced(seen.layout):
                rename_durably(entry.path, place)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            raise _there_again(entry) from None
    return entry.id


@contextlib.contextmanager
def _announced(layout: Layout) -> Iterator[None]:
    """Notify the driver before and after the changes in the `with` block.

    The first notification is for the case that this process is killed before the second.
    """
    layout.changes.announce()
    try:
        yield
    finally:
        layout.changes.announce()


def _there_again(entry: Entry) -> InspectionError:
    return InspectionError(
        f"a volume {entry.id} exists; delete it first, or leave this one in the trash"
    )


def empty(configs: Iterable[PoolConfig], names: Sequence[str]) -> Iterator[str]:
    """Delete the entries `names` for good, or all if `names` is empty; yield each one's name.

    `InspectionError` at the end if all were to be deleted, but a pool is missing.
    """
    configs = tuple(configs)
    for seen, entry in _found(configs, names):
        with _announced(seen.layout):
            reap(entry, seen.limiter, lambda: False)
        yield entry.path.name
    _, missing = _there(configs)
    if missing and not names:
        raise InspectionError("; ".join(missing))


def delete_inline(configs: Iterable[PoolConfig], name: str) -> str:
    """Delete the inline volume with the driver's or the orchestrator's id `name`.

    Return the driver's id. `InspectionError` if there is none, or it is in use.
    """
    pools, missing = _there(configs)
    for seen in pools:
        for volume in seen.volumes:
            if name in {volume.id, volume.handle}:
                _delete_inline(seen, volume)
                return volume.id
    raise InspectionError(
        "; ".join([f"there is no inline volume {name!r}; see: pycsi volumes", *missing])
    )


def _delete_inline(seen: InspectedPool, volume: Volume) -> None:
    if volume.handle is None:
        raise InspectionError(f"{volume.id} is no inline volume; delete its claim")
    place = seen.layout.volumes / volume.id
    backend = backend_for(os.fspath(place), volume, seen.limiter, seen.location)
    if where := Staging(backend).in_use():
        raise InspectionError(f"{volume.id} is in use at {where}; delete its pod")
    refuse_mounts(place)
    with _announced(seen.layout):  # the driver reaps it, or the next one to start
        rename_durably(place, new_entry(seen.layout, volume.id, Fate.GONE).path)


def _found(
    configs: Iterable[PoolConfig], names: Sequence[str]
) -> list[tuple[InspectedPool, Entry]]:
    """Return the entries `names`, or all if `names` is empty, with their pools.

    `InspectionError` if a name is not in the trash.
    """
    pools, missing = _there(configs)
    every = [(seen, entry) for seen in pools for entry in seen.trash]
    known = {entry.path.name for _, entry in every}
    for name in names:
        if name not in known:
            raise InspectionError(
                "; ".join([f"there is no {name!r} in the trash; see: pycsi trash list", *missing])
            )
    return [item for item in every if not names or item[1].path.name in names]


def _there(configs: Iterable[PoolConfig]) -> tuple[list[InspectedPool], list[str]]:
    """Return the pools that can be read, and messages on why the others cannot."""
    pools: list[InspectedPool] = []
    missing: list[str] = []
    for config in configs:
        try:
            pools.append(InspectedPool(config))
        except InspectionError as error:
            missing.append(str(error))
    return pools, missing
