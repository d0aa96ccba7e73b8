"""The Controller service: each method parses its request, holds a lock, acts, and replies.

What is about snapshots lies in `snapshot_controller`, what lists volumes in `listing_controller`.
"""

import grpc

from pycsi.model import ids
from pycsi.model.errors import FailedPrecondition, InvalidArgument
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Attachment, Volume
from pycsi.model.trace import about
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes import inline
from pycsi.volumes.attaching import Attacher
from pycsi.volumes.lifecycle import check_echo, delete, expand, modify
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.provisioning import Provisioner
from pycsi.volumes.staging import check_fits

_ATTACHES = csi.ControllerServiceCapability.RPC.PUBLISH_UNPUBLISH_VOLUME


class Controller(csi_pb2_grpc.ControllerServicer):
    """Create, delete, grow, modify and attach volumes."""

    def __init__(
        self, capabilities: DriverCapabilities, pools: Pools, locks: Locks, node: NodeInfo
    ) -> None:
        self._capabilities = capabilities
        self._pools = pools
        self._locks = locks
        self._node = node
        self._provisioner = Provisioner(pools, locks, node)
        self._attacher = Attacher(pools, node)

    def ControllerGetCapabilities(
        self, request: csi.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetCapabilitiesResponse:
        return reply.controller_capabilities(self._capabilities)

    # Volumes

    def CreateVolume(
        self, request: csi.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi.CreateVolumeResponse:
        wanted = read.create_volume(request, self._capabilities.access_modes)
        volume_id = ids.object_id(wanted.name, self._node.id)
        about(volume_id=volume_id)
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
            modify(*self._pools.need(request.volume_id), wanted, request.secrets)
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
