"""The part of the Controller service that deals with snapshots."""

import grpc

from pycsi.model import ids, parameters
from pycsi.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from pycsi.model.records import Snapshot
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.topology import NodeFacts
from pycsi.volumes.locks import Locks, snapshot_key
from pycsi.volumes.pools import Pools
from pycsi.volumes.snapshots import Member, take


class ControllerSnapshots(csi_pb2_grpc.ControllerServicer):
    """Take, delete, list and describe snapshots."""

    def __init__(self, pools: Pools, locks: Locks, node: NodeFacts) -> None:
        self._pools = pools
        self._locks = locks
        self._node = node

    def CreateSnapshot(
        self, request: csi.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.CreateSnapshotResponse:
        read.required(request.source_volume_id, "source_volume_id")
        name = read.name(request.name)
        given = read.string_map(request.parameters, "parameters")
        steady = parameters.steady(given)
        snapshot_id = ids.object_id(name, self._node.id)
        with self._locks.hold(snapshot_key(snapshot_id)):
            if found := self._pools.find_snapshot(snapshot_id):
                _, snapshot = found
                self._compare_snapshot(snapshot, request.source_volume_id)
            else:
                with self._locks.share(request.source_volume_id):
                    pool, volume = self._pools.need(request.source_volume_id)
                    member = Member(
                        pool=pool,
                        volume=volume,
                        id=snapshot_id,
                        name=name,
                        parameters=given,
                        steady=steady,
                    )
                    snapshot = take(self._pools, member)
        return csi.CreateSnapshotResponse(snapshot=reply.snapshot(snapshot))

    def _compare_snapshot(self, snapshot: Snapshot, volume_id: str) -> None:
        """Refuse a request that the existing snapshot of its name does not satisfy."""
        if snapshot.volume.id != volume_id:
            raise AlreadyExists(
                f"snapshot {snapshot.name!r} exists, of volume {snapshot.volume.id}; use another "
                "name"
            )
        found = self._pools.find(volume_id)
        if found and found[1].created != snapshot.volume.created:
            raise AlreadyExists(
                f"snapshot {snapshot.name!r} exists, of an earlier volume {volume_id} that was "
                "deleted; use another name"
            )

    def DeleteSnapshot(
        self, request: csi.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.DeleteSnapshotResponse:
        read.required(request.snapshot_id, "snapshot_id")
        with self._locks.hold(snapshot_key(request.snapshot_id)):
            if found := self._pools.find_snapshot(request.snapshot_id, sure=True):
                pool, snapshot = found
                if snapshot.group and self._pools.find_group(snapshot.group):
                    raise InvalidArgument(
                        f"snapshot {snapshot.id} belongs to the group snapshot {snapshot.group}; "
                        "delete that"
                    )
                pool.forget(snapshot.id)
            elif node := self._pools.elsewhere(request.snapshot_id):
                raise FailedPrecondition(
                    f"snapshot {request.snapshot_id} is on node {node}, this is node "
                    f"{self._pools.node}; ask the driver there"
                )
        return csi.DeleteSnapshotResponse()

    def ListSnapshots(
        self, request: csi.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> csi.ListSnapshotsResponse:
        size, after = read.page(request.max_entries, request.starting_token)
        if request.snapshot_id:
            found = self._pools.find_snapshot(request.snapshot_id, sure=True)
            every = iter([found[1]] if found and found[1].id > after else [])
        else:
            every = self._pools.snapshots(after)
        wanted = request.source_volume_id
        kind = csi.ListSnapshotsResponse
        entries = (
            (item.id, kind(entries=[kind.Entry(snapshot=reply.snapshot(item))]).SerializeToString())
            for item in every
            if not wanted or item.volume.id == wanted
        )
        return reply.page(kind, entries, size)

    def GetSnapshot(
        self, request: csi.GetSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.GetSnapshotResponse:
        read.required(request.snapshot_id, "snapshot_id")
        _, snapshot = self._pools.need_snapshot(request.snapshot_id)
        return csi.GetSnapshotResponse(snapshot=reply.snapshot(snapshot))
