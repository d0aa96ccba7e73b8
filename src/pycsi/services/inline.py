"""Inline volumes: a pod describes one, it is made at publishing, and deleted at unpublishing."""

import contextlib
import dataclasses
from collections.abc import Collection, Mapping

from pycsi.model import ids, parameters, rootdirectory
from pycsi.model.config import parse_size
from pycsi.model.errors import AlreadyExists, InvalidArgument, PoolMissing
from pycsi.model.records import Volume
from pycsi.model.request import (
    Access,
    Capability,
    CapacityRange,
    Mode,
    Request,
)
from pycsi.pool.pool import Pool
from pycsi.proto import csi_pb2 as csi
from pycsi.services import node_request
from pycsi.volumes.pools import Pools
from pycsi.volumes.volumes import (
    check_usable,
    delete,
    new_volume,
    noting,
    undoing,
)

_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_POD = ("csi.storage.k8s.io/pod.namespace", "csi.storage.k8s.io/pod.name")
_KEYS = ("pool", "type", "size", *rootdirectory.KEYS)
"""What a pod may say of its inline volume: neither mkfs options nor a directory without limit."""


def is_wanted(request: csi.NodePublishVolumeRequest) -> bool:
    """Tell whether a request is about an inline volume."""
    return request.volume_context.get(_EPHEMERAL) == "true"


def publish(
    pools: Pools, request: csi.NodePublishVolumeRequest, own_id: str, served: Collection[Mode]
) -> None:
    """Create the volume that a pod describes, as `own_id`, and mount it at its target.

    `served` are the access modes that can be had. The caller holds the volume's lock.
    """
    if ids.node_of(request.volume_id):
        raise InvalidArgument(
            f"volume_id {request.volume_id} is a persistent volume's; an inline one may not have it"
        )
    wanted = node_request.capability(request.volume_capability, served)
    if wanted.access is Access.BLOCK:
        raise InvalidArgument("an inline volume is mounted; it cannot be a block device")
    target = node_request.path(pools, request.target_path, "target_path")
    found = pools.find_inline(request.volume_id)
    pool, volume = found or _create(pools, wanted, request, own_id, target)
    try:
        pool.check()  # or a volume that is mounted would be taken for one that is not
        _compare(volume, request)
        check_usable(pool, volume, wanted, target)
        arguments = node_request.arguments(request)
        _record_target(pool, volume, target)
        with noting(pool, volume) as staging:
            staging.ensure_published(
                target, wanted, arguments, readonly=request.readonly, source=None
            )
    except BaseException:
        if found is None:
            delete(pool, volume)
        raise


def _record_target(pool: Pool, volume: Volume, target: str) -> None:
    """Record, durably, that the volume is to be mounted at a target too.

    One that an older version has made has none on record, and is usable without, also on a full
    disk: that its pod is gone cannot be proved then.
    """
    if target not in volume.targets:
        try:
            pool.update(dataclasses.replace(volume, targets=(*volume.targets, target)))
        except OSError:
            if volume.targets:
                raise


def _compare(volume: Volume, request: csi.NodePublishVolumeRequest) -> None:
    if parameters.deciding(request.volume_context) != volume.request.parameters:
        raise AlreadyExists(
            f"inline volume {request.volume_id} exists with other attributes; unpublish it"
        )


def _create(
    pools: Pools,
    wanted: Capability,
    request: csi.NodePublishVolumeRequest,
    own_id: str,
    target: str,
) -> tuple[Pool, Volume]:
    given = parameters.parse(request.volume_context, _KEYS)
    pool = pools.named(given.pool)
    make = parameters.choose(
        given,
        [wanted],
        limiter=pool.limiter.name,
        unlimited=pool.unlimited,
        pool_filesystem=pool.mount.fstype,
    )
    size = parameters.size_for(_size(request.volume_context), make.minimum)
    volume = new_volume(
        pool,
        make,
        Request(capabilities=(wanted,), parameters=parameters.deciding(request.volume_context)),
        volume_id=own_id,
        name="/".join(filter(None, (request.volume_context.get(key) for key in _POD))),
        size=size,
        handle=request.volume_id,
        targets=(target,),
    )
    return pool, pool.create(volume)


def unpublish(pools: Pools, pool: Pool, volume: Volume, target_path: str) -> None:
    """Unmount an inline volume and delete it. The caller holds its lock.

    Of one whose disk is away nobody can delete more now: it is swept when that is back.
    """
    target = node_request.path(pools, target_path, "target_path")
    staging = undoing(pool, volume)
    staging.ensure_unpublished(target)
    if not staging.published() and not staging.away:
        with contextlib.suppress(PoolMissing):  # it can be read only
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
