"""Making the complete copy of a volume the volume: the steps that a crash must not leave half done.

`pool/moves.py` lists them. Between the second and the third, the volume is in no pool.
"""

import contextlib
import os
from collections.abc import Iterable

import structlog

from pycsi.linux.record import rename_durably
from pycsi.model.errors import CsiError, FailedPrecondition
from pycsi.model.records import Volume
from pycsi.pool.moves import Arrival
from pycsi.pool.pool import Pool
from pycsi.pool.trash import Fate

log = structlog.get_logger()


def hand_over(source: Pool, target: Pool, arrival: Arrival) -> None:
    """Make a complete, durable copy in `target` the volume, instead of the original in `source`.

    The caller holds the volume's lock, and nothing uses it.
    """
    volume_id = arrival.volume.id
    original, gone = source.volumes.place(volume_id), source.moves.leaving(volume_id)
    if os.path.lexists(target.volumes.place(volume_id)):
        raise _taken(target, volume_id)
    rename_durably(original, gone)
    try:
        arrive(target, arrival)
    except BaseException:
        rename_durably(gone, original)
        raise
    source.volumes.drop(volume_id)  # last, so that it is in one of the pools at any time
    _discard(source, arrival.volume)


def arrive(target: Pool, arrival: Arrival) -> None:
    """Make a complete, durable copy the volume, durably. The caller holds the volume's lock.

    That of a move from another node tells from where the volume is, as long as it is in this pool.
    """
    with target.volumes.creating(arrival.volume.id) as place:
        rename_durably(arrival.place, place)
        if arrival.move.origin is None:
            with contextlib.suppress(OSError):  # nothing reads it there
                target.moves.end(place)
        target.volumes.put(arrival.volume)
    target.moves.look()


def _discard(source: Pool, volume: Volume) -> None:
    """Put an original that leaves in the trash, to be kept there; and what was kept of its image.

    If that fails, the next start does it.
    """
    try:
        place = source.moves.leaving(volume.id)
        source.trash.put(place, volume.id, Fate.KEPT, volume.held)
        source.moves.forget_kept(volume.id)
    except OSError as error:
        log.warning("cannot be put in the trash now", path=place, error=str(error))


def settle(pools: Iterable[Pool]) -> None:
    """Take the steps that a crash has left, of moves between these pools.

    What cannot be done now stays as it is.
    """
    there = list(pools)
    for source in there:
        for volume_id in source.moves.left():
            try:
                _settle(source, there, volume_id)
            except (OSError, CsiError) as error:
                log.warning("cannot be moved now", volume=volume_id, error=str(error))
        for volume_id in source.moves.kept_ids():
            if volume_id not in source.volumes:  # it has moved, or was deleted
                source.moves.forget_kept(volume_id)


def _settle(source: Pool, pools: Iterable[Pool], volume_id: str) -> None:
    for target in pools:
        volume = target.volumes.get(volume_id)
        arrival = target.moves.get(volume_id)
        if arrival and arrival.move.source == source.uuid:
            if os.path.lexists(target.volumes.place(volume_id)):
                raise _taken(target, volume_id)
            arrive(target, arrival)
            volume = arrival.volume
            log.info("moved, after a crash", volume=volume_id, pool=target.name)
        if volume and volume.origin:
            _discard(source, volume)
            return
    log.warning(
        "a volume has left this pool, and the pool to which it was moved is not there",
        volume=volume_id,
        pool=source.name,
    )


def _taken(target: Pool, volume_id: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"pool {target.name} has something at {target.volumes.place(volume_id)} already; move it "
        "away"
    )
