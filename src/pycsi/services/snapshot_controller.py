"""The part of the Controller service that is about snapshots."""

import grpc

from pycsi.model import ids, parameters
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Snapshot
from pycsi.model.trace import about
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.locks import Locks, snapshot_key
from pycsi.volumes.pools import Pools
from pycsi.volumes.snapshots import Snapshotter


class SnapshotController(csi_pb2_grpc.ControllerServicer):
    """Take, delete, find and list snapshots."""

    def __init__(
        self, capabilities: DriverCapabilities, pools: Pools, locks: Locks, node: NodeInfo
    ) -> None:
        self._pools = pools
        self._locks = locks
        self._node = node
        self._snapshotter = Snapshotter(pools, locks, node)
        self._snapshots_at = node if capabilities.snapshot_topology else None

    def CreateSnapshot(
        self, request: csi.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.CreateSnapshotResponse:
        read.require(request, "source_volume_id")
        name = read.name(request.name)
        given = read.string_map(request.parameters, "parameters")
        point_in_time = parameters.point_in_time(given)
        required = request.accessibility_requirements
        wanted = read.topologies(required) if self._snapshots_at else None
        snapshot_id = ids.object_id(name, self._node.id)
        about(snapshot_id=snapshot_id)
        with self._locks.hold(snapshot_key(snapshot_id)):
            snapshot = self._snapshotter.create(
                snapshot_id,
                name,
                volume_id=request.source_volume_id,
                parameters=given,
                point_in_time=point_in_time,
                topologies=wanted,
            )
        return csi.CreateSnapshotResponse(snapshot=self._snapshot(snapshot))

    def DeleteSnapshot(
        self, request: csi.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.DeleteSnapshotResponse:
        read.require(request, "snapshot_id")
        with self._locks.hold(snapshot_key(request.snapshot_id)):
            self._snapshotter.delete(request.snapshot_id)
        return csi.DeleteSnapshotResponse()

    def ListSnapshots(
        self, request: csi.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> csi.ListSnapshotsResponse:
        size, after = read.page(request.max_entries, request.starting_token)
        found = self._snapshotter.listed(
            after, snapshot_id=request.snapshot_id, volume_id=request.source_volume_id
        )
        kind = csi.ListSnapshotsResponse
        entries = (
            (item.id, kind(entries=[kind.Entry(snapshot=self._snapshot(item))]).SerializeToString())
            for item in found
        )
        return reply.page(kind, entries, size)

    def GetSnapshot(
        self, request: csi.GetSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.GetSnapshotResponse:
        read.require(request, "snapshot_id")
        _, snapshot = self._pools.need_snapshot(request.snapshot_id)
        return csi.GetSnapshotResponse(snapshot=self._snapshot(snapshot))

    def _snapshot(self, snapshot: Snapshot) -> csi.Snapshot:
        return reply.snapshot(snapshot, self._snapshots_at)
