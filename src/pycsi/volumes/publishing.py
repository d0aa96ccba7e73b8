"""Staging and publishing volumes, undoing both, and finding the volume at a path."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping

from pycsi.backends import Backend
from pycsi.linux.kernel import topmost
from pycsi.model import encryption, ids
from pycsi.model.errors import FailedPrecondition, InvalidArgument, NotFound, PoolMissing
from pycsi.model.records import Volume
from pycsi.model.request import NodeRequest
from pycsi.pool.departures import refuse_departing
from pycsi.pool.pool import Pool
from pycsi.volumes import inline, remains
from pycsi.volumes.iolimits import throttled
from pycsi.volumes.paths import remove_unused, resolved
from pycsi.volumes.pools import Pools
from pycsi.volumes.staging import undoing, using


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A volume that is staged or published at a path, or was, and is `lost` there.

    If its pool is `away`, the volume cannot be measured.
    """

    pool: Pool
    volume: Volume
    backend: Backend
    lost: bool
    away: bool


class Publisher:
    """Stages and publishes volumes, and undoes both. Callers hold the volume's lock."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def stage(self, wanted: NodeRequest) -> None:
        """Stage a volume; a repeated call does nothing."""
        pool, volume = self._pools.need(wanted.volume_id)
        path = self._pools.path_outside(wanted.path, "staging_target_path")
        _check_pool(pool, wanted.context)
        pool.check()
        refuse_departing(pool.volumes.place(volume.id), volume.id)
        passphrase = encryption.passphrase(wanted.secrets)
        with using(pool, volume, wanted.capability, path, passphrase) as staging:
            staging.ensure_staged(path, wanted.capability, wanted.arguments)

    def unstage(self, volume_id: str, staging_path: str) -> None:
        """Undo `stage`; a volume that is not staged there is fine."""
        path = self._pools.path_outside(staging_path, "staging_target_path")
        if found := self._pools.find(volume_id):
            undoing(*found).ensure_unstaged(path)
        elif not remains.undo(volume_id, path):
            self._need_unstaged(volume_id, path)

    def _need_unstaged(self, volume_id: str, path: str) -> None:
        """Raise `NotFound`, or `PoolMissing` if the volume may be mounted.

        A volume that may be in a missing pool is unstaged if nothing is mounted at `path`.
        """
        try:
            self._pools.need(volume_id)
        except PoolMissing:
            if topmost(path):
                raise

    def publish(self, wanted: NodeRequest) -> None:
        """Publish a volume; a repeated call does nothing. An inline volume is created first."""
        if wanted.inline:
            inline.publish(self._pools, wanted, self._pools.own_id(wanted.volume_id))
            return
        pool, volume = self._pools.need(wanted.volume_id)
        if not wanted.staging_path:
            raise FailedPrecondition(
                "staging_target_path is missing: call NodeStageVolume first, and say where"
            )
        source = self._pools.path_outside(wanted.staging_path, "staging_target_path")
        target = self._pools.path_outside(wanted.path, "target_path")
        _check_pool(pool, wanted.context)
        pool.check()
        with (
            using(pool, volume, wanted.capability, target) as staging,
            throttled(pool, staging, target),
        ):
            staging.ensure_published(
                target,
                wanted.capability,
                wanted.arguments,
                readonly=wanted.readonly,
                source=source,
            )

    def unpublish(self, volume_id: str, target_path: str) -> None:
        """Undo `publish`; a volume that is not published there is fine.

        An inline volume is deleted with its last target.
        """
        if ids.node_of(volume_id) is None:
            self._unpublish_inline(volume_id, target_path)
        elif found := self._pools.find(volume_id):
            target = self._pools.path_outside(target_path, "target_path")
            staging = undoing(*found)
            with found[0].throttle.lifted(staging.backend, target):
                staging.ensure_unpublished(target)
        else:
            self._unpublish_lost(volume_id, target_path)

    def _unpublish_inline(self, volume_id: str, target_path: str) -> None:
        if found := inline.find(self._pools, volume_id):
            inline.unpublish(self._pools, *found, target_path)
        elif _exists(target_path):
            self._unpublish_lost(volume_id, target_path)
        else:
            inline.find(self._pools, volume_id, sure=True)

    def _unpublish_lost(self, volume_id: str, target_path: str) -> None:
        """Unmount what is left of a volume that is gone, as after a pool's disk was replaced.

        On NOT_FOUND an orchestrator would repeat the call for ever, and the workload would never
        end. A volume that may lie in a missing pool is unpublished if nothing is at its target.
        """
        own_id, target = self._pools.own_id(volume_id), ""
        if not self._pools.elsewhere(own_id):
            with contextlib.suppress(InvalidArgument):
                target = self._pools.path_outside(target_path, "target_path")
                undone = remains.undo(own_id, target)
                if remove_unused(target) or undone:
                    return
        try:
            self._pools.need(volume_id)
        except PoolMissing:
            if not target or topmost(target) or os.path.lexists(target):
                raise

    def locate(self, volume_id: str, path: str, *, lost: bool = False) -> Located:
        """Return the volume, persistent or inline, if it is staged or published at `path`.

        With `lost` also return a volume that was, if something else is mounted there now; if its
        pool is away, assume that it was. `NotFound` otherwise.
        """
        ephemeral = None if ids.node_of(volume_id) else inline.find(self._pools, volume_id)
        pool, volume = ephemeral or self._pools.need(volume_id)
        staging = undoing(pool, volume)
        if staging.away and not lost:
            pool.check(writable=False)
        with contextlib.suppress(InvalidArgument):
            place = resolved(path, "volume_path")
            held = staging.holds(place)
            if held or (lost and staging.has_lost(place, known=not staging.away)):
                return Located(
                    pool=pool,
                    volume=volume,
                    backend=staging.backend,
                    lost=not held,
                    away=staging.away,
                )
        raise NotFound(f"volume {volume_id} is neither staged nor published at {path!r}")


def _check_pool(pool: Pool, context: Mapping[str, str]) -> None:
    """Raise `FailedPrecondition` if the volume was made in another pool than this.

    After a pool was replaced, an empty volume must never be mounted in place of a lost one.
    """
    wanted = context.get("poolUUID", pool.uuid)
    if wanted != pool.uuid:
        raise FailedPrecondition(
            f"pool {pool.name} is now {pool.uuid}; the volume was made in {wanted}: mount the old "
            "disk again, or delete the volume"
        )


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except (OSError, ValueError):
        return False
