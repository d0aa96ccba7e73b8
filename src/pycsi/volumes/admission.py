"""Admitting pools that were opened beside the others, before they are served.

Two pools may have volumes of one id, and a crash may have left a group snapshot in several pools.
`pools` are those that are open whenever it is iterated over.
"""

import functools
import os
from collections.abc import Iterable

from pycsi.linux.descriptor import exists
from pycsi.model.errors import PoolMissing
from pycsi.model.records import Volume
from pycsi.pool.pool import Pool
from pycsi.volumes import groups, handover
from pycsi.volumes.sharing import warn_of_shared_room


def admit_first(pools: Iterable[Pool]) -> None:
    """Admit the pools that the driver has opened when it started."""
    _ignore_older(pools)
    for pool in pools:
        _follow(pool, pools)
        pool.deletions.forget(other.name for other in pools)
    handover.settle(pools)
    groups.settle(list(pools))
    warn_of_shared_room(pools)


def admit_late(pool: Pool, pools: Iterable[Pool]) -> None:
    """Admit a pool that was opened late; ids that are served already win over its own."""
    for volume in list(pool.volumes):
        if any(volume.id in other.volumes for other in pools):
            pool.volumes.ignore(volume.id)
    for snapshot in list(pool.snapshots):
        if any(snapshot.id in other.snapshots for other in pools):
            pool.snapshots.ignore(snapshot.id)
    _follow(pool, pools)
    for other in (*pools, pool):
        other.deletions.forget([pool.name])
    handover.settle([*pools, pool])
    # No RPC changes these groups at the same time: without this pool it would be refused.
    groups.settle([*pools, pool], of=pool)
    warn_of_shared_room([*pools, pool], late=pool)


def _ignore_older(pools: Iterable[Pool]) -> None:
    """Ignore all but the newest volume of an id that two pools have, as after a manual copy."""
    for pool in pools:
        for other in pools:
            for volume in other.volumes if other is not pool else []:
                newer = pool.volumes.get(volume.id) if volume.id in pool.volumes else None
                if newer and newer.created >= volume.created:
                    other.volumes.ignore(volume.id)


def _follow(pool: Pool, pools: Iterable[Pool]) -> None:
    """Have a pool adopt the volumes that other processes add, and drop those they delete."""
    pool.volumes.adopts = functools.partial(_adopts, pool, pools)
    pool.trash.notices = functools.partial(_drop_deleted, pool)
    pool.layout.changes.follow(functools.partial(_drop_withdrawn, pool))


def _adopts(pool: Pool, pools: Iterable[Pool], volume: Volume) -> bool:
    """Tell whether a volume that another process has added belongs to a pool, and no other."""
    elsewhere = any(volume.id in other.volumes for other in pools if other is not pool)
    return volume.pool_uuid == pool.uuid and not elsewhere


def _drop_withdrawn(pool: Pool) -> bool:
    """Drop the volumes that `pycsi adopt --undo` has taken out; return False if that fails."""
    try:
        pool.check(writable=False)
        there = set(os.listdir(pool.volumes.folder))
    except (OSError, PoolMissing):
        return False
    for volume in pool.volumes.indexed():
        if volume.id not in there:
            _drop_deleted(pool, volume.id)
    return True


def _drop_deleted(pool: Pool, volume_id: str) -> None:
    """Drop a volume that another process has deleted: `pycsi delete-inline`."""
    if volume_id in pool.volumes and not exists(pool.volumes.place(volume_id)):
        pool.volumes.drop(volume_id)
