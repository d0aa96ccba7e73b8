"""The GroupParts service: this node's parts of group snapshots over several nodes."""

import contextlib
import math
from collections.abc import Generator, Iterator

import grpc
import structlog

from pycsi.model import ids, parameters
from pycsi.model.errors import (
    CsiError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Group
from pycsi.model.trace import phase
from pycsi.pool.freezing import FreezeWindow
from pycsi.proto import groups_pb2 as groups
from pycsi.proto import groups_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.services.steps import Steps
from pycsi.volumes.group_snapshots import GroupSnapshots, NewGroup
from pycsi.volumes.locks import Locks, group_key
from pycsi.volumes.pools import Pools
from pycsi.volumes.taking import Take

log = structlog.get_logger()

_Answers = Iterator[groups.TakePartResponse]
_ANSWER = groups.TakePartResponse


class GroupParts(groups_pb2_grpc.GroupPartsServicer):
    """Take, finish, describe and delete the parts that this node has of group snapshots."""

    def __init__(
        self, capabilities: DriverCapabilities, pools: Pools, locks: Locks, node: NodeInfo
    ) -> None:
        self._pools = pools
        self._locks = locks
        self._groups = GroupSnapshots(pools, locks)
        self._snapshots_at = node if capabilities.snapshot_topology else None

    def TakePart(
        self, request_iterator: Iterator[groups.TakePartRequest], context: grpc.ServicerContext
    ) -> _Answers:
        steps = Steps(request_iterator)
        new = self._read(steps.take("begin"))
        with self._locks.hold(group_key(new.id)):
            self._groups.refuse_other(new)
            if found := self._existing(new):
                last = _ANSWER(found=self._part(found))
            else:
                with self._groups.taking(new) as begun:
                    created = yield from self._capture(begun, steps)
                    part = self._groups.prepare(new, begun, created)
                yield from self._prepared(part, steps)
                last = _ANSWER(committed=self._part(self._committed(part)))
        yield last  # without the lock: whoever reads it may go on at once

    def _read(self, message: groups.TakePartRequest) -> NewGroup:
        """Return the group of a `begin`: it has to have volumes here, and on other nodes."""
        begin = message.begin
        read.require(begin, "attempt", "source_volume_ids")
        name = read.name(begin.name)
        given = read.string_map(begin.parameters, "parameters")
        parameters.point_in_time(given)
        sources = read.group_sources(begin.source_volume_ids)
        nodes = ids.nodes_of(sources)
        if len(nodes) == 1 or self._pools.node not in nodes:
            raise InvalidArgument(
                f"source_volume_ids: they are on {', '.join(nodes)}; a part is of volumes "
                f"on node {self._pools.node} and on others"
            )
        group_id = ids.id_at(name, nodes[0])
        if message.group_snapshot_id != group_id:
            raise InvalidArgument(f"group_snapshot_id: that of this group is {group_id}")
        return NewGroup(
            id=group_id, name=name, sources=sources, parameters=given, attempt=begin.attempt
        )

    def _existing(self, new: NewGroup) -> Group | None:
        """Return the group if it exists already, or another node's part of it that is in doubt.

        Of the coordinator's part the take has ended without a commit, so it is undone.
        """
        found = self._pools.find_group(new.id)
        if found is None or (found.prepared and not found.at_coordinator):
            return found
        if found.prepared:
            self._groups.delete(found)
            return None
        new.refuse_different(found)
        if not found.at_coordinator:
            raise FailedPrecondition(
                f"this node has its part of group snapshot {new.id}, and {ids.node_of(new.id)} has "
                "none; delete the group snapshot, or use another name"
            )
        return found

    def _capture(
        self, begun: Take, steps: Steps[groups.TakePartRequest]
    ) -> Generator[groups.TakePartResponse, None, float]:
        """Take the steps to the end of the freeze; return the point in time, in seconds."""
        with begun.prepared():
            begun.write_back()  # or the other nodes would be frozen for as long as that takes here
            yield _ANSWER(ready=_ANSWER.Ready(unfreezable_volume_ids=begun.unfreezable()))
            with phase("wait"):
                steps.take("freeze")
            with begun.held_still() as window:
                yield _ANSWER(frozen=_ANSWER.Frozen())
                created = _await(steps, "capture", begun, window).capture.created
                if not (math.isfinite(created) and created > 0):
                    raise InvalidArgument("created: no point in time")
                begun.capture(window)
                yield _ANSWER(captured=_ANSWER.Captured())
                _await(steps, "prepare", begun, window)
        return created

    def _prepared(self, part: Group, steps: Steps[groups.TakePartRequest]) -> _Answers:
        """Wait for the commit of a prepared part; the coordinator undoes its own if none comes."""
        try:
            yield _ANSWER(prepared=_ANSWER.Prepared())
            with phase("wait"):
                steps.take("commit")
        except BaseException:
            if part.at_coordinator:
                self._undo(part)
            raise

    def _committed(self, part: Group) -> Group:
        try:
            return self._groups.commit(part)
        except BaseException:
            # Nobody has been told that it was committed, and so nobody will be.
            if part.at_coordinator:
                self._undo(part)
            raise

    def _undo(self, part: Group) -> None:
        """Delete the coordinator's own part; if that fails, whoever asks for its decision will."""
        try:
            self._groups.delete(part)
        except (OSError, CsiError) as error:
            log.warning("a part of a group cannot be undone now", group=part.id, error=str(error))

    def GetPart(
        self, request: groups.GetPartRequest, context: grpc.ServicerContext
    ) -> groups.GetPartResponse:
        read.require(request, "group_snapshot_id")
        with self._locks.share(group_key(request.group_snapshot_id)):
            found = self._pools.find_group(request.group_snapshot_id, sure=True, part=True)
            return groups.GetPartResponse(part=self._part(found) if found else None)

    def _part(self, group: Group) -> groups.Part:
        members = [] if group.prepared else self._groups.snapshots(group)
        return groups.Part(
            source_volume_ids=group.sources,
            attempt=group.attempt or "",
            prepared=group.prepared,
            snapshots=[reply.snapshot(member, self._snapshots_at) for member in members],
        )

    def GetDecision(
        self, request: groups.GetDecisionRequest, context: grpc.ServicerContext
    ) -> groups.GetDecisionResponse:
        read.require(request, "group_snapshot_id", "attempt")
        self._pools.refuse_elsewhere("group snapshot", request.group_snapshot_id)
        with self._locks.hold(group_key(request.group_snapshot_id)):
            found = self._of_attempt(request)
            if found and found.prepared:
                # Its stream has ended without a commit. Deleted durably before anybody is told.
                self._groups.delete(found)
                found = None
        return groups.GetDecisionResponse(committed=found is not None)

    def _of_attempt(
        self,
        request: groups.GetDecisionRequest | groups.FinishPartRequest | groups.DeletePartRequest,
    ) -> Group | None:
        """Return the part of that attempt, or None."""
        found = self._pools.find_group(request.group_snapshot_id, sure=True, part=True)
        return found if found and found.attempt == request.attempt else None

    def FinishPart(
        self, request: groups.FinishPartRequest, context: grpc.ServicerContext
    ) -> groups.FinishPartResponse:
        read.require(request, "group_snapshot_id", "attempt")
        with self._locks.hold(group_key(request.group_snapshot_id)):
            found = self._of_attempt(request)
            if request.commit:
                if found is None:
                    raise NotFound(
                        f"this node has no part of group snapshot {request.group_snapshot_id} of "
                        "that attempt"
                    )
                part = self._groups.commit(found) if found.prepared else found
                return groups.FinishPartResponse(part=self._part(part))
            if found and not found.prepared:
                raise FailedPrecondition(f"group snapshot {found.id} is committed on this node")
            if found:
                self._groups.delete(found)
            return groups.FinishPartResponse()

    def DeletePart(
        self, request: groups.DeletePartRequest, context: grpc.ServicerContext
    ) -> groups.DeletePartResponse:
        read.require(request, "group_snapshot_id", "attempt")
        with self._locks.hold(group_key(request.group_snapshot_id)):
            if found := self._of_attempt(request):
                self._groups.delete(found)
        return groups.DeletePartResponse()

    def ListPrepared(
        self, request: groups.ListPreparedRequest, context: grpc.ServicerContext
    ) -> groups.ListPreparedResponse:
        kind = groups.ListPreparedResponse
        parts = {
            group.id: group.attempt
            for group in self._pools.groups()
            if group.prepared and not group.at_coordinator
        }
        return kind(
            entries=[
                kind.Entry(group_snapshot_id=group_id, attempt=attempt)
                for group_id, attempt in parts.items()
            ]
        )


def _await(
    steps: Steps[groups.TakePartRequest], name: str, begun: Take, window: FreezeWindow
) -> groups.TakePartRequest:
    """Return the next message while the volumes are held still.

    `FailedPrecondition` if the other nodes take longer than that may last.
    """
    with contextlib.suppress(TimeoutError), phase("wait"):
        arrived = steps.take(name, patience=begun.limit)
        if not window.over:
            return arrived
    raise FailedPrecondition(
        f"the copies on other nodes took longer than freeze-limit, {begun.limit:g} s, for which "
        "the filesystems on this node may be frozen; use pools on XFS or btrfs on all nodes, or "
        "raise the pool's freeze-limit"
    )
