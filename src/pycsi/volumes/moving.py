"""Moving volumes between the pools of a node: they keep their ids, and their PersistentVolumes."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

from pycsi.backends import Backend
from pycsi.backends.limits import Progress
from pycsi.linux import lockfile
from pycsi.linux.descriptor import sync_directory
from pycsi.linux.fence import Fence
from pycsi.linux.tree import refuse_listed
from pycsi.model import parameters
from pycsi.model.errors import Aborted, FailedPrecondition, NotFound
from pycsi.model.records import Volume, VolumeType
from pycsi.pool.adoptions import adoption_of
from pycsi.pool.departures import refuse_departing
from pycsi.pool.moves import Arrival, Move
from pycsi.pool.pool import Pool
from pycsi.volumes import arrivals
from pycsi.volumes.handover import hand_over
from pycsi.volumes.locks import Locks
from pycsi.volumes.mirroring import ImageMirror, Mirror, Tell, TreeMirror
from pycsi.volumes.pools import Pools
from pycsi.volumes.provisioning import specify
from pycsi.volumes.staging import Staging


@dataclasses.dataclass(frozen=True, slots=True)
class Watch:
    """Who follows a move: `progress` is called again and again, and raises an error to end it."""

    progress: Progress
    tell: Tell


class Mover:
    """Moves volumes from one pool to another.

    With `attaches` a volume that is attached counts as in use.
    """

    def __init__(self, pools: Pools, locks: Locks, *, attaches: bool) -> None:
        self._pools = pools
        self._locks = locks
        self._attaches = attaches

    def prepare(self, volume_id: str, pool: str, watch: Watch) -> str | None:
        """Copy a volume into a pool as far as that can be done while it is in use.

        A repeated call brings the copy up to date. Return the name of the pool in which the volume
        is, and stays; None if that is the one.
        """
        with self._begun(volume_id, pool) as begun:
            if begun is None:
                return None
            self._prepared(*begun, watch)
            return begun[0].name

    def move(self, volume_id: str, pool: str, watch: Watch) -> str | None:
        """Move a volume into a pool; it is prepared first, if it was not.

        Return the name of the pool in which it was; None if it was in that one already.
        A repeated call goes on with one that was cut off. `FailedPrecondition` if the volume is in
        use once it is prepared. If it was not in use at all, nobody can use it meanwhile.
        """
        with self._begun(volume_id, pool) as begun:
            if begun is None:
                return None
            source, target, arrival = begun
            if not arrival.move.prepared and Staging(self._original(source, arrival)).in_use():
                arrival = self._prepared(source, target, arrival, watch)
            with self._locks.hold(volume_id):
                self._finish(source, target, arrival, watch)
            return source.name

    def cancel(self, volume_id: str) -> None:
        """Delete the copies that moves of a volume have begun; that none is there is fine."""
        with self._alone(volume_id):
            # First, so that what is kept is never left without a copy that needs it.
            for pool in self._pools:
                pool.moves.forget_kept(volume_id)
            for target in self._pools:
                if os.path.lexists(target.moves.arriving(volume_id)):
                    self._refuse_in_doubt(volume_id, target.moves.get(volume_id))
                    arrivals.delete(target, volume_id)

    def _refuse_in_doubt(self, volume_id: str, arrival: Arrival | None) -> None:
        """Raise `FailedPrecondition` if a copy may be the volume already."""
        if any(volume_id in pool.moves.left() for pool in self._pools):
            raise FailedPrecondition(
                f"volume {volume_id} has left its old pool already; restart the driver, which ends "
                "the move"
            )
        known = {pool.uuid for pool in self._pools}
        if self._pools.missing if arrival is None else arrival.move.source not in known:
            raise FailedPrecondition(
                f"the old pool of volume {volume_id} is not there, and only with it can be told "
                "whether it has moved; connect its disk, or configure that pool"
            )

    # The steps

    @contextlib.contextmanager
    def _alone(self, volume_id: str) -> Iterator[None]:
        """Keep other moves of the volume away, but nobody who uses it."""
        with self._locks.hold(f"move of {volume_id}"):
            yield

    @contextlib.contextmanager
    def _begun(self, volume_id: str, pool: str) -> Iterator[tuple[Pool, Pool, Arrival] | None]:
        """Yield the old pool, the new one, and the copy, begun if it was not; None if it is there.

        No other command works on that copy in the `with` block.
        """
        with self._alone(volume_id):
            target = self._pools.named(pool)
            target.check()
            with self._locks.share(volume_id):
                source, volume = self._pools.need_here(volume_id)
                if source is target:
                    yield None
                    return
                arrival = self._arrival(source, target, volume)
            with lockfile.locked_directory(arrival.place):
                yield source, target, arrival

    def _arrival(self, source: Pool, target: Pool, volume: Volume) -> Arrival:
        """Return the copy that was begun of this volume, or begin one."""
        source.check()
        place = source.volumes.place(volume.id)
        refuse_departing(place, volume.id)
        refuse_adopted(place, volume.id)
        for other in self._pools:
            if other is not target and os.path.lexists(other.moves.arriving(volume.id)):
                raise FailedPrecondition(
                    f"a move of volume {volume.id} to pool {other.name} was begun; end it, or give "
                    f"it up: pycsi move {volume.id} --cancel"
                )
        moved = _moved(target, volume)
        arrival = target.moves.get(volume.id)
        if arrival and (arrival.move.source, arrival.move.created) == (source.uuid, volume.created):
            return arrival
        if os.path.lexists(target.moves.arriving(volume.id)):
            self._refuse_in_doubt(volume.id, arrival)
            arrivals.delete(target, volume.id)
        move = Move(source=source.uuid, created=volume.created)
        return arrivals.begun(target, moved, move)

    def _prepared(self, source: Pool, target: Pool, arrival: Arrival, watch: Watch) -> Arrival:
        """Copy what can be copied while the volume is in use, and return the copy, recorded so."""
        known = arrival.move.fence if arrival.move.prepared else None
        arrival = _noted(arrival, prepared=False)
        original = self._original(source, arrival)
        kept = self._keep(source, original, watch)
        mirror = _mirror(original, arrivals.copy_of(target, arrival), kept, known, watch)
        try:
            fence = mirror.prepare()
        except FileNotFoundError:
            if source.volumes.get(arrival.volume.id):
                raise
            raise NotFound(f"volume {arrival.volume.id} was deleted meanwhile") from None
        target.sync_subvolume(arrival.volume)
        return _noted(arrival, prepared=True, fence=fence)

    def _original(self, source: Pool, arrival: Arrival) -> Backend:
        """Return the original's data; `Aborted` if that is another volume by now."""
        volume = source.volumes.get(arrival.volume.id)
        if volume is None or volume.created != arrival.move.created:
            raise Aborted(f"volume {arrival.volume.id} was deleted meanwhile; try again")
        return source.backend(volume)

    def _keep(self, source: Pool, original: Backend, watch: Watch) -> Backend | None:
        """Keep what an image is now, durably, where that takes no room; None where it is not kept.

        A thick volume might find no room to be written while it shares its blocks.
        """
        volume = original.volume
        source.moves.forget_kept(volume.id)
        if volume.type is VolumeType.DIRECTORY or volume.thick or not original.shares_blocks:
            return None
        place = source.moves.kept(volume.id)
        os.mkdir(place, 0o700)
        kept = source.backend(volume, place=place)
        kept.capture(original, watch.progress, point_in_time=False)
        kept.finish_capture()
        sync_directory(place)
        sync_directory(source.layout.leaving)
        source.moves.look()
        return kept

    def _finish(self, source: Pool, target: Pool, arrival: Arrival, watch: Watch) -> None:
        """Copy the difference of a volume that is not in use, and make the copy the volume."""
        original = self._original(source, arrival)
        if where := used_at(source, original, attaches=self._attaches):
            raise FailedPrecondition(
                f"volume {original.volume.id} is in use at {where}. Its data is in pool "
                f"{target.name}, but for what changes from now on: stop what uses it, and repeat "
                "the command"
            )
        release(source, original)
        original.prepare_copy()  # what lies beside an image, to undo a growth, is not copied
        move = arrival.move
        # Until the move has ended, a copy that is being changed is not as it was prepared.
        arrival = _noted(arrival, prepared=False)
        arrival = arrivals.followed(target, arrival, _moved(target, original.volume))
        copy = arrivals.copy_of(target, arrival)
        kept = source.backend(original.volume, place=source.moves.kept(original.volume.id))
        has_kept = move.prepared and kept.content.exists()
        _mirror(original, copy, kept if has_kept else None, move.fence, watch).finish()
        copy.finish_filled(original.volume, copy.volume.project, lambda _: False)
        target.sync_subvolume(arrival.volume)
        source.check()
        target.check()
        hand_over(source, target, arrival)


def used_at(source: Pool, original: Backend, *, attaches: bool) -> str | None:
    """Return where a volume is in use, so that it cannot move now; None if it can.

    With `attaches` one that is attached counts as in use. `PoolMissing` if its pool is not there.
    """
    source.check()
    staging = Staging(original)
    original.refuse_foreign()
    attachment = original.volume.attachment
    where = staging.in_use()
    if where is None and attachment and attaches:
        where = f"node {attachment.node}, to which it is attached"
    return where


def release(source: Pool, original: Backend) -> None:
    """Free what staging a volume has left that is not in use, before it moves."""
    original.release()
    refuse_listed(original.kernel.mounts, source.location.real(original.where))


def refuse_adopted(place: str, volume_id: str) -> None:
    """Raise `FailedPrecondition` if an adopted volume may still be given back to its old place."""
    if adoption_of(place):
        raise FailedPrecondition(
            f"volume {volume_id} was adopted, and could not be given back from another pool or "
            f"node; first: pycsi adopt --finish {volume_id}"
        )


def _moved(target: Pool, volume: Volume) -> Volume:
    """Return a volume as it will be in another pool; `FailedPrecondition` if it cannot be there."""
    if volume.encryption:
        raise FailedPrecondition(
            f"volume {volume.id} is encrypted, and a move would leave a copy with its key in the "
            "old pool; clone it into the other pool, and delete it"
        )
    given = parameters.parse(volume.request.parameters, mutable=volume.request.mutable)
    spec = specify(target, given, volume.request.capabilities, volume)
    if volume.enforced and not spec.enforced:
        raise FailedPrecondition(
            f"pool {target.name} does not limit directories, and volume {volume.id} has a limit"
        )
    return dataclasses.replace(
        volume,
        pool=target.name,
        pool_uuid=target.uuid,
        reason=spec.reason,
        enforced=spec.enforced,
        project=None,
        attachment=None,
        origin=volume.context,
    )


def _noted(arrival: Arrival, *, prepared: bool, fence: Fence | None = None) -> Arrival:
    """Record how far a copy is, durably, and return it."""
    move = dataclasses.replace(arrival.move, prepared=prepared, fence=fence)
    return arrivals.noted(arrival, move)


def _mirror(
    original: Backend, copy: Backend, kept: Backend | None, fence: Fence | None, watch: Watch
) -> Mirror:
    if original.volume.type is VolumeType.DIRECTORY:
        return TreeMirror(original.content, copy, fence, watch.progress, watch.tell)
    return ImageMirror(original, copy, kept, watch.progress, watch.tell)
