"""Volumes that arrive from another node; exchange.proto has all the steps."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

from pycsi.linux import lockfile
from pycsi.linux.mount import syncfs
from pycsi.model import parameters
from pycsi.model.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Volume
from pycsi.model.request import VolumeRequest
from pycsi.model.size import LARGEST
from pycsi.model.trace import phase
from pycsi.pool.catalog import UNREADABLE
from pycsi.pool.moves import Arrival, Move
from pycsi.pool.pool import Pool
from pycsi.transfer.content import fill
from pycsi.transfer.format import StreamError
from pycsi.transfer.reader import Source, StreamReader
from pycsi.volumes import arrivals
from pycsi.volumes.handover import arrive
from pycsi.volumes.importing import Content, taken_uuids
from pycsi.volumes.pools import Pools
from pycsi.volumes.provisioning import requested_volume


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """A volume that is to arrive under an id: as what request, and with what content.

    `move` is its record as long as nothing has arrived.
    """

    id: str
    wanted: VolumeRequest
    content: Content
    move: Move


class Receiver:
    """Makes volumes of what their own node sends. Callers hold the lock of the volume's new id."""

    def __init__(self, pools: Pools, node: NodeInfo) -> None:
        self._pools = pools
        self._node = node

    @contextlib.contextmanager
    def receiving(self, coming: Coming) -> Iterator["Reception"]:
        """Yield what receives a volume; its room is reserved.

        `AlreadyExists` if there is a volume of that id, `FailedPrecondition` if it cannot be in its
        pool; the other errors are those of a volume made from a source. What has not arrived as far
        as to be the base of a difference is deleted at the end.
        """
        if self._pools.find(coming.id):
            raise AlreadyExists(
                f"a volume {coming.id} exists on this node; delete it, or move the other one "
                "elsewhere"
            )
        wanted = coming.wanted
        given = parameters.parse(wanted.request.parameters, mutable=wanted.request.mutable)
        target = self._pools.named(given.pool)
        target.check()
        source = coming.content.as_volume(target)
        volume = requested_volume(target, coming.id, wanted, given, node=self._node, source=source)
        reception = Reception(self._pools, target, coming, volume)
        with lockfile.locked_directory(target.moves.arriving(coming.id)):
            try:
                yield reception
            finally:
                reception.tidy()

    def settle(self, volume_id: str, origin: str, point: str) -> Volume:
        """Make a complete arrival at a `point` the volume that it is to be, durably; return that.

        A repeated call finds it, without `point` too. `origin` is the id on the other node.
        `NotFound` if nothing has arrived, `FailedPrecondition` if that is not complete.
        """
        if found := self._pools.find(volume_id):
            move = _came_by(*found)
            if move and move.origin == origin and point in {"", move.point}:
                return found[1]
            raise AlreadyExists(
                f"a volume {volume_id} exists on this node that is not {origin}; export it, delete "
                "it, and repeat the command"
            )
        for target in self._pools:
            arrival = target.moves.get(volume_id)
            if arrival and point and arrival.move.origin == origin:
                if not arrival.move.complete or arrival.move.point != point:
                    raise FailedPrecondition(f"what has arrived of {origin} is not complete")
                target.check()
                arrive(target, arrival)
                return arrival.volume
        raise NotFound(f"nothing has arrived of {origin}")

    def abandon(self, volume_id: str, point: str) -> str:
        """Delete an arrival; none is fine. A complete one has to be at that `point`.

        Return the point of one that is at another, and stays; otherwise "".
        """
        for target in self._pools:
            arrival = target.moves.get(volume_id)
            if arrival and arrival.move.complete and arrival.move.point != point:
                return arrival.move.point
            if os.path.lexists(target.moves.arriving(volume_id)):
                arrivals.delete(target, volume_id)
        return ""


def _came_by(pool: Pool, volume: Volume) -> Move | None:
    """Return the record of the move by which a volume has come to this node, if it has."""
    try:
        return pool.moves.read(pool.volumes.place(volume.id))
    except UNREADABLE:
        return None


class Reception:
    """The arrival of a volume in `target`, which will be `volume`, and how it is changed."""

    def __init__(self, pools: Pools, target: Pool, coming: Coming, volume: Volume) -> None:
        self._pools = pools
        self._target = target
        self._coming = coming
        self._volume = volume
        self._arrival = self._found() or arrivals.begun(target, volume, coming.move)

    @property
    def move(self) -> Move:
        """How far the arrival is."""
        return self._arrival.move

    def _found(self) -> Arrival | None:
        """Return what has arrived before; `FailedPrecondition` if that is in another pool."""
        for pool in self._pools:
            if not os.path.lexists(pool.moves.arriving(self._coming.id)):
                continue
            if pool is not self._target:
                raise FailedPrecondition(
                    f"a move of volume {self._coming.move.origin} to pool {pool.name} was begun; "
                    "end it, or give it up"
                )
            found, begin = pool.moves.get(self._coming.id), self._coming.move
            same = found and (found.move.source, found.move.created) == (
                begin.source,
                begin.created,
            )
            if found and same and found.move.point:
                return found
            # Of an earlier volume, or unreadable, or cut off on its way to the first point.
            arrivals.delete(pool, self._coming.id)
        return None

    def take(self, source: Source, progress: Callable[[], None]) -> None:
        """Bring the arrival to the point of an export, durably.

        `progress` is called again and again; an error that it raises ends this. What has arrived
        until then is kept. `FailedPrecondition` if the export is not whole, or not of that volume.
        """
        origin = self._coming.move.origin
        try:
            reader = StreamReader(source)
            manifest = reader.manifest
            if (manifest.volume, manifest.pool) != (origin, self.move.source) or not manifest.point:
                raise StreamError(f"it is of {manifest.snapshot or manifest.volume}")
            if Content.of(manifest) != self._coming.content:
                raise Aborted(f"volume {origin} was changed meanwhile; repeat the command")
            again = self._begin(manifest.base, manifest.point)
            copy = arrivals.copy_of(self._target, self._arrival)
            volume = copy.volume
            with phase("copy"):
                fill(
                    reader,
                    copy.content,
                    lambda _: progress(),
                    limit=volume.capacity if volume.enforced else LARGEST,
                    privileged=True,  # it had those rights on its own node
                    again=again,
                )
        except StreamError as error:
            raise FailedPrecondition(f"what has arrived of {origin} is refused: {error}") from None
        syncfs(copy.content)
        if not manifest.snapshot:
            # What is changed now is no base of any difference.
            self._note(dataclasses.replace(self.move, point="", toward=""))
            with phase("adapt"):
                copy.finish_filled(
                    volume,
                    volume.project,
                    lambda uuid: uuid in taken_uuids(self._pools, volume.filesystem),
                )
        self._target.sync_subvolume(volume)
        complete = not manifest.snapshot
        self._note(
            dataclasses.replace(self.move, point=manifest.point, toward="", complete=complete)
        )

    def _begin(self, base: str, point: str) -> bool:
        """Make the arrival ready to be brought from `base`, "" for nothing, to `point`.

        Return whether that was begun before. `StreamError` if it is not at that base.
        """
        move = self.move
        if not base:
            if move.point:
                arrivals.delete(self._target, self._volume.id)
                self._arrival = arrivals.begun(self._target, self._volume, self._coming.move)
            return False
        if move.point != base or move.toward not in {"", point}:
            raise StreamError("it is a difference from something else than has arrived")
        now = dataclasses.replace(self._volume, created=self._arrival.volume.created)
        self._arrival = arrivals.followed(self._target, self._arrival, now)
        self._note(dataclasses.replace(move, toward=point, complete=False))
        return bool(move.toward)

    def _note(self, move: Move) -> None:
        self._arrival = arrivals.noted(self._arrival, move)

    def tidy(self) -> None:
        """Delete the arrival if it is at no point, so that no difference can be taken from it."""
        if not self.move.point:
            arrivals.delete(self._target, self._volume.id)
