"""Moves between pools, and between nodes, that have not ended."""

from collections.abc import Iterator, Sequence

from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding
from pycsi.cli.doctor.look import Look
from pycsi.linux.lockfile import is_locked
from pycsi.model import ids
from pycsi.pool import departures
from pycsi.pool.moves import Arrival, Moves


def check(looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield the moves to and from these pools at which nobody is at work."""
    for look in looks:
        for arrival in Moves(look.seen.layout):
            if not is_locked(arrival.place):
                coming = arrival.move.origin is not None
                yield _coming(look, arrival) if coming else _begun(look, arrival, looks)
        for volume_id in () if look.served else Moves(look.seen.layout).left():
            yield _left(look, volume_id, looks)
        yield from _going(look)


def _begun(target: Look, arrival: Arrival, looks: Sequence[Look]) -> Finding:
    volume_id = arrival.volume.id
    sources = [look for look in looks if look.seen.uuid == arrival.move.source]
    pools = [look.given for look in (*sources, target)]
    give_up = commands.pycsi_of(pools, "move", volume_id, "--cancel")
    if sources and volume_id not in sources[0].volumes and not _has_left(sources[0], volume_id):
        return target.finding(
            Code.MOVE_UNFINISHED,
            volume_id,
            f"volume {volume_id} was deleted before its move to pool {target.name} had ended",
            give_up,
        )
    other = f"pool {sources[0].name}" if sources else "its other pool, which is to be given too"
    return target.finding(
        Code.MOVE_UNFINISHED,
        volume_id,
        f"the move of volume {volume_id} from {other} to pool {target.name} has not ended; this "
        f"ends it, once nothing uses the volume; or give it up: {give_up}",
        commands.pycsi_of(pools, "move", volume_id, "--to-pool", target.name),
    )


def _has_left(source: Look, volume_id: str) -> bool:
    return volume_id in Moves(source.seen.layout).left()


def _left(source: Look, volume_id: str, looks: Sequence[Look]) -> Finding:
    there = [
        look
        for look in looks
        if look is not source
        and (volume_id in look.volumes or Moves(look.seen.layout).get(volume_id))
    ]
    if there:
        pools = [source.given, there[0].given]
        command = commands.pycsi_of(pools, "move", volume_id, "--to-pool", there[0].name)
        where = f"pool {there[0].name}; starting the driver, or this, ends the move"
    else:
        pools = [source.given]
        command = commands.pycsi_of(
            pools, "move", volume_id, "--to-pool", "POOL", "--pool", "POOL=PATH"
        )
        where = "another one, POOL at PATH, which has it; the driver needs both to end the move"
    return source.finding(
        Code.MOVE_UNFINISHED,
        volume_id,
        f"volume {volume_id} has left pool {source.name} for {where}",
        command,
    )


# Between nodes


def _coming(target: Look, arrival: Arrival) -> Finding:
    node = ids.node_of(arrival.volume.id) or ""
    state = "is complete here, and" if arrival.move.complete else "is here in part:"
    return _of_nodes(
        target,
        str(arrival.move.origin),
        node,
        f"a copy of volume {arrival.move.origin} {state} its move to this node has not ended",
    )


def _going(source: Look) -> Iterator[Finding]:
    """Yield the moves of volumes of this node to others."""
    layout = source.seen.layout
    going = {}
    for snapshot in source.snapshots():
        place = layout.snapshots / snapshot.id
        if (node := snapshot.parameters.get(departures.SNAPSHOT)) and not is_locked(place):
            going[snapshot.volume.id] = node, f"has a snapshot, {snapshot.id}, for its move"
    for volume_id in source.volumes:
        place = layout.volumes / volume_id
        if (mark := departures.departure_of(place)) and not is_locked(place):
            going[volume_id] = mark.node, "is not staged until the end of its move"
    for volume_id, mark in Moves(layout).all_departed().items():
        going[volume_id] = mark.node, "has left this node, and is kept until the end of its move"
    for volume_id, (node, state) in going.items():
        message = f"volume {volume_id} {state} to node {node}, which has not ended"
        yield _of_nodes(source, volume_id, node, message)


def _of_nodes(look: Look, volume_id: str, node: str, message: str) -> Finding:
    words = ("pycsi", "move", volume_id, "--to-node", node)
    return look.finding(
        Code.MOVE_UNFINISHED,
        volume_id,
        f"{message}; this ends it, with --endpoint, the controller's socket, once nothing uses the "
        f"volume; or give it up, before the volume has left: {commands.typed(*words, '--cancel')}",
        commands.typed(*words),
    )
