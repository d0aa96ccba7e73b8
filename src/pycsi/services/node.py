"""The Node service: each method parses its request, holds a lock, acts, and replies."""

import grpc

from pycsi.model.errors import InvalidArgument
from pycsi.model.ids import NodeInfo
from pycsi.model.trace import phase
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.health import storage_faults
from pycsi.volumes.lifecycle import expand
from pycsi.volumes.locks import Locks
from pycsi.volumes.measuring import faults_at, measure
from pycsi.volumes.pools import Pools
from pycsi.volumes.publishing import Publisher
from pycsi.volumes.staging import check_fits


class Node(csi_pb2_grpc.NodeServicer):
    """Stage, publish, measure and grow volumes on this node."""

    def __init__(
        self, capabilities: DriverCapabilities, pools: Pools, locks: Locks, node: NodeInfo
    ) -> None:
        self._capabilities = capabilities
        self._pools = pools
        self._locks = locks
        self._node = node
        self._publisher = Publisher(pools)

    def NodeGetCapabilities(
        self, request: csi.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetCapabilitiesResponse:
        kind = csi.NodeServiceCapability
        rpcs = [kind.RPC(type=item) for item in self._capabilities.node]
        return csi.NodeGetCapabilitiesResponse(capabilities=[kind(rpc=rpc) for rpc in rpcs])

    def NodeGetInfo(
        self, request: csi.NodeGetInfoRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetInfoResponse:
        return csi.NodeGetInfoResponse(
            node_id=self._node.id,
            max_volumes_per_node=self._node.max_volumes,
            accessible_topology=csi.Topology(segments=self._node.segments),
        )

    def NodeStageVolume(
        self, request: csi.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeStageVolumeResponse:
        wanted = read.stage(request, self._capabilities.access_modes)
        with self._locks.hold(request.volume_id):
            self._publisher.stage(wanted)
        return csi.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnstageVolumeResponse:
        read.require(request, "volume_id", "staging_target_path")
        with self._locks.hold(request.volume_id):
            self._publisher.unstage(request.volume_id, request.staging_target_path)
        return csi.NodeUnstageVolumeResponse()

    def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodePublishVolumeResponse:
        wanted = read.publish(request, self._capabilities.access_modes)
        with self._locks.hold(self._pools.own_id(request.volume_id)):
            self._publisher.publish(wanted)
        return csi.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnpublishVolumeResponse:
        read.require(request, "volume_id", "target_path")
        with self._locks.hold(self._pools.own_id(request.volume_id)):
            self._publisher.unpublish(request.volume_id, request.target_path)
        return csi.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(
        self, request: csi.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetVolumeStatsResponse:
        read.require(request, "volume_id", "volume_path")
        usage, faults = measure(
            self._pools, self._publisher, self._locks, request.volume_id, request.volume_path
        )
        return csi.NodeGetVolumeStatsResponse(
            usage=reply.usage(usage) if usage else None,
            volume_condition=reply.condition(faults),
        )

    def NodeGetVolumeHealth(
        self, request: csi.NodeGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetVolumeHealthResponse:
        read.require(request, "volume_id")
        paths = {
            field: getattr(request, field)
            for field in ("volume_publish_path", "staging_target_path")
            if getattr(request, field)
        }
        faults = faults_at(self._pools, self._locks, request.volume_id, paths)
        return csi.NodeGetVolumeHealthResponse(
            volume_health=reply.health(request.volume_id, faults)
        )

    def NodeGetStorageHealth(
        self, request: csi.NodeGetStorageHealthRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetStorageHealthResponse:
        return csi.NodeGetStorageHealthResponse(
            backend_health=reply.storage_health(storage_faults(self._pools))
        )

    def NodeExpandVolume(
        self, request: csi.NodeExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeExpandVolumeResponse:
        read.require(request, "volume_id", "volume_path")
        with self._locks.hold(self._pools.own_id(request.volume_id)):
            found = self._publisher.locate(request.volume_id, request.volume_path)
            pool, volume = found.pool, found.volume
            if request.HasField("volume_capability"):
                used = read.capability(request.volume_capability, self._capabilities.access_modes)
                check_fits(pool, volume, used, InvalidArgument)
            if request.HasField("capacity_range"):
                volume = expand(pool, volume, read.capacity_range(request.capacity_range))
            with phase("grow"):
                pool.backend(volume).grow()
        return csi.NodeExpandVolumeResponse(capacity_bytes=volume.capacity)
