"""The Controller service: each method parses its request, holds a lock, acts, and replies."""

import grpc

from pycsi.model import ids
from pycsi.model.errors import FailedPrecondition, InvalidArgument
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Attachment, Volume
from pycsi.pool.pool import Pool
from pycsi.proto import csi_pb2 as csi
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.services.snapshot_controller import SnapshotController
from pycsi.volumes import inline
from pycsi.volumes.attaching import Attacher
from pycsi.volumes.health import Faults, examine, faults_if_examined, faults_of
from pycsi.volumes.lifecycle import check_echo, delete, expand, modify
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.provisioning import Provisioner
from pycsi.volumes.staging import check_fits

_ATTACHES = csi.ControllerServiceCapability.RPC.PUBLISH_UNPUBLISH_VOLUME


class Controller(SnapshotController):
    """Create, delete, grow, modify, list and attach volumes; inherit what is about snapshots."""

    def __init__(
        self, capabilities: DriverCapabilities, pools: Pools, locks: Locks, node: NodeInfo
    ) -> None:
        super().__init__(capabilities, pools, locks, node)
        self._capabilities = capabilities
        self._provisioner = Provisioner(pools, locks, node)
        self._attacher = Attacher(pools, node)

    def ControllerGetCapabilities(
        self, request: csi.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetCapabilitiesResponse:
        kind = csi.ControllerServiceCapability
        rpcs = [kind.RPC(type=item) for item in self._capabilities.controller]
        return csi.ControllerGetCapabilitiesResponse(capabilities=[kind(rpc=rpc) for rpc in rpcs])

    # Volumes

    def CreateVolume(
        self, request: csi.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi.CreateVolumeResponse:
        wanted = read.create_volume(request, self._capabilities.access_modes)
        volume_id = ids.object_id(wanted.name, self._node.id)
        with self._locks.hold(volume_id):
            volume = self._provisioner.provision(volume_id, wanted)
        return csi.CreateVolumeResponse(volume=reply.volume(volume, self._node))

    def DeleteVolume(
        self, request: csi.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi.DeleteVolumeResponse:
        read.require(request, "volume_id")
        with self._locks.hold(request.volume_id):
            if found := self._pools.find(request.volume_id, sure=True):
                self._refuse_attached(found[1])
                delete(*found)
            else:
                self._pools.refuse_elsewhere("volume", request.volume_id)
                inline.refuse(self._pools, request.volume_id)
        return csi.DeleteVolumeResponse()

    def _refuse_attached(self, volume: Volume) -> None:
        # With attach switched off, an attachment from before could never be detached.
        if volume.attachment and _ATTACHES in self._capabilities.controller:
            raise FailedPrecondition(
                f"volume {volume.id} is attached to node {volume.attachment.node}; detach it first"
            )

    def ControllerExpandVolume(
        self, request: csi.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerExpandVolumeResponse:
        read.require(request, "volume_id", "capacity_range")
        wanted = read.capacity_range(request.capacity_range)
        with self._locks.hold(request.volume_id):
            pool, volume = self._pools.need(request.volume_id)
            if request.HasField("volume_capability"):
                used = read.capability(request.volume_capability, self._capabilities.access_modes)
                check_fits(pool, volume, used, InvalidArgument)
            volume = expand(pool, volume, wanted)
        return csi.ControllerExpandVolumeResponse(
            capacity_bytes=volume.capacity, node_expansion_required=volume.filesystem is not None
        )

    def ControllerModifyVolume(
        self, request: csi.ControllerModifyVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerModifyVolumeResponse:
        read.require(request, "volume_id", "mutable_parameters")
        wanted = read.string_map(request.mutable_parameters, "mutable_parameters")
        with self._locks.hold(request.volume_id):
            modify(*self._pools.need(request.volume_id), wanted)
        return csi.ControllerModifyVolumeResponse()

    def ValidateVolumeCapabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        read.require(request, "volume_id", "volume_capabilities")
        try:
            wanted = read.capabilities(request.volume_capabilities, self._capabilities.access_modes)
        except read.UnsupportedCapability as refusal:
            self._pools.need(request.volume_id)
            return csi.ValidateVolumeCapabilitiesResponse(message=reply.short(str(refusal)))
        pool, volume = self._pools.need(request.volume_id)
        try:
            for item in wanted:
                check_fits(pool, volume, item, InvalidArgument)
            check_echo(
                volume,
                context=request.volume_context,
                parameters=request.parameters,
                mutable=request.mutable_parameters,
            )
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

    def ListVolumes(
        self, request: csi.ListVolumesRequest, context: grpc.ServicerContext
    ) -> reply.Encoded:
        size, after = read.page(request.max_entries, request.starting_token)
        examined = examine(self._pools.located(after), self._locks)
        entries = (
            (volume.id, self._entry(pool, volume, faults)) for pool, volume, faults in examined
        )
        return reply.encoded_page(csi.ListVolumesResponse, entries, size)

    def _entry(self, pool: Pool, volume: Volume, faults: Faults | None) -> bytes:
        # Nearly all volumes are healthy and are listed again and again. With its encoded entry
        # cached, a volume takes a third of the time.
        if faults == ():
            return pool.volumes.derived(volume, self._healthy_entry)
        return self._new_entry(volume, faults)

    def _healthy_entry(self, volume: Volume) -> bytes:
        return self._new_entry(volume, ())

    def _new_entry(self, volume: Volume, faults: Faults | None) -> bytes:
        kind = csi.ListVolumesResponse
        entry = kind.Entry(
            volume=reply.volume(volume, self._node),
            status=kind.VolumeStatus(
                published_node_ids=_attached_to(volume),
                volume_condition=reply.condition(faults),
            ),
        )
        return kind(entries=[entry]).SerializeToString()

    def ControllerGetVolume(
        self, request: csi.ControllerGetVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetVolumeResponse:
        read.require(request, "volume_id")
        pool, volume = self._pools.need(request.volume_id)
        faults = faults_if_examined(pool, volume, self._locks)
        return csi.ControllerGetVolumeResponse(
            volume=reply.volume(volume, self._node),
            status=csi.ControllerGetVolumeResponse.VolumeStatus(
                published_node_ids=_attached_to(volume),
                volume_condition=reply.condition(faults),
            ),
        )

    def ControllerListVolumeHealth(
        self, request: csi.ControllerListVolumeHealthRequest, context: grpc.ServicerContext
    ) -> reply.Encoded:
        size, after = read.page(request.max_entries, request.starting_token)
        kind = csi.ControllerListVolumeHealthResponse
        entries = (
            (volume.id, kind(entries=[reply.health(volume.id, faults)]).SerializeToString())
            for _, volume, faults in examine(self._pools.located(after), self._locks)
            if faults
        )
        return reply.encoded_page(kind, entries, size)

    def ControllerGetVolumeHealth(
        self, request: csi.ControllerGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetVolumeHealthResponse:
        read.require(request, "volume_id")
        pool, volume = self._pools.need_here(request.volume_id)
        faults = faults_of(pool, volume, self._locks)
        return csi.ControllerGetVolumeHealthResponse(volume_health=reply.health(volume.id, faults))

    def GetCapacity(
        self, request: csi.GetCapacityRequest, context: grpc.ServicerContext
    ) -> csi.GetCapacityResponse:
        wanted = read.capabilities(request.volume_capabilities, self._capabilities.access_modes)
        offer = self._provisioner.offer(
            read.string_map(request.parameters, "parameters"),
            wanted,
            request.accessible_topology.segments,
        )
        return reply.capacity(offer)

    # Attaching

    def ControllerPublishVolume(
        self, request: csi.ControllerPublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerPublishVolumeResponse:
        read.require(request, "volume_id", "node_id", "volume_capability")
        wanted = Attachment(
            node=request.node_id,
            capability=read.capability(request.volume_capability, self._capabilities.access_modes),
            readonly=request.readonly,
        )
        with self._locks.hold(request.volume_id):
            pool, volume = self._pools.need(request.volume_id)
            self._attacher.check_node(request.node_id)
            check_fits(pool, volume, wanted.capability, InvalidArgument)
            self._attacher.attach(pool, volume, wanted)
        return csi.ControllerPublishVolumeResponse()

    def ControllerUnpublishVolume(
        self, request: csi.ControllerUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerUnpublishVolumeResponse:
        read.require(request, "volume_id")
        with self._locks.hold(request.volume_id):
            self._attacher.detach(request.volume_id, request.node_id)
        return csi.ControllerUnpublishVolumeResponse()


def _attached_to(volume: Volume) -> list[str]:
    return [volume.attachment.node] if volume.attachment else []
