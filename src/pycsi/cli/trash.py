"""Commands for the trash and for inline volumes, which work whether the driver runs or not.

A volume is restored by one rename, so if a driver reaps it at the same time, only one of the two
succeeds. A running driver is told by an announcement in the pool.
"""

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator, Sequence

from pycsi.cli.errors import CommandError, InspectionError, UnknownNameError
from pycsi.cli.inspection import InspectedPool, inspect
from pycsi.linux.record import rename_durably
from pycsi.linux.tree import refuse_mounts
from pycsi.model.config import PoolConfig
from pycsi.model.records import Volume
from pycsi.pool.departures import unmark
from pycsi.pool.layout import Layout
from pycsi.pool.trash import Entry, Fate, new_entry, reap
from pycsi.volumes.staging import Staging


def restore(configs: Iterable[PoolConfig], name: str) -> str:
    """Restore the deleted volume of the trash entry `name`; return its id.

    `name` may be the volume's id too, if that has one entry only. `CommandError` if the entry is no
    complete volume, or a volume with its id exists again.
    """
    configs = tuple(configs)
    seen, entry = _found(configs, [name], _is_whole)[0]
    if not _is_whole(entry):
        raise CommandError(
            f"{name} cannot be restored, for it is no complete volume; see: pycsi get trash"
        )
    place = seen.layout.volumes / entry.id
    for config in configs:
        if (Layout(config.path).volumes / entry.id).exists():
            raise _there_again(entry)
    try:
        with _announced(seen.layout):
            unmark(entry.path)  # it may have moved to another node
            rename_durably(entry.path, place)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise _failure(seen, entry, error) from None
        raise _there_again(entry) from None
    return entry.id


def _is_whole(entry: Entry) -> bool:
    """Tell whether an entry is a complete volume, which can be restored."""
    return isinstance(entry.record(), Volume) and not entry.reaping


def _failure(seen: InspectedPool, entry: Entry, error: OSError) -> CommandError:
    if error.errno == errno.ENOENT:
        return UnknownNameError(
            f"{entry.path.name} has just been restored or deleted; see: pycsi get trash"
        )
    place = error.filename or entry.path
    return CommandError(
        f"pool {seen.config.name}: {place}: {error.strerror}; try again, or look at the kernel's "
        "log"
    )


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


def _there_again(entry: Entry) -> CommandError:
    return CommandError(
        f"a volume {entry.id} exists; delete it first, or leave this one in the trash"
    )


def doomed(configs: Iterable[PoolConfig], names: Sequence[str]) -> list[str]:
    """Return the entries that `empty` would delete."""
    return [entry.path.name for _, entry in _found(configs, names)]


def empty(configs: Iterable[PoolConfig], names: Sequence[str]) -> Iterator[str]:
    """Delete the entries `names` for good, or all if `names` is empty; yield each one's name.

    `InspectionError` at the end if all were to be deleted, but a pool is missing.
    """
    configs = tuple(configs)
    for seen, entry in _found(configs, names):
        try:
            with _announced(seen.layout):
                reap(entry, seen.limiter, lambda: False)
        except OSError as error:
            raise _failure(seen, entry, error) from None
        yield entry.path.name
    _, missing = _there(configs)
    if missing and not names:
        raise InspectionError("; ".join(missing))


def inline(configs: Iterable[PoolConfig], name: str) -> str:
    """Return the driver's id of the inline volume that `delete_inline` would delete."""
    return _inline(configs, name)[1].id


def delete_inline(configs: Iterable[PoolConfig], name: str) -> str:
    """Delete the inline volume with the driver's or the orchestrator's id `name`.

    Return the driver's id. `CommandError` if there is none, or it is in use.
    """
    seen, volume = _inline(configs, name)
    place = seen.layout.volumes / volume.id
    if where := Staging(seen.backend(volume)).in_use():
        raise CommandError(f"{volume.id} is in use at {where}; delete its pod")
    refuse_mounts(place)
    with _announced(seen.layout):  # the driver reaps it, or the next one to start
        rename_durably(place, new_entry(seen.layout, volume.id, Fate.GONE).path)
    return volume.id


def _inline(configs: Iterable[PoolConfig], name: str) -> tuple[InspectedPool, Volume]:
    pools, missing = _there(configs)
    for seen in pools:
        for volume in seen.volumes:
            if name in {volume.id, volume.handle}:
                if volume.handle is None:
                    raise CommandError(
                        f"{volume.id} is no inline volume; delete its claim, or use pycsi delete"
                    )
                return seen, volume
    raise _unknown(f"there is no inline volume {name!r}; see: pycsi get volumes", missing)


def _found(
    configs: Iterable[PoolConfig],
    names: Sequence[str],
    fits: Callable[[Entry], bool] = lambda _: True,
) -> list[tuple[InspectedPool, Entry]]:
    """Return the entries `names`, or all if `names` is empty, with their pools.

    A name is that of an entry, or the id of what has one entry that `fits`. `UnknownNameError` if a
    name is not in the trash, `CommandError` if several entries have it.
    """
    pools, missing = _there(configs)
    every = [(seen, entry) for seen in pools for entry in seen.trash]
    if not names:
        return every
    found = {}
    for name in names:
        those = [item for item in every if item[1].path.name == name]
        those = those or [item for item in every if item[1].id == name and fits(item[1])]
        if not those:
            raise _unknown(f"there is no {name!r} in the trash; see: pycsi get trash", missing)
        if len(those) > 1:
            listed = ", ".join(entry.path.name for _, entry in those)
            raise CommandError(f"{name} is in the trash {len(those)} times; give one of {listed}")
        found[those[0][1].path] = those[0]
    return list(found.values())


def _unknown(message: str, missing: Sequence[str]) -> CommandError:
    """Return the error for a name that was not found; it may be in a pool that is missing."""
    if missing:
        return InspectionError("; ".join([*missing, message]))
    return UnknownNameError(message)


def _there(configs: Iterable[PoolConfig]) -> tuple[list[InspectedPool], list[str]]:
    """Return the pools that can be read, and messages on why the others cannot."""
    pools: list[InspectedPool] = []
    missing: list[str] = []
    for config in configs:
        try:
            inspect(config, pools.append)
        except InspectionError as error:
            missing.append(str(error))
    return pools, missing
