"""The GroupController service: snapshots of several volumes at one point in time."""

import contextlib
from collections.abc import Iterable, Sequence

import grpc

from pycsi.model import ids, parameters
from pycsi.model.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
)
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Group
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.locks import Locks, group_key, snapshot_key
from pycsi.volumes.pools import Pools
from pycsi.volumes.snapshots import NewSnapshot, delete_group, take_group


class GroupController(csi_pb2_grpc.GroupControllerServicer):
    """Take, delete and describe group snapshots."""

    def __init__(
        self, capabilities: DriverCapabilities, pools: Pools, locks: Locks, node: NodeInfo
    ) -> None:
        self._pools = pools
        self._locks = locks
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
        _refuse_repeated(request.source_volume_ids)
        given = read.string_map(request.parameters, "parameters")
        parameters.point_in_time(given)
        group_id = ids.object_id(name, self._node.id)
        with self._locks.hold(group_key(group_id)):
            if found := self._pools.find_group(group_id):
                _refuse_different(found, request)
            else:
                found = self._take(group_id, name, request.source_volume_ids, given)
            return csi.CreateVolumeGroupSnapshotResponse(group_snapshot=self._reply(found))

    def _take(
        self, group_id: str, name: str, volume_ids: Iterable[str], given: dict[str, str]
    ) -> Group:
        with contextlib.ExitStack() as held:
            snapshots = []
            for volume_id in volume_ids:
                member_id = ids.member_id(group_id, volume_id, self._node.id)
                held.enter_context(self._locks.share(volume_id))
                held.enter_context(self._locks.hold(snapshot_key(member_id)))
                pool, volume = self._pools.need(volume_id)
                snapshots.append(
                    NewSnapshot(
                        pool=pool,
                        volume=volume,
                        id=member_id,
                        name=member_id,
                        parameters=given,
                        point_in_time=True,
                        group=group_id,
                    )
                )
            return take_group(self._pools, snapshots, group_id=group_id, name=name)

    def _reply(self, group: Group) -> csi.VolumeGroupSnapshot:
        members = [self._pools.need_snapshot(member)[1] for member in group.members]
        return reply.group(group, members, self._snapshots_at)

    def DeleteVolumeGroupSnapshot(
        self, request: csi.DeleteVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.DeleteVolumeGroupSnapshotResponse:
        read.require(request, "group_snapshot_id")
        with self._locks.hold(group_key(request.group_snapshot_id)), contextlib.ExitStack() as held:
            if group := self._pools.find_group(request.group_snapshot_id, sure=True):
                _check_members(group, request.snapshot_ids)
                for member in group.members:
                    held.enter_context(self._locks.hold(snapshot_key(member)))
                delete_group(self._pools, group)
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
        _check_members(group, request.snapshot_ids)
        return csi.GetVolumeGroupSnapshotResponse(group_snapshot=self._reply(group))


def _refuse_repeated(volume_ids: Sequence[str]) -> None:
    for number, volume_id in enumerate(volume_ids):
        if not volume_id:
            raise InvalidArgument(f"source_volume_ids[{number}] is missing")
        if list(volume_ids).count(volume_id) > 1:
            raise InvalidArgument(f"source_volume_ids: {volume_id} is there more than once")


def _refuse_different(group: Group, request: csi.CreateVolumeGroupSnapshotRequest) -> None:
    """Raise `AlreadyExists` unless the existing group snapshot matches the request."""
    same_volumes = set(group.sources) == set(request.source_volume_ids)
    before = parameters.without_orchestrator_keys(group.parameters)
    now = parameters.without_orchestrator_keys(request.parameters)
    if not same_volumes or before != now:
        other = "parameters" if same_volumes else f"volumes ({', '.join(group.sources)})"
        raise AlreadyExists(
            f"group snapshot {group.name!r} exists, with other {other}; use another name"
        )


def _check_members(group: Group, snapshot_ids: Sequence[str]) -> None:
    """Raise `InvalidArgument` unless `snapshot_ids` are exactly the group's members."""
    if set(snapshot_ids) != set(group.members):
        raise InvalidArgument(
            f"snapshot_ids: the members of {group.id} are {', '.join(group.members)}"
        )
