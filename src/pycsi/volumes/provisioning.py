"""Creating volumes: the type and size that follow from a request, and repeated requests.

A repeated request returns the volume that it created (CSI specification, CreateVolume): every field
is compared with the request in the volume's record.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence

from pycsi.backends.privileges import image_refusal
from pycsi.linux import luks, mkfs
from pycsi.model import encryption, parameters
from pycsi.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    PoolMissing,
    ResourceExhausted,
)
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import Capability, RecordedRequest, VolumeRequest
from pycsi.model.spec import (
    VolumeSpec,
    choose,
    inherit,
    largest_image,
    requested_filesystems,
    size_for,
    spec_from_source,
)
from pycsi.pool.pool import Pool
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.sources import extra_room, filler, find_source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The bytes that are available to a volume of one kind, and the minimum size of such."""

    available: int = 0
    minimum: int = 0

    @property
    def largest(self) -> int:
        """The bytes of the largest volume that can be made; 0: none can."""
        return self.available if self.available >= self.minimum else 0


class Provisioner:
    """Creates the volumes that an orchestrator asks for, and tells how large they can be."""

    def __init__(self, pools: Pools, locks: Locks, node: NodeInfo) -> None:
        self._pools = pools
        self._locks = locks
        self._node = node

    def provision(self, volume_id: str, wanted: VolumeRequest) -> Volume:
        """Return the volume of this id: the one that exists, or a new one.

        `AlreadyExists` if the request does not agree with the existing volume. The caller holds the
        volume's lock.
        """
        if volume := self.existing(volume_id, wanted):
            return volume
        try:
            return self._create(volume_id, wanted)
        except PoolMissing as missing:
            if wanted.request.source or wanted.topologies is None:
                raise
            # A scheduler that sends topologies tries another node on this status.
            raise ResourceExhausted(str(missing)) from None

    def existing(self, volume_id: str, wanted: VolumeRequest) -> Volume | None:
        """Return the volume of this id, None if there is none; `AlreadyExists` as `provision`."""
        found = self._pools.find(volume_id)
        if found is None:
            return None
        self._refuse_different(found[1], wanted)
        return found[1]

    def _refuse_different(self, volume: Volume, wanted: VolumeRequest) -> None:
        """Raise `AlreadyExists` if the existing volume does not satisfy the request."""
        before, now = volume.request, wanted.request
        same = {
            "capacity_range": _same_size(volume, now),
            "volume_capabilities": set(before.capabilities) == set(now.capabilities),
            "parameters": parameters.without_orchestrator_keys(before.parameters)
            == parameters.without_orchestrator_keys(now.parameters),
            "mutable_parameters": _initial_settings(before) == _initial_settings(now),
            "volume_content_source": before.source == now.source,
            "accessibility_requirements": self._node.meets(wanted.topologies),
        }
        if differing := [field for field, agrees in same.items() if not agrees]:
            raise AlreadyExists(
                f"volume {volume.name!r} exists with another {', '.join(differing)} "
                f"({volume.capacity} bytes, {volume.type}); use another name or the same request"
            )

    def _create(self, volume_id: str, wanted: VolumeRequest) -> Volume:
        request = wanted.request
        given = parameters.parse(request.parameters, mutable=request.mutable)
        found = find_source(self._pools, request.source) if request.source else None
        pool = found.pool if found and given.pool is None else self._pools.named(given.pool)
        source = found.volume if found else None
        volume = requested_volume(pool, volume_id, wanted, given, node=self._node, source=source)
        passphrase = encryption.passphrase(wanted.secrets)
        if volume.encryption:
            encryption.need_strong(passphrase, f"volume {wanted.name}")
        if found is None:
            return pool.create(volume, given.root, passphrase=passphrase)
        fill = filler(self._pools, self._locks, found)
        extra = extra_room(found)
        return pool.create(volume, fill=fill, extra=extra, passphrase=passphrase)

    def offer(
        self,
        raw: Mapping[str, str],
        capabilities: Sequence[Capability],
        segments: Mapping[str, str],
    ) -> Offer:
        """Return how large volumes with these parameters and capabilities can be in a topology.

        The offer is 0 bytes if none can be made now, so that a scheduler looks elsewhere.
        """
        given = parameters.parse(raw)
        if not self._node.lies_in(segments):
            return Offer()
        if given.pool is None and self._pools.default() is None:
            return Offer()
        try:
            pool = self._pools.named(given.pool)
            pool.check()
            spec = specify(pool, given, capabilities)
        except FailedPrecondition:
            return Offer()
        if spec.type is VolumeType.IMAGE and image_refusal():
            return Offer(minimum=spec.minimum)
        if mkfs.refusal(spec.filesystem, spec.mkfs_options, pool.layout.tmp):
            return Offer(minimum=spec.minimum)
        available = pool.room.capacity().available(thick=spec.thick)
        if spec.type is VolumeType.IMAGE:
            possible = largest_image(spec.filesystem, spec.mkfs_options)
            header = luks.HEADER if spec.encryption else 0
            largest = min(available, pool.room.largest_file)
            available = max(0, min(largest - header, possible))
        return Offer(available=available, minimum=spec.minimum)


def _same_size(volume: Volume, wanted: RecordedRequest) -> bool:
    if wanted.capacity is None or wanted.capacity == volume.request.capacity:
        return True
    return wanted.capacity.holds(volume.capacity)


def _initial_settings(request: RecordedRequest) -> Mapping[str, str]:
    """Return the settings that a request gives a new volume; later changes are not in them."""
    return parameters.settings(request.parameters, request.mutable)


def specify(
    pool: Pool,
    given: parameters.Parameters,
    capabilities: Sequence[Capability],
    source: Volume | None = None,
) -> VolumeSpec:
    """Return the spec of a volume in `pool`, filled from `source` if given: see `spec.choose`."""
    directories = {pool.location.mount.fstype}
    if source:
        given = inherit(source, given)
        directories |= requested_filesystems(source.request)
    spec = choose(
        given,
        capabilities,
        limiter=pool.limiter.name,
        directories=directories,
        limit_fault=pool.limit_fault,
    )
    if given.limits_io:
        pool.throttle.refuse()
    if spec.encryption and (refusal := luks.refusal()):
        raise FailedPrecondition(
            f"this node cannot encrypt volumes: {refusal}; or leave the parameter encryption out"
        )
    return spec_from_source(source, spec) if source else spec


def requested_volume(
    pool: Pool,
    volume_id: str,
    wanted: VolumeRequest,
    given: parameters.Parameters,
    *,
    node: NodeInfo,
    source: Volume | None,
) -> Volume:
    """Return the record of a volume that is still to be made as CreateVolume asks for it.

    `given` are the parsed parameters of `wanted`. The errors are those of `specify`, `size_for`,
    `NodeInfo.require` and `new_volume`, the first that there is.
    """
    request = wanted.request
    spec = specify(pool, given, request.capabilities, source)
    size = size_for(request.capacity, spec.minimum, source.capacity if source else 0)
    node.require(wanted.topologies)
    return new_volume(
        pool,
        spec,
        request,
        volume_id=volume_id,
        name=wanted.name,
        size=size,
        settings=given.settings,
    )


def new_volume(
    pool: Pool,
    spec: VolumeSpec,
    request: RecordedRequest,
    *,
    volume_id: str,
    name: str,
    size: int,
    settings: Mapping[str, str],
    handle: str | None = None,
    targets: tuple[str, ...] = (),
) -> Volume:
    """Return the record of a volume that is still to be made.

    `FailedPrecondition` if it is an image, and the driver lacks the privileges for images.
    """
    if spec.type is VolumeType.IMAGE and (refusal := image_refusal()):
        raise FailedPrecondition(
            f"an image could not be used on this node: {refusal}. Or ask for type: directory, with "
            "quota: none where nothing limits its size"
        )
    return Volume(
        id=volume_id,
        name=name,
        pool=pool.name,
        pool_uuid=pool.uuid,
        type=spec.type,
        reason=spec.reason,
        access=spec.access,
        filesystem=spec.filesystem,
        capacity=size,
        enforced=spec.enforced,
        thick=spec.thick,
        mkfs_options=spec.mkfs_options,
        encryption=spec.encryption,
        request=request,
        settings=settings,
        created=time.time(),
        handle=handle,
        targets=targets,
    )
