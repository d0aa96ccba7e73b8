"""Copies of volumes that arrive in a pool, from another pool or another node: begun, kept, deleted.

They are no volumes yet; `pool/moves.py` says when they become some.
"""

import dataclasses

from pycsi.backends import Backend
from pycsi.linux.record import rename_durably
from pycsi.model.records import Volume
from pycsi.pool import layout, trash
from pycsi.pool.moves import Arrival, Move, Moves
from pycsi.pool.pool import Pool


def begun(target: Pool, volume: Volume, move: Move) -> Arrival:
    """Make the empty copy that will be `volume`, durably, and return it. The room is reserved."""
    with target.building_arrival(volume) as build:
        data = target.backend(volume, place=build.directory)
        project = data.create_unfilled()
        recorded = dataclasses.replace(volume, project=project)
        target.commit_arrival(build, target.backend(recorded, place=build.directory), move)
    return Arrival(target.moves.arriving(volume.id), recorded, move)


def noted(arrival: Arrival, move: Move) -> Arrival:
    """Record how far a copy is, durably, and return it."""
    if move != arrival.move:
        Moves.write(arrival.place, move)
    return dataclasses.replace(arrival, move=move)


def followed(target: Pool, arrival: Arrival, volume: Volume) -> Arrival:
    """Give a copy the size and the settings that its original has by now, durably.

    `volume` is what the copy will be, but for its project id.
    """
    now = dataclasses.replace(volume, project=arrival.volume.project)
    if now == arrival.volume:
        return arrival
    more = now.capacity - arrival.volume.capacity
    with target.room.reserved(max(0, more), thick=now.thick):
        if more:
            copy_of(target, arrival).resize(now.capacity)
        with target.room.explaining_full_disk():
            layout.write_volume(arrival.place, now)
        target.moves.look()
    return dataclasses.replace(arrival, volume=now)


def copy_of(target: Pool, arrival: Arrival) -> Backend:
    """Return the data of a copy."""
    return target.backend(arrival.volume, place=arrival.place)


def delete(target: Pool, volume_id: str) -> None:
    """Delete the copy of a volume: no volume."""
    place = trash.reaping_place(target.layout, volume_id)
    rename_durably(target.moves.arriving(volume_id), place)
    target.moves.look()
    trash.destroy(place, target.limiter)
