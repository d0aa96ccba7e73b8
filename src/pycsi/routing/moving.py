"""Moving volumes from one node to another; exchange.proto has the steps."""

import dataclasses
from collections.abc import AsyncGenerator
from typing import TypeVar

from google.protobuf.message import Message

from pycsi.model import ids
from pycsi.model.errors import CsiError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from pycsi.proto import exchange_pb2 as exchange
from pycsi.proto import transfers_pb2 as transfers
from pycsi.routing.conversation import told
from pycsi.routing.exchange import Exchange, answer_of
from pycsi.routing.link import Call, Forward, NodeError
from pycsi.routing.nodes import Nodes

_SERVICE = "/pycsi.v1.Exchange/"
_PURPOSE = "moving volumes to another node"

Answer = TypeVar("Answer", bound=Message)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Route:
    """The move of a volume: its id, that which it will have, and the nodes of both."""

    call: Call
    volume_id: str
    new_id: str
    source: str
    target: str

    @classmethod
    def of(cls, call: Call) -> "_Route":
        """Return the route that a request asks for; an error if there can be none."""
        volume_id, name = call.request.volume_id, call.request.to_node
        source, target = ids.node_of(volume_id), ids.segment(name)
        if not name:
            raise FailedPrecondition(
                "the controller moves volumes to other nodes; to another pool, the driver on the "
                "volume's node does: give its --endpoint"
            )
        if source is None:
            raise NotFound(f"there is no volume {volume_id!r}; give its id, which names its node")
        if source == target:
            raise InvalidArgument(
                f"volume {volume_id} is on node {source}; to move it to another pool there, give "
                "--to-pool alone, and the --endpoint of the driver on that node"
            )
        # The key of an id does not depend on the node.
        new_id = f"{volume_id.rpartition('@')[0]}@{target}"
        return cls(call=call, volume_id=volume_id, new_id=new_id, source=source, target=target)


class Moving:
    """Has two nodes move a volume, and keeps nothing of it; what was done stays with them."""

    def __init__(self, nodes: Nodes, exchange_: Exchange, forward: Forward) -> None:
        self._nodes = nodes
        self._exchange = exchange_
        self._forward = forward

    async def move(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the encoded replies to Move. Errors as of CreateVolume with a source elsewhere."""
        route, prepare = _Route.of(call), call.request.prepare
        await self._nodes.get(route.target)
        try:
            found = await self._depart(route, mark=False)
        except NodeError as missing:
            if missing.code is not NotFound.code or prepare:
                raise
            yield _ended(await self._moved_before(route, missing))
            return
        if not found.left:
            if prepare or found.in_use:
                yield _step(f"copying to node {route.target}, while the volume may be used")
                await self._copy(route, found, final=False)
            if prepare:
                yield _ended(None)
                return
            yield _step(f"copying what has changed to node {route.target}")
            found = await self._copy(route, found, final=True)
            yield _step(f"leaving node {route.source}")
            leave = exchange.LeaveRequest(volume_id=route.volume_id, point=found.point)
            await self._ask(route, route.source, "Leave", leave, exchange.LeaveResponse)
        settled = await self._settle(route, found.point)
        discard = exchange.DiscardRequest(volume_id=route.volume_id)
        await self._ask(route, route.source, "Discard", discard, exchange.DiscardResponse)
        yield _ended(settled)

    async def _moved_before(self, route: _Route, missing: NodeError) -> transfers.Description:
        """Return a volume that has moved already; raise that it is `missing` if none has."""
        try:
            return await self._settle(route, "")
        except NodeError as error:
            if error.code is NotFound.code:
                raise missing from None
            raise

    async def _copy(
        self, route: _Route, found: exchange.DepartResponse, *, final: bool
    ) -> exchange.DepartResponse:
        """Have the target receive the volume: as it is in a snapshot, or finally, as it departs.

        Only when the target is ready, it is marked as one that departs. Return how it is then.
        """
        arrival = exchange.Arrival(
            volume=found.description.request,
            content=found.description.content,
            original=found.original,
        )
        if pool := route.call.request.pool:
            arrival.volume.parameters["pool"] = pool
        begin = exchange.ReceiveRequest(volume_id=route.new_id, arrival=arrival)
        async with self._exchange.receiving(route.call, route.target, begin) as making:
            there = (await answer_of(making)).ready
            if final:
                found = await self._depart(route, mark=True)
                if there.complete and there.point == found.point:
                    return found
            point = found.point if final else ""
            # What was cut off on its way to another point gets there first.
            nearer = there.toward if there.toward != point else ""
            wanted = exchange.SendRequest(
                source_volume_id=route.volume_id,
                departing=exchange.Departing(
                    to_node=route.target, point=nearer or point, since=there.point
                ),
            )
            await self._exchange.pass_on(route.call, route.source, wanted, making)
        return await self._copy(route, found, final=True) if final and nearer else found

    async def _depart(self, route: _Route, *, mark: bool) -> exchange.DepartResponse:
        request = exchange.DepartRequest(volume_id=route.volume_id, to_node=route.target, mark=mark)
        return await self._ask(route, route.source, "Depart", request, exchange.DepartResponse)

    async def _settle(self, route: _Route, point: str) -> transfers.Description:
        request = exchange.SettleRequest(
            volume_id=route.new_id, original_id=route.volume_id, point=point
        )
        return await self._ask(route, route.target, "Settle", request, transfers.Description)

    async def _ask(
        self, route: _Route, node: str, method: str, request: Message, kind: type[Answer]
    ) -> Answer:
        call = dataclasses.replace(route.call.asking(f"{_SERVICE}{method}", request), deadline=None)
        try:
            return kind.FromString(await self._forward(call, node))
        except CsiError as error:
            raise told(node, error, _PURPOSE) from None

    async def cancel(self, call: Call) -> bytes:
        """Have a volume stay, and what has arrived of it deleted; return the encoded reply.

        `FailedPrecondition` if it has left. If the target is not there, it stays all the same.
        """
        route = _Route.of(call)
        try:
            point = await self._abandon(route, "")
        except Unavailable as error:
            await self._stay(route)
            raise Unavailable(
                f"volume {route.volume_id} stays where it is, but what has arrived of it cannot be "
                f"deleted now: {error}; repeat the command when the node is there"
            ) from None
        await self._stay(route)
        # A complete one may be deleted only now that the volume will not leave at its point.
        if point and await self._abandon(route, point):
            raise FailedPrecondition(
                f"volume {route.volume_id} is being moved by another command; try again"
            )
        return transfers.CancelMoveResponse().SerializeToString()

    async def _stay(self, route: _Route) -> None:
        request = exchange.StayRequest(volume_id=route.volume_id)
        await self._ask(route, route.source, "Stay", request, exchange.StayResponse)

    async def _abandon(self, route: _Route, point: str) -> str:
        request = exchange.AbandonRequest(volume_id=route.new_id, point=point)
        answer = await self._ask(route, route.target, "Abandon", request, exchange.AbandonResponse)
        return str(answer.point)


def _step(what: str) -> bytes:
    return transfers.MoveResponse(step=what).SerializeToString()


def _ended(moved: transfers.Description | None) -> bytes:
    ended = transfers.MoveResponse.Ended(moved=moved)
    return transfers.MoveResponse(ended=ended).SerializeToString()
