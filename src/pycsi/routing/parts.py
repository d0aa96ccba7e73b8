"""Asking nodes about their parts of group snapshots: the client of the service GroupParts."""

import dataclasses
from typing import TypeVar

from google.protobuf.message import Message

from pycsi.model import trace
from pycsi.model.errors import CsiError, Unavailable
from pycsi.proto import groups_pb2 as groups
from pycsi.routing.conversation import Conversation, told
from pycsi.routing.link import Call, Forward, NodeError, NodeLink

Answer = TypeVar("Answer", bound=Message)

_SERVICE = "/pycsi.v1.GroupParts"

_PURPOSE = "group snapshots over several nodes"


class Parts:
    """The parts of group snapshots on all nodes. Every method names the node that it asks.

    `NodeError` with the node's own status, `Unavailable` if it does not answer; both name the node.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    async def get(self, call: Call, node: str, group_id: str) -> groups.Part | None:
        """Return a node's part of a group, or None if it has none."""
        request = groups.GetPartRequest(group_snapshot_id=group_id)
        answer = await self._ask(call, node, "GetPart", request, groups.GetPartResponse)
        return answer.part if answer.HasField("part") else None

    async def is_committed(self, call: Call, node: str, group_id: str, attempt: str) -> bool:
        """Tell whether the coordinator `node` has committed an attempt; if not it never will."""
        request = groups.GetDecisionRequest(group_snapshot_id=group_id, attempt=attempt)
        answer = await self._ask(call, node, "GetDecision", request, groups.GetDecisionResponse)
        return answer.committed

    async def commit(self, call: Call, node: str, group_id: str, attempt: str) -> groups.Part:
        """Commit a node's part, as the coordinator has; return it."""
        request = groups.FinishPartRequest(group_snapshot_id=group_id, attempt=attempt, commit=True)
        answer = await self._ask(call, node, "FinishPart", request, groups.FinishPartResponse)
        return answer.part

    async def undo(self, call: Call, node: str, group_id: str, attempt: str) -> None:
        """Undo a node's part, which the coordinator has not committed."""
        request = groups.FinishPartRequest(group_snapshot_id=group_id, attempt=attempt)
        await self._ask(call, node, "FinishPart", request, groups.FinishPartResponse)

    async def delete(self, call: Call, node: str, group_id: str, attempt: str) -> None:
        """Delete a node's part, whether it is committed or not."""
        request = groups.DeletePartRequest(group_snapshot_id=group_id, attempt=attempt)
        await self._ask(call, node, "DeletePart", request, groups.DeletePartResponse)

    async def prepared(self, call: Call, node: str) -> list[tuple[str, str]]:
        """Return the group ids and attempts of the parts that are in doubt on a node."""
        request = groups.ListPreparedRequest()
        answer = await self._ask(call, node, "ListPrepared", request, groups.ListPreparedResponse)
        return [(entry.group_snapshot_id, entry.attempt) for entry in answer.entries]

    async def _ask(
        self, call: Call, node: str, name: str, request: Message, kind: type[Answer]
    ) -> Answer:
        try:
            reply = await self._forward(call.asking(f"{_SERVICE}/{name}", request), node)
        except NodeError as error:
            raise told(node, error, _PURPOSE) from None
        return kind.FromString(reply)


class PartStream:
    """The take of one node's part, step by step."""

    def __init__(self, link: NodeLink, call: Call) -> None:
        self.node = link.segment
        path = f"{_SERVICE}/TakePart"
        self._sending = trace.current().sending(path, link.segment, call.metadata)
        self._failure: CsiError | None = None
        sent = dataclasses.replace(call, metadata=self._sending.metadata)
        try:
            self._rpc = Conversation(link, sent, path, _PURPOSE)
        except CsiError as error:
            self._sending.ended(error)
            raise

    async def step(self, request: groups.TakePartRequest) -> groups.TakePartResponse:
        """Ask for a step, and return the node's answer; errors as those of `Parts`."""
        try:
            await self._rpc.write(request.SerializeToString())
            answer = await self._rpc.read()
            if answer is None:
                raise Unavailable(f"node {self.node}: it has ended the take; try again")
        except CsiError as error:
            self._failure = error
            raise
        return groups.TakePartResponse.FromString(answer)

    async def end(self) -> None:
        """Give up the take, or let a complete one end; the node's locks are free afterwards."""
        try:
            await self._rpc.end()
        finally:
            self._sending.ended(self._failure)
