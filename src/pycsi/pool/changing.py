"""Changing and deleting the volumes and snapshots of a pool, durably.

Callers hold the volume's or the snapshot's lock. `PoolMissing` if the pool is not there.
"""

import contextlib
import dataclasses
from collections.abc import Callable

from pycsi.backends import Backend
from pycsi.backends.limits import LimitError
from pycsi.linux.descriptor import exists
from pycsi.linux.tree import refuse_listed
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Snapshot, Volume
from pycsi.model.trace import phase
from pycsi.pool import layout, trash
from pycsi.pool.catalog import Catalog
from pycsi.pool.pool import Pool
from pycsi.pool.trash import Fate


def delete_snapshot(pool: Pool, snapshot_id: str) -> None:
    """Delete a snapshot, even if its record cannot be read; absent is fine."""
    pool.check()
    pool.deletions.note("snapshot", snapshot_id, pool.missing())
    if _may_be_encrypted(pool, snapshot_id):
        trash.wipe(pool.snapshots.place(snapshot_id))
    _move_to_trash(pool, pool.snapshots, snapshot_id, Fate.GONE)


def _may_be_encrypted(pool: Pool, snapshot_id: str) -> bool:
    try:
        known = pool.snapshots.get(snapshot_id)
    except FailedPrecondition:  # its record cannot be read
        return True
    return known is None or known.volume.encryption is not None


def delete(pool: Pool, backend: Backend, fate: Fate) -> None:
    """Delete a volume that is not in use: durable when this returns.

    Use is judged by the kernel view of `backend`, which is not read again.
    """
    pool.check()
    refuse_listed(backend.kernel.mounts, pool.location.real(backend.where))
    pool.deletions.note("volume", backend.volume.id, pool.missing())
    if backend.volume.encryption:
        # Before it is in the trash, where it may be kept.
        trash.wipe(backend.where)
    _move_to_trash(pool, pool.volumes, backend.volume.id, fate)


def _move_to_trash(
    pool: Pool, catalog: Catalog[Volume] | Catalog[Snapshot], object_id: str, fate: Fate
) -> None:
    place = catalog.place(object_id)
    try:
        if exists(place):
            with phase("trash"):
                pool.trash.put(place, object_id, fate, catalog.held_by(object_id))
    finally:
        if not exists(place):
            catalog.drop(object_id)


def resize(pool: Pool, volume: Volume, size: int) -> Volume:
    """Grow a volume's data to `size` bytes, and return the volume as recorded.

    The filesystem on an image is not grown. If recording fails, the old size is restored.
    """
    pool.check()
    larger = dataclasses.replace(volume, capacity=size)
    if size > volume.capacity:
        pool.room.refuse_impossible(larger)
    with pool.room.reserved(size - volume.capacity, thick=volume.thick) as reservation:
        backend = pool.backend(volume)
        try:
            with phase("resize"):
                backend.resize(size)
            if larger != volume:
                _record(pool, larger, lambda: pool.room.replaced(reservation))
        except BaseException:
            with contextlib.suppress(OSError, LimitError):
                recorded = pool.volumes.get(volume.id) or volume
                backend.resize(recorded.capacity)
            raise
        backend.expose()
    return larger


def update(pool: Pool, volume: Volume) -> None:
    """Replace a volume's record, durably."""
    pool.check()
    _record(pool, volume, contextlib.nullcontext)


def _record(
    pool: Pool, volume: Volume, known: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    """Replace a volume's record, durably, and index the volume in a block of `known`."""
    place = pool.volumes.place(volume.id)
    before = pool.volumes.get(volume.id)
    try:
        with pool.room.explaining_full_disk(), phase("commit"):
            layout.write_volume(place, volume)
            pool.sync_subvolume(volume)
    except BaseException:
        # The new record may be in its place but not durable, so the old one is put back.
        with contextlib.suppress(OSError):
            if before:
                layout.write_volume(place, before)
        pool.volumes.read_again(volume.id)
        raise
    with known():
        pool.volumes.put(volume)
