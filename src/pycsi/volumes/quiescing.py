"""Quiescing volumes for a point-in-time copy: nothing is written to them meanwhile."""

import contextlib
from collections.abc import Iterator, Sequence

from pycsi.backends import Backend
from pycsi.model.errors import FailedPrecondition
from pycsi.model.size import show
from pycsi.pool.freezing import FreezeTarget, FreezeWindow, OverdueError, frozen
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
    sources = [source for _, source in volumes]
    with contextlib.ExitStack() as turns:
        # All operations take turns in the same order, or two could wait for each other.
        for source in sorted(sources, key=lambda item: item.volume.id):
            turns.enter_context(pools.turns.prepared(source))
        _refuse_unfreezable(sources)
        try:
            with frozen(_freeze_targets(volumes), limit) as window:
                yield window
        except OverdueError:
            raise FailedPrecondition(_overdue(pools, sources, limit)) from None


def _refuse_unfreezable(sources: Sequence[Backend]) -> None:
    unfreezable = [source for source in sources if not source.freezable() and source.written_at()]
    if len(unfreezable) > 1:
        names = ", ".join(source.volume.id for source in unfreezable)
        raise FailedPrecondition(
            f"volumes in use that cannot be frozen: {names}. There can be one in a group: the "
            "others need a filesystem of their own (type: image), or must not be in use"
        )


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
