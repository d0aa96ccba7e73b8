"""Volumes that move to another node, as their own node sees it; exchange.proto has all the steps.

A snapshot that is taken for a move has a parameter that no class can have; it is deleted when the
move has ended, or when it is no longer needed as the base of a difference.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pycsi.linux import lockfile
from pycsi.linux.descriptor import exists
from pycsi.linux.record import read_record, rename_durably
from pycsi.model import ids
from pycsi.model.errors import FailedPrecondition
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Snapshot, Volume
from pycsi.pool import departures
from pycsi.pool.departures import Departure, departure_of
from pycsi.pool.layout import VOLUME_RECORD
from pycsi.pool.pool import Pool
from pycsi.pool.trash import Fate
from pycsi.volumes.exporting import Subject, exported, snapshot_subject, volume_subject
from pycsi.volumes.locks import Locks, snapshot_key
from pycsi.volumes.moving import refuse_adopted, release, used_at
from pycsi.volumes.pools import Pools
from pycsi.volumes.snapshots import Snapshotter


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Departing:
    """A volume that is to move, or moves: `in_use` is where it is used, None if it is not.

    `point` names its content while it departs, "" if it does not. It may have `left`.
    """

    volume: Volume
    in_use: str | None = None
    point: str = ""
    left: bool = False


class _Gone(NamedTuple):
    """The place at which a volume that has left is kept in its pool, with its mark."""

    pool: Pool
    place: str
    mark: Departure

    @property
    def volume(self) -> Volume:
        return Volume.from_json(read_record(f"{self.place}/{VOLUME_RECORD}"))


class Departures:
    """Has volumes move to other nodes, as far as their own node is concerned.

    With `attaches` a volume that is attached counts as in use.
    """

    def __init__(self, pools: Pools, locks: Locks, node: NodeInfo, *, attaches: bool) -> None:
        self._pools = pools
        self._locks = locks
        self._node = node
        self._attaches = attaches
        self._snapshotter = Snapshotter(pools, locks, node)

    def look(self, volume_id: str, node: str) -> Departing:
        """Return a volume that is to move to `node`; `FailedPrecondition` if it cannot move there.

        Whether it is in use does not matter.
        """
        with self._locks.share(volume_id):
            return self._left(volume_id, node) or self._movable(volume_id, node)[1]

    def depart(self, volume_id: str, node: str) -> Departing:
        """Have a volume refuse, durably, whatever would change it; `FailedPrecondition` if in use.

        A repeated call finds it so.
        """
        with self._locks.hold(volume_id):
            if left := self._left(volume_id, node):
                return left
            pool, found = self._movable(volume_id, node)
            if found.in_use:
                raise FailedPrecondition(
                    f"volume {volume_id} is in use at {found.in_use}. Its data is on node {node}, "
                    "but for what changes from now on: stop what uses it, and repeat the command"
                )
            release(pool, pool.backend(found.volume))
            if found.point:
                return found
            mark = departures.mark(pool.volumes.place(volume_id), node)
            return dataclasses.replace(found, point=mark.point)

    def _left(self, volume_id: str, node: str) -> Departing | None:
        """Return a volume that has left for `node`; `FailedPrecondition` if it was for another."""
        if gone := self._gone(volume_id):
            _refuse_other(volume_id, gone.mark, node)
            return Departing(volume=gone.volume, point=gone.mark.point, left=True)
        return None

    def _gone(self, volume_id: str) -> "_Gone | None":
        """Return what is known of a volume that has left for another node; None if it has not."""
        for pool in self._pools:
            if mark := pool.moves.departed(volume_id):
                return _Gone(pool, pool.moves.leaving(volume_id), mark)
        return None

    def _movable(self, volume_id: str, node: str) -> tuple[Pool, Departing]:
        pool, volume = self._pools.need_here(volume_id)
        place = pool.volumes.place(volume_id)
        if volume.encryption:
            raise FailedPrecondition(
                f"volume {volume_id} is encrypted, and nothing but its own image can hold its "
                "key: make a new volume on the other node, and copy the files"
            )
        refuse_adopted(place, volume_id)
        for other in self._pools:
            if exists(other.moves.arriving(volume_id)):
                raise FailedPrecondition(
                    f"a move of volume {volume_id} to pool {other.name} was begun; end it, or give "
                    f"it up: pycsi move {volume_id} --cancel"
                )
        mark = departure_of(place)
        if mark:
            _refuse_other(volume_id, mark, node)
        return pool, Departing(
            volume=volume,
            in_use=used_at(pool, pool.backend(volume), attaches=self._attaches),
            point=mark.point if mark else "",
        )

    # Its data

    def sent(
        self, volume_id: str, node: str, *, point: str, since: str, progress: Callable[[], None]
    ) -> Iterator[bytes]:
        """Yield an export of a volume at a `point`, or the increment `since` another one.

        Without `point` it is of a snapshot that is taken now. It is full without `since`, if that
        is not known, or if the `point` is not, and a snapshot takes its place. `progress` as for
        `Exporter.exported`.
        """
        with self._alone(volume_id), contextlib.ExitStack() as held:
            subject = self._at(volume_id, point, held) if point else None
            base = self._snapshot_at(volume_id, since, held) if subject or not point else None
            if subject is None:
                self._forget_snapshots(volume_id, but=base.id if base else "")
                subject = self._taken(volume_id, node)
                held.enter_context(self._locks.share(snapshot_key(subject.id)))
            # For who looks whether anybody is at work.
            held.enter_context(lockfile.locked_directory(subject.backend.where))
            yield from exported(subject, base, progress)

    def _alone(self, volume_id: str) -> contextlib.AbstractContextManager[None]:
        """Keep other moves of the volume away, but nobody who uses it."""
        return self._locks.hold(f"move of {volume_id}")

    def _at(self, volume_id: str, point: str, held: contextlib.ExitStack) -> Subject | None:
        """Return a volume that departs, or a snapshot of it, at that point; None if there is none.

        It is kept from being changed as long as it is `held`.
        """
        pool, volume = self._pools.need_here(volume_id)
        mark = departure_of(pool.volumes.place(volume_id))
        if mark is None or mark.point != point:
            return self._snapshot_at(volume_id, point, held)
        pool.check()
        held.enter_context(self._locks.share(volume_id))
        return volume_subject(pool, volume, point)

    def _taken(self, volume_id: str, node: str) -> Subject:
        """Take a snapshot for a move, whose files may be of different moments."""
        name = f"moving-{os.urandom(8).hex()}"
        snapshot_id = ids.object_id(name, self._node.id)
        with self._locks.hold(snapshot_key(snapshot_id)):
            snapshot = self._snapshotter.create(
                snapshot_id,
                name,
                volume_id=volume_id,
                parameters={departures.SNAPSHOT: node},
                point_in_time=False,
            )
        return snapshot_subject(self._pools.need_snapshot(snapshot.id)[0], snapshot)

    def _snapshot_at(
        self, volume_id: str, point: str, held: contextlib.ExitStack
    ) -> Subject | None:
        """Return the snapshot for a move of a volume at that point, if there is one; as `_at`."""
        for snapshot in self._snapshots(volume_id):
            pool, _ = self._pools.need_snapshot(snapshot.id)
            subject = snapshot_subject(pool, snapshot)
            if subject.point == point:
                held.enter_context(self._locks.share(snapshot_key(snapshot.id)))
                return subject
        return None

    def _snapshots(self, volume_id: str) -> list[Snapshot]:
        return [
            snapshot
            for snapshot in self._pools.snapshots()
            if snapshot.volume.id == volume_id and departures.SNAPSHOT in snapshot.parameters
        ]

    def _forget_snapshots(self, volume_id: str, but: str = "") -> None:
        for snapshot in self._snapshots(volume_id):
            if snapshot.id != but:
                with self._locks.hold(snapshot_key(snapshot.id)):
                    self._snapshotter.delete(snapshot.id)

    # Its end

    def leave(self, volume_id: str, point: str) -> None:
        """Take a volume that departs out of the volumes, durably: this decides the move.

        `FailedPrecondition` if it is not at that point.
        """
        with self._alone(volume_id), self._locks.hold(volume_id):
            gone = self._gone(volume_id)
            if gone and gone.mark.point == point:
                return
            pool, _ = self._pools.need_here(volume_id)
            pool.check()
            mark = departure_of(pool.volumes.place(volume_id))
            if mark is None or mark.point != point:
                raise FailedPrecondition(
                    f"the move of volume {volume_id} was given up meanwhile; repeat the command"
                )
            rename_durably(pool.volumes.place(volume_id), pool.moves.leaving(volume_id))
            pool.volumes.drop(volume_id)

    def discard(self, volume_id: str) -> None:
        """Put a volume that has left in the trash, to be kept there; that there is none is fine."""
        with self._alone(volume_id), self._locks.hold(volume_id):
            if gone := self._gone(volume_id):
                held = gone.volume.held
                self._forget_snapshots(volume_id)
                gone.pool.trash.put(gone.place, volume_id, Fate.KEPT, held)

    def stay(self, volume_id: str) -> None:
        """Have a volume stay, and delete what its move has left here; none is fine.

        `FailedPrecondition` if it has left.
        """
        with self._alone(volume_id), self._locks.hold(volume_id):
            if gone := self._gone(volume_id):
                node = gone.mark.node
                raise FailedPrecondition(
                    f"volume {volume_id} has left for node {node} already; end the move: "
                    f"pycsi move {volume_id} --to-node {node}"
                )
            if found := self._pools.find(volume_id, sure=True):
                found[0].check()
                departures.unmark(found[0].volumes.place(volume_id))
            self._forget_snapshots(volume_id)


def _refuse_other(volume_id: str, mark: Departure, node: str) -> None:
    if mark.node != node:
        raise FailedPrecondition(
            f"volume {volume_id} is moving to node {mark.node} already; end that, or give it up: "
            f"pycsi move {volume_id} --to-node {mark.node} --cancel"
        )
