"""The Controller service: protobuf in, one call of a pool, protobuf out."""

import dataclasses
import threading

import grpc
from google.protobuf.wrappers_pb2 import Int64Value

from pycsi.backends import mkfs
from pycsi.backends.privileges import image_refusal
from pycsi.model import ids, mkfsoptions, parameters
from pycsi.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PoolMissing,
    ResourceExhausted,
)
from pycsi.model.records import Attachment, Volume, VolumeType
from pycsi.model.request import Request
from pycsi.pool.pool import Pool
from pycsi.proto import csi_pb2 as csi
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import Advertised
from pycsi.services.controller_snapshots import ControllerSnapshots
from pycsi.services.topology import NodeFacts
from pycsi.volumes.health import (
    HEALTHY,
    Condition,
    condition_of,
    examine,
)
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.snapshots import filler, find_source, room_to_fill
from pycsi.volumes.volumes import (
    check_fits,
    delete,
    expand,
    modify,
    new_volume,
)


class Controller(ControllerSnapshots):
    """Create, delete, grow, modify, list and attach volumes; and all that is done to snapshots."""

    def __init__(self, says: Advertised, pools: Pools, locks: Locks, node: NodeFacts) -> None:
        super().__init__(pools, locks, node)
        self._says = says
        self._attaching = threading.Lock()

    def ControllerGetCapabilities(
        self, request: csi.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetCapabilitiesResponse:
        kind = csi.ControllerServiceCapability
        rpcs = [kind.RPC(type=item) for item in self._says.controller]
        return csi.ControllerGetCapabilitiesResponse(capabilities=[kind(rpc=rpc) for rpc in rpcs])

    # Volumes

    def CreateVolume(
        self, request: csi.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi.CreateVolumeResponse:
        name = read.name(request.name)
        read.required(request.volume_capabilities, "volume_capabilities")
        wanted = read.create_volume(request, self._says.access_modes)
        volume_id = ids.object_id(name, self._node.id)
        with self._locks.hold(volume_id):
            if found := self._pools.find(volume_id):
                _, volume = found
                self._compare(volume, wanted, request)
            else:
                volume = self._create(volume_id, name, wanted, request)
        return csi.CreateVolumeResponse(volume=self._volume(volume))

    def _compare(self, volume: Volume, wanted: Request, request: csi.CreateVolumeRequest) -> None:
        """Refuse a request that the existing volume of its name does not satisfy."""
        differing = [
            field
            for field, same in (
                ("capacity_range", _same_size(volume, wanted)),
                ("volume_capabilities", _same_capabilities(volume, wanted)),
                ("parameters", _deciding(volume) == parameters.deciding(wanted.parameters)),
                ("mutable_parameters", _same_settings(volume, wanted)),
                ("volume_content_source", volume.request.source == wanted.source),
                ("accessibility_requirements", self._reachable(request)),
            )
            if not same
        ]
        if differing:
            raise AlreadyExists(
                f"volume {volume.name!r} exists with another {', '.join(differing)} "
                f"({volume.capacity} bytes, {volume.type}); use another name or the same request"
            )

    def _create(
        self, volume_id: str, name: str, wanted: Request, request: csi.CreateVolumeRequest
    ) -> Volume:
        try:
            return self._make(volume_id, name, wanted, request)
        except PoolMissing as missing:
            if wanted.source or not request.HasField("accessibility_requirements"):
                raise
            # Whoever says where a volume may be can choose another node, if it is told this way.
            raise ResourceExhausted(str(missing)) from None

    def _make(
        self, volume_id: str, name: str, wanted: Request, request: csi.CreateVolumeRequest
    ) -> Volume:
        given = parameters.parse(wanted.parameters, mutable=wanted.mutable)
        origin = find_source(self._pools, wanted.source) if wanted.source else None
        pool = origin.pool if origin and given.pool is None else self._pools.named(given.pool)
        source = origin.volume if origin else None
        make = parameters.choose(
            given,
            wanted.capabilities,
            limiter=pool.limiter.name,
            unlimited=pool.unlimited,
            pool_filesystem=pool.mount.fstype,
            source=source,
        )
        size = (
            parameters.size_from(wanted.capacity, source.capacity, make.minimum)
            if source
            else parameters.size_for(wanted.capacity, make.minimum)
        )
        if not self._reachable(request):
            raise ResourceExhausted(
                f"accessibility_requirements name other nodes than {self._node.topology_key}="
                f"{ids.segment(self._node.id)}; ask the driver on one of those"
            )
        volume = new_volume(pool, make, wanted, volume_id=volume_id, name=name, size=size)
        if wanted.source is None or origin is None:
            return pool.create(volume)
        return pool.create(
            volume,
            filler(self._pools, self._locks, wanted.source, origin),
            more=room_to_fill(wanted.source, origin),
        )

    def _reachable(self, request: csi.CreateVolumeRequest) -> bool:
        """Tell whether a volume on this node meets the requirements (TopologyRequirement)."""
        requirements = request.accessibility_requirements
        accepted = requirements.requisite or requirements.preferred
        return not accepted or any(self._node.matches(item) for item in accepted)

    def DeleteVolume(
        self, request: csi.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi.DeleteVolumeResponse:
        read.required(request.volume_id, "volume_id")
        with self._locks.hold(request.volume_id):
            if found := self._pools.find(request.volume_id, sure=True):
                self._refuse_attached(found[1])
                delete(*found)
            elif node := self._pools.elsewhere(request.volume_id):
                raise FailedPrecondition(
                    f"volume {request.volume_id} is on node {node}, this is node "
                    f"{self._pools.node}; ask the driver there"
                )
            elif inline := self._pools.inline(request.volume_id):
                raise FailedPrecondition(
                    f"volume {inline.id} is inline, of pod {inline.name or 'unknown'}, for "
                    f"{' and '.join(inline.targets) or 'an unknown target'}: it goes when "
                    f"{inline.handle} is unpublished, or by: pycsi delete-inline {inline.id}"
                )
        return csi.DeleteVolumeResponse()

    def _refuse_attached(self, volume: Volume) -> None:
        # With attaching switched off nobody could detach what was attached before.
        attaches = csi.ControllerServiceCapability.RPC.PUBLISH_UNPUBLISH_VOLUME
        if volume.attachment and attaches in self._says.controller:
            raise FailedPrecondition(
                f"volume {volume.id} is attached to node {volume.attachment.node}; detach it first"
            )

    def ControllerExpandVolume(
        self, request: csi.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerExpandVolumeResponse:
        read.required(request.volume_id, "volume_id")
        if not request.HasField("capacity_range"):
            raise InvalidArgument("capacity_range is missing")
        wanted = read.capacity_range(request.capacity_range)
        with self._locks.hold(request.volume_id):
            pool, volume = self._pools.need(request.volume_id)
            if request.HasField("volume_capability"):
                used = read.capability(request.volume_capability, self._says.access_modes)
                check_fits(pool, volume, used, InvalidArgument)
            volume = expand(pool, volume, wanted)
        return csi.ControllerExpandVolumeResponse(
            capacity_bytes=volume.capacity, node_expansion_required=volume.filesystem is not None
        )

    def ControllerModifyVolume(
        self, request: csi.ControllerModifyVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerModifyVolumeResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.mutable_parameters, "mutable_parameters")
        wanted = read.string_map(request.mutable_parameters, "mutable_parameters")
        with self._locks.hold(request.volume_id):
            modify(*self._pools.need(request.volume_id), wanted)
        return csi.ControllerModifyVolumeResponse()

    def ValidateVolumeCapabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.volume_capabilities, "volume_capabilities")
        try:
            wanted = read.capabilities(request.volume_capabilities, self._says.access_modes)
        except read.UnsupportedCapability as refusal:
            self._pools.need(request.volume_id)
            return csi.ValidateVolumeCapabilitiesResponse(message=reply.short(str(refusal)))
        pool, volume = self._pools.need(request.volume_id)
        try:
            for item in wanted:
                check_fits(pool, volume, item, InvalidArgument)
            self._check_echo(volume, request)
        except InvalidArgument as refusal:
            return csi.ValidateVolumeCapabilitiesResponse(message=reply.short(str(refusal)))
        return csi.ValidateVolumeCapabilitiesResponse(
            confirmed=csi.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
                mutable_parameters=request.mutable_parameters,
            )
        )

    @staticmethod
    def _check_echo(volume: Volume, request: csi.ValidateVolumeCapabilitiesRequest) -> None:
        # Orchestrators add keys of their own to a context; theirs have a prefix.
        ours = {key: value for key, value in request.volume_context.items() if "/" not in key}
        if ours and ours != volume.context:
            raise InvalidArgument("volume_context is not this volume's")
        if request.parameters and dict(request.parameters) != volume.request.parameters:
            raise InvalidArgument("parameters are not those that the volume was created with")
        if (
            request.mutable_parameters
            and dict(request.mutable_parameters) != volume.request.mutable
        ):
            raise InvalidArgument("mutable_parameters are not those of the volume's creation")

    # Looking

    def ListVolumes(
        self, request: csi.ListVolumesRequest, context: grpc.ServicerContext
    ) -> reply.Encoded:
        size, after = read.page(request.max_entries, request.starting_token)
        examined = examine(self._pools.located(after), self._locks)
        entries = (
            (volume.id, self._entry(pool, volume, condition))
            for pool, volume, condition in examined
        )
        return reply.encoded_page(csi.ListVolumesResponse, entries, size)

    def _entry(self, pool: Pool, volume: Volume, condition: Condition) -> bytes:
        if condition is HEALTHY:  # so nearly all are, and are asked for again and again
            return pool.volumes.derived(volume, self._healthy_entry)
        return self._new_entry(volume, condition)

    def _healthy_entry(self, volume: Volume) -> bytes:
        return self._new_entry(volume, HEALTHY)

    def _new_entry(self, volume: Volume, condition: Condition) -> bytes:
        kind = csi.ListVolumesResponse
        entry = kind.Entry(
            volume=self._volume(volume),
            status=kind.VolumeStatus(
                published_node_ids=_attached_to(volume),
                volume_condition=reply.condition(condition),
            ),
        )
        return kind(entries=[entry]).SerializeToString()

    def ControllerGetVolume(
        self, request: csi.ControllerGetVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetVolumeResponse:
        read.required(request.volume_id, "volume_id")
        pool, volume = self._pools.need(request.volume_id)
        condition = condition_of(pool, volume, self._locks)
        return csi.ControllerGetVolumeResponse(
            volume=self._volume(volume),
            status=csi.ControllerGetVolumeResponse.VolumeStatus(
                published_node_ids=_attached_to(volume),
                volume_condition=reply.condition(condition),
            ),
        )

    def GetCapacity(
        self, request: csi.GetCapacityRequest, context: grpc.ServicerContext
    ) -> csi.GetCapacityResponse:
        given = parameters.parse(read.string_map(request.parameters, "parameters"))
        wanted = read.capabilities(request.volume_capabilities, self._says.access_modes)
        if not self._node.matches(request.accessible_topology):
            return _capacity(0, 0)
        if given.pool is None and self._pools.default() is None:
            return _capacity(0, 0)
        try:
            pool = self._pools.named(given.pool)
            pool.check()
            make = parameters.choose(
                given,
                wanted,
                limiter=pool.limiter.name,
                unlimited=pool.unlimited,
                pool_filesystem=pool.mount.fstype,
            )
        except FailedPrecondition:
            return _capacity(0, 0)
        if make.type is VolumeType.IMAGE and image_refusal():
            return _capacity(0, make.minimum)
        if mkfs.refusal(make.filesystem, make.mkfs_options, pool.layout.tmp):
            return _capacity(0, make.minimum)
        available = pool.capacity().available(thick=make.thick)
        if make.type is VolumeType.IMAGE:
            possible = mkfsoptions.largest(make.filesystem, make.mkfs_options)
            available = min(available, pool.largest_file, possible)
        return _capacity(available, make.minimum)

    def _volume(self, volume: Volume) -> csi.Volume:
        return reply.volume(volume, self._node.topology)

    # Attaching

    def ControllerPublishVolume(
        self, request: csi.ControllerPublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerPublishVolumeResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.node_id, "node_id")
        if not request.HasField("volume_capability"):
            raise InvalidArgument("volume_capability is missing")
        wanted = Attachment(
            node=request.node_id,
            capability=read.capability(request.volume_capability, self._says.access_modes),
            readonly=request.readonly,
        )
        with self._locks.hold(request.volume_id):
            pool, volume = self._pools.need(request.volume_id)
            if request.node_id != self._node.id:
                raise NotFound(f"there is no node {request.node_id!r}; this is {self._node.id!r}")
            check_fits(pool, volume, wanted.capability, InvalidArgument)
            self._attach(pool, volume, wanted)
        return csi.ControllerPublishVolumeResponse()

    def _attach(self, pool: Pool, volume: Volume, wanted: Attachment) -> None:
        if volume.attachment == wanted:
            return
        if volume.attachment:
            raise AlreadyExists(
                f"volume {volume.id} is attached to {wanted.node} with another capability or "
                "readonly flag; detach it first"
            )
        with self._attaching:  # or two could take the last place
            most = self._node.max_volumes
            if most and self._pools.attached() >= most:
                raise ResourceExhausted(
                    f"node {self._node.id} has its {most} volumes; detach one, or raise "
                    "--max-volumes-per-node"
                )
            pool.update(dataclasses.replace(volume, attachment=wanted))

    def ControllerUnpublishVolume(
        self, request: csi.ControllerUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerUnpublishVolumeResponse:
        read.required(request.volume_id, "volume_id")
        with self._locks.hold(request.volume_id):
            found = self._pools.find(request.volume_id, sure=True)
            if found and found[1].attachment and request.node_id in {"", self._node.id}:
                pool, volume = found
                pool.update(dataclasses.replace(volume, attachment=None))
        return csi.ControllerUnpublishVolumeResponse()


def _same_size(volume: Volume, wanted: Request) -> bool:
    if wanted.capacity is None or wanted.capacity == volume.request.capacity:
        return True
    return wanted.capacity.holds(volume.capacity)


def _same_capabilities(volume: Volume, wanted: Request) -> bool:
    return set(volume.request.capabilities) == set(wanted.capabilities)


def _same_settings(volume: Volume, wanted: Request) -> bool:
    """Tell whether the volume was created with these settings, whatever they are now."""
    created = parameters.settings(volume.request.parameters, volume.request.mutable)
    return created == parameters.settings(wanted.parameters, wanted.mutable)


def _deciding(volume: Volume) -> dict[str, str]:
    return parameters.deciding(volume.request.parameters)


def _attached_to(volume: Volume) -> list[str]:
    return [volume.attachment.node] if volume.attachment else []


def _capacity(available: int, minimum: int) -> csi.GetCapacityResponse:
    largest = available if available >= minimum else 0
    return csi.GetCapacityResponse(
        available_capacity=available,
        maximum_volume_size=Int64Value(value=largest),
        minimum_volume_size=Int64Value(value=minimum),
    )
