"""Inline volumes: described by a pod, made when published, and deleted when unpublished."""

import contextlib
import dataclasses
from collections.abc import Mapping

from pycsi.linux.descriptor import exists
from pycsi.model import ids, iolimits, parameters, rootdirectory
from pycsi.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    PoolMissing,
    ResourceExhausted,
)
from pycsi.model.records import Volume
from pycsi.model.request import (
    Access,
    CapacityRange,
    NodeRequest,
    RecordedRequest,
)
from pycsi.model.size import parse_size
from pycsi.model.spec import size_for
from pycsi.pool import changing
from pycsi.pool.pool import Pool
from pycsi.volumes.iolimits import throttled
from pycsi.volumes.lifecycle import delete
from pycsi.volumes.pools import Pools
from pycsi.volumes.provisioning import new_volume, specify
from pycsi.volumes.staging import undoing, using

_POD = ("csi.storage.k8s.io/pod.namespace", "csi.storage.k8s.io/pod.name")
_KEYS = ("pool", "type", "size", *rootdirectory.KEYS, *iolimits.READERS)
"""The attributes that a pod may give: neither mkfs options nor a directory without a limit."""


def find(pools: Pools, handle: str, *, sure: bool = False) -> tuple[Pool, Volume] | None:
    """Return the inline volume with the orchestrator's id `handle`, and its pool, or None.

    `sure` is as for `Pools.find`. A volume that another process has deleted is dropped.
    """
    found = pools.find(pools.own_id(handle), sure=sure, inline=True)
    if found:
        pool, volume = found
        with contextlib.suppress(OSError, FailedPrecondition):  # its disk fails, or is away
            if not exists(pool.volumes.place(volume.id)):
                pool.check(writable=False)
                pool.volumes.drop(volume.id)
                return None
    return found


def refuse(pools: Pools, volume_id: str) -> None:
    """Raise `FailedPrecondition` if a volume is inline: only unpublishing deletes it.

    `volume_id` is the driver's id or the orchestrator's.
    """
    is_ours = ids.node_of(volume_id)
    if found := pools.find(volume_id, inline=True) if is_ours else find(pools, volume_id):
        _, volume = found
        raise FailedPrecondition(
            f"volume {volume.id} is inline, of pod {volume.name or 'unknown'}, for "
            f"{' and '.join(volume.targets) or 'an unknown target'}: it goes when "
            f"{volume.handle} is unpublished, or by: pycsi delete-inline {volume.id}"
        )


def publish(pools: Pools, wanted: NodeRequest, own_id: str) -> None:
    """Create the volume that a pod describes, with the id `own_id`, and mount it at its target.

    If that fails, a volume that this call has created is deleted. The caller holds the volume's
    lock.
    """
    if ids.node_of(wanted.volume_id):
        raise InvalidArgument(
            f"volume_id {wanted.volume_id} is a persistent volume's; an inline one may not have it"
        )
    if wanted.capability.access is Access.BLOCK:
        raise InvalidArgument("an inline volume is mounted; it cannot be a block device")
    target = pools.path_outside(wanted.path, "target_path")
    found = find(pools, wanted.volume_id)
    pool, volume = found or _create(pools, wanted, own_id, target)
    try:
        pool.check()  # without its disk a mounted volume would look unmounted
        _refuse_different(volume, wanted)
        with (
            using(pool, volume, wanted.capability, target) as staging,
            throttled(pool, staging, target),
        ):
            _record_target(pool, volume, target)
            staging.ensure_published(
                target,
                wanted.capability,
                wanted.arguments,
                readonly=wanted.readonly,
                source=None,
            )
    except BaseException:
        if found is None:
            delete(pool, volume)
        raise


def _record_target(pool: Pool, volume: Volume, target: str) -> None:
    """Record, durably, that the volume is about to be mounted at a target.

    A volume that an older version has made has no recorded targets, and may go without, so that it
    is usable on a full disk too; then there is no proof later that its pod is gone.
    """
    if target not in volume.targets:
        try:
            changing.update(pool, dataclasses.replace(volume, targets=(*volume.targets, target)))
        except (OSError, ResourceExhausted):
            if volume.targets:
                raise


def _refuse_different(volume: Volume, wanted: NodeRequest) -> None:
    if parameters.without_orchestrator_keys(wanted.context) != volume.request.parameters:
        raise AlreadyExists(
            f"inline volume {wanted.volume_id} exists with other attributes; unpublish it"
        )


def _create(pools: Pools, wanted: NodeRequest, own_id: str, target: str) -> tuple[Pool, Volume]:
    given = parameters.parse(wanted.context, _KEYS)
    pool = pools.named(given.pool)
    spec = specify(pool, given, [wanted.capability])
    volume = new_volume(
        pool,
        spec,
        RecordedRequest(
            capabilities=(wanted.capability,),
            parameters=parameters.without_orchestrator_keys(wanted.context),
        ),
        volume_id=own_id,
        name="/".join(filter(None, (wanted.context.get(key) for key in _POD))),
        size=size_for(_size(wanted.context), spec.minimum),
        settings=given.settings,
        handle=wanted.volume_id,
        targets=(target,),
    )
    return pool, pool.create(volume, given.root)


def unpublish(pools: Pools, pool: Pool, volume: Volume, target_path: str) -> None:
    """Unmount an inline volume and delete it. The caller holds its lock.

    If the pool's disk is away the data cannot be deleted now: it is swept once the disk is back.
    """
    target = pools.path_outside(target_path, "target_path")
    staging = undoing(pool, volume)
    with pool.throttle.lifted(staging.backend, target):
        staging.ensure_unpublished(target)
    if not staging.published() and not staging.away:
        with contextlib.suppress(PoolMissing):  # the pool is read-only
            delete(pool, volume)


def _size(context: Mapping[str, str]) -> CapacityRange | None:
    if "size" not in context:
        return None
    try:
        size = parse_size(context["size"])
    except ValueError as error:
        raise InvalidArgument(f"volume attribute size: {error}") from None
    if size <= 0:
        raise InvalidArgument(f"volume attribute size is {context['size']!r}; use a positive size")
    return CapacityRange(required=size)
