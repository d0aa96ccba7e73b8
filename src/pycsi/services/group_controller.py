"""The GroupController service: snapshots of several volumes at one point in time."""

from collections.abc import Sequence

import grpc

from pycsi.model import ids, parameters
from pycsi.model.errors import FailedPrecondition, InvalidArgument, NotFound
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Group
from pycsi.model.trace import about
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.group_snapshots import GroupSnapshots, NewGroup, undecided
from pycsi.volumes.locks import Locks, group_key
from pycsi.volumes.pools import Pools


class GroupController(csi_pb2_grpc.GroupControllerServicer):
    """Take, delete and describe group snapshots."""

    def __init__(
        self, capabilities: DriverCapabilities, pools: Pools, locks: Locks, node: NodeInfo
    ) -> None:
        self._pools = pools
        self._locks = locks
        self._groups = GroupSnapshots(pools, locks)
        self._node = node
        self._snapshots_at = node if capabilities.snapshot_topology else None

    def GroupControllerGetCapabilities(
        self, request: csi.GroupControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.GroupControllerGetCapabilitiesResponse:
        return reply.group_controller_capabilities()

    def CreateVolumeGroupSnapshot(
        self, request: csi.CreateVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.CreateVolumeGroupSnapshotResponse:
        name = read.name(request.name)
        read.require(request, "source_volume_ids")
        sources = read.group_sources(request.source_volume_ids)
        given = read.string_map(request.parameters, "parameters")
        parameters.point_in_time(given)
        new = NewGroup(
            id=ids.object_id(name, self._node.id),
            name=name,
            sources=sources,
            parameters=given,
        )
        about(group_snapshot_id=new.id)
        with self._locks.hold(group_key(new.id)):
            self._groups.refuse_other(new)
            if found := self._pools.find_group(new.id):
                if found.prepared:
                    raise undecided(found)
                new.refuse_different(found)
            else:
                found = self._groups.take(new)
            return csi.CreateVolumeGroupSnapshotResponse(group_snapshot=self._reply(found))

    def _reply(self, group: Group) -> csi.VolumeGroupSnapshot:
        return reply.group(group, self._groups.snapshots(group), self._snapshots_at)

    def DeleteVolumeGroupSnapshot(
        self, request: csi.DeleteVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.DeleteVolumeGroupSnapshotResponse:
        read.require(request, "group_snapshot_id")
        with self._locks.hold(group_key(request.group_snapshot_id)):
            if group := self._pools.find_group(request.group_snapshot_id, sure=True):
                _refuse_part(group)
                _check_members(group, request.snapshot_ids)
                self._groups.delete(group)
            else:
                self._pools.refuse_elsewhere("group snapshot", request.group_snapshot_id)
        return csi.DeleteVolumeGroupSnapshotResponse()

    def GetVolumeGroupSnapshot(
        self, request: csi.GetVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.GetVolumeGroupSnapshotResponse:
        read.require(request, "group_snapshot_id")
        group = self._pools.find_group(request.group_snapshot_id, sure=True)
        if group is None:
            raise NotFound(
                f"there is no group snapshot {request.group_snapshot_id!r} on node "
                f"{self._pools.node}"
            )
        _refuse_part(group)
        _check_members(group, request.snapshot_ids)
        return csi.GetVolumeGroupSnapshotResponse(group_snapshot=self._reply(group))


def _refuse_part(group: Group) -> None:
    """Raise `FailedPrecondition` for a part of a group over several nodes: it is not the group."""
    if group.attempt is not None:
        raise FailedPrecondition(
            f"group snapshot {group.id} has members on several nodes; ask the driver's controller"
        )


def _check_members(group: Group, snapshot_ids: Sequence[str]) -> None:
    """Raise `InvalidArgument` unless `snapshot_ids` are exactly the group's members."""
    if set(snapshot_ids) != set(group.members):
        raise InvalidArgument(
            f"snapshot_ids: the members of {group.id} are {', '.join(group.members)}"
        )
