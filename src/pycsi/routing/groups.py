"""Group snapshots: those on one node are forwarded, those on several are put together here."""

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

from pycsi.model import ids
from pycsi.model.errors import (
    CsiError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import groups_pb2 as groups
from pycsi.routing.link import Call, Forward
from pycsi.routing.nodes import Nodes
from pycsi.routing.parts import Parts
from pycsi.routing.settling import Settling, insist, own_call
from pycsi.routing.taking import GroupTake, WantedGroup

_LONGEST_TAKE = 600.0
"""Seconds for a take whose caller has set no deadline."""

_Found = dict[str, groups.Part]
"""The parts of a group, by the segments of their nodes."""


class GroupRouter:
    """Takes, deletes and describes group snapshots, on whatever nodes they are.

    All state is on the nodes; groups.proto tells how they and the controller work together.
    """

    def __init__(self, nodes: Nodes, forward: Forward) -> None:
        self._nodes = nodes
        self._forward = forward
        self._parts = Parts(forward)
        self.settling = Settling(nodes, self._parts)

    async def create(self, call: Call) -> bytes:
        """Return the encoded reply to CreateVolumeGroupSnapshot."""
        request = call.request
        sources = list(request.source_volume_ids)
        segments = {ids.node_of(volume_id) for volume_id in sources}
        if None in segments or len(segments) <= 1:
            # What is wrong with a malformed id, every node tells alike.
            return await self._forward(call, min(filter(None, segments), default=None))
        wanted = WantedGroup.of(request.name, sources, dict(request.parameters))
        found = await self._taken(_bounded(call), wanted)
        group = _group(wanted.id, found)
        return csi.CreateVolumeGroupSnapshotResponse(group_snapshot=group).SerializeToString()

    async def _taken(self, call: Call, wanted: WantedGroup) -> _Found:
        links = [await self._nodes.get(node) for node in wanted.nodes]
        take = GroupTake(wanted, self._parts)
        try:
            existing = await take.prepare(call, links)
        except BaseException:
            await take.end()
            self._settle(wanted.id, wanted.nodes)
            raise
        if existing is None:
            # From here on it is for the coordinator to say whether the group exists: that the
            # caller's deadline passes, or that it hangs up, stops nothing any more.
            return await asyncio.shield(self.settling.begin(self._committed(take, wanted)))
        await take.end()
        return await self._whole(call, wanted.id, existing)

    async def _committed(self, take: GroupTake, wanted: WantedGroup) -> _Found:
        """Commit the prepared parts, and return them; or raise the error if there is no group."""
        try:
            try:
                found = await take.commit()
            except CsiError:
                await take.end()
                decided = functools.partial(self._is_committed, wanted, take.attempt)
                if not await insist(decided):
                    raise
                found = {}
            finally:
                await take.end()
            for node in wanted.nodes:
                if node not in found:
                    ask = functools.partial(self._part, own_call, node, wanted.id, take.attempt)
                    found[node] = await insist(ask)
        except CsiError:
            self._settle(wanted.id, wanted.nodes)
            raise
        return found

    async def _is_committed(self, wanted: WantedGroup, attempt: str) -> bool:
        return await self._parts.is_committed(own_call(), wanted.nodes[0], wanted.id, attempt)

    def _settle(self, group_id: str, nodes: Iterable[str]) -> None:
        for node in nodes:
            self.settling.begin(self._settle_part(group_id, node))

    async def _settle_part(self, group_id: str, node: str) -> None:
        """Settle the part of a take that has failed, once the node does not work on it any more."""
        part = await insist(lambda: self._parts.get(own_call(), node, group_id))
        if part and part.prepared:
            await self.settling.settle_part(node, group_id, part.attempt)

    async def _whole(self, call: Call, group_id: str, coordinators: groups.Part) -> _Found:
        """Return all parts of a group of which the coordinator has committed its own.

        Parts that are still in doubt are committed by that.
        """
        coordinator, *others = ids.nodes_of(coordinators.source_volume_ids)
        parts = await asyncio.gather(
            *(self._part(lambda: call, node, group_id, coordinators.attempt) for node in others)
        )
        return {coordinator: coordinators, **dict(zip(others, parts, strict=True))}

    async def _part(
        self, make_call: Callable[[], Call], node: str, group_id: str, attempt: str
    ) -> groups.Part:
        """Return a node's part of a group that exists, after committing it if it is in doubt.

        `FailedPrecondition` if the part is gone: it is deleted before the coordinator's.
        """
        part = await self._parts.get(make_call(), node, group_id)
        if part is None or part.attempt != attempt:
            raise FailedPrecondition(
                f"group snapshot {group_id} was deleted in part: node {node} has no part of it any "
                "more; delete it again"
            )
        if part.prepared:
            return await self._parts.commit(make_call(), node, group_id, attempt)
        return part

    async def delete(self, call: Call) -> bytes:
        """Return the encoded reply to DeleteVolumeGroupSnapshot.

        Nothing is deleted unless all nodes with members answer. The coordinator's part goes last,
        so the call can be repeated wherever it ends.
        """
        group_id, given = call.request.group_snapshot_id, call.request.snapshot_ids
        coordinator, record = await self._record(call)
        if coordinator is None or _is_on(coordinator, record, given):
            return await self._forward(call, coordinator)
        if record:
            _check_members(group_id, record, given)
        nodes = ids.nodes_of(record.source_volume_ids) if record else [coordinator, *_nodes(given)]
        asked = sorted({*nodes} - {coordinator})
        answers = await asyncio.gather(*(self._parts.get(call, node, group_id) for node in asked))
        parts = {node: part for node, part in zip(asked, answers, strict=True) if part}
        group = record or next((part for part in parts.values() if not part.prepared), None)
        if group is None:
            self._settle(group_id, nodes)
        else:
            _check_members(group_id, group, given)
            await self._delete(call, group_id, group, parts)
            if record:
                await self._parts.delete(call, coordinator, group_id, record.attempt)
        return csi.DeleteVolumeGroupSnapshotResponse().SerializeToString()

    async def _delete(self, call: Call, group_id: str, group: groups.Part, parts: _Found) -> None:
        """Delete those of the parts that belong to a group, and to no other take of its name."""
        await asyncio.gather(
            *(
                self._parts.delete(call, node, group_id, group.attempt)
                for node, part in parts.items()
                if part.attempt == group.attempt
            )
        )

    async def get(self, call: Call) -> bytes:
        """Return the encoded reply to GetVolumeGroupSnapshot; never a group without all members."""
        group_id, given = call.request.group_snapshot_id, call.request.snapshot_ids
        coordinator, record = await self._record(call)
        if coordinator is None or _is_on(coordinator, record, given):
            return await self._forward(call, coordinator)
        if record is None:
            raise NotFound(f"there is no group snapshot {group_id!r}")
        _check_members(group_id, record, given)
        group = _group(group_id, await self._whole(call, group_id, record))
        return csi.GetVolumeGroupSnapshotResponse(group_snapshot=group).SerializeToString()

    async def _record(self, call: Call) -> tuple[str | None, groups.Part | None]:
        """Return the coordinator of a request's group, and what it has committed of it."""
        group_id = call.request.group_snapshot_id
        coordinator = ids.node_of(group_id)
        if coordinator is None:
            return None, None
        part = await self._parts.get(call, coordinator, group_id)
        return coordinator, None if part is None or part.prepared else part


def _bounded(call: Call) -> Call:
    """Return a call with a deadline: what it begins on the nodes must not last for ever."""
    latest = asyncio.get_running_loop().time() + _LONGEST_TAKE
    return call if call.deadline is not None else dataclasses.replace(call, deadline=latest)


def _is_on(node: str, record: groups.Part | None, snapshot_ids: Iterable[str]) -> bool:
    """Tell whether the coordinator knows all of a group: its record, or its absence, says so."""
    if record:
        return not record.attempt
    return _nodes(snapshot_ids) <= {node}


def _nodes(snapshot_ids: Iterable[str]) -> set[str]:
    """Return the nodes that ids name; one of another form belongs to no group."""
    return {node for item in snapshot_ids if (node := ids.node_of(item))}


def _check_members(group_id: str, group: groups.Part, snapshot_ids: Iterable[str]) -> None:
    """Raise `InvalidArgument` unless `snapshot_ids` are exactly the group's members."""
    members = [
        ids.member_id(group_id, volume_id, ids.node_of(volume_id) or "")
        for volume_id in group.source_volume_ids
    ]
    if set(snapshot_ids) != set(members):
        raise InvalidArgument(f"snapshot_ids: the members of {group_id} are {', '.join(members)}")


def _group(group_id: str, found: _Found) -> csi.VolumeGroupSnapshot:
    """Return a group with all its members, in the order of its volumes."""
    taken = {item.source_volume_id: item for part in found.values() for item in part.snapshots}
    sources: Sequence[str] = next(iter(found.values())).source_volume_ids
    members = [taken[volume_id] for volume_id in sources]
    return csi.VolumeGroupSnapshot(
        group_snapshot_id=group_id,
        snapshots=members,
        creation_time=members[0].creation_time,
        ready_to_use=True,
    )
