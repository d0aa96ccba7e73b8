"""Quiescing volumes for a point-in-time copy: nothing is written to them meanwhile."""

import contextlib
from collections.abc import Iterator, Sequence

from pycsi.backends import Backend
from pycsi.model.errors import FailedPrecondition
from pycsi.model.size import show
from pycsi.pool.freezing import FreezeTarget, FreezeWindow, OverdueError, frozen, write_back
from pycsi.pool.pool import Pool
from pycsi.volumes.pools import Pools


@contextlib.contextmanager
def quiesced(
    pools: Pools, volumes: Sequence[tuple[Pool, Backend]], limit: float
) -> Iterator[FreezeWindow]:
    """Keep volumes, each given with its pool, from being written to while the `with` block copies.

    Filesystems in use are frozen, for `limit` seconds at most; `FailedPrecondition` if the copy
    takes longer. At most one volume in use may be one that cannot be frozen: its copy is of one
    point in time by itself, and is taken while the others are frozen.
    """
    with prepared(pools, volumes):
        refuse_unfreezable(unfreezable(volumes))
        with held_still(pools, volumes, limit) as window:
            yield window


@contextlib.contextmanager
def prepared(pools: Pools, volumes: Sequence[tuple[Pool, Backend]]) -> Iterator[None]:
    """Prepare volumes for being copied in the `with` block, in which nobody else freezes them."""
    with contextlib.ExitStack() as turns:
        # All operations take turns in the same order, or two could wait for each other.
        for _, source in sorted(volumes, key=lambda item: item[1].volume.id):
            turns.enter_context(pools.turns.prepared(source))
        yield


def unfreezable(volumes: Sequence[tuple[Pool, Backend]]) -> list[str]:
    """Return the ids of the volumes that are in use and cannot be frozen."""
    return [
        source.volume.id for _, source in volumes if not source.freezable() and source.written_at()
    ]


def refuse_unfreezable(volume_ids: Sequence[str]) -> None:
    """Raise `FailedPrecondition` if a group has more than one volume that is `unfreezable`."""
    if len(volume_ids) > 1:
        raise FailedPrecondition(
            f"volumes in use that cannot be frozen: {', '.join(volume_ids)}. There can be one in a "
            "group: the others need a filesystem of their own (type: image), or must not be in use"
        )


def write_back_freezable(volumes: Sequence[tuple[Pool, Backend]]) -> None:
    """Write to disk what is dirty in those volumes that can be frozen, to shorten the freeze."""
    write_back(_freeze_targets(volumes))


@contextlib.contextmanager
def held_still(
    pools: Pools, volumes: Sequence[tuple[Pool, Backend]], limit: float
) -> Iterator[FreezeWindow]:
    """Freeze those of the prepared volumes that can be frozen, for `limit` seconds at most.

    `FailedPrecondition` if the `with` block takes longer.
    """
    try:
        with frozen(_freeze_targets(volumes), limit, pools.froze) as window:
            yield window
    except OverdueError:
        sources = [source for _, source in volumes]
        raise FailedPrecondition(_overdue(pools, sources, limit)) from None


def _freeze_targets(volumes: Sequence[tuple[Pool, Backend]]) -> list[FreezeTarget]:
    return [pool.freeze_target(source) for pool, source in volumes if source.freezable()]


def _overdue(pools: Pools, sources: Sequence[Backend], limit: float) -> str:
    quick = [f"{pool.name} ({pool.location.mount.fstype})" for pool in pools if pool.reflinks]
    sizes = ", ".join(f"{item.volume.id} ({show(item.occupied())})" for item in sources)
    there = f"{' or '.join(quick)} would" if quick else "one on XFS or btrfs would"
    return (
        f"the copy of {sizes} took longer than freeze-limit, {limit:g} s, for which the filesystem "
        f"may be frozen: no blocks could be shared. In one and the same pool {there} do it at "
        "once. Or copy the volume while it is not staged, or raise the pool's freeze-limit"
    )
