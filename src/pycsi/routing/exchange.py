"""Passing the data of volumes on from one node to another: the client of the service Exchange."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import structlog

from pycsi.model import ids
from pycsi.model.errors import CsiError, Unavailable
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import exchange_pb2 as exchange
from pycsi.routing.conversation import Conversation, told
from pycsi.routing.link import Call, NodeLink
from pycsi.routing.nodes import Nodes

log = structlog.get_logger()

_SEND = "/pycsi.v1.Exchange/Send"
_RECEIVE = "/pycsi.v1.Exchange/Receive"
_PURPOSE = "copying data to another node"

Observed = Callable[[NodeLink, Call], contextlib.AbstractContextManager[Call]]
"""Has an RPC to a node counted and traced; yields it as it is to be sent."""


class Exchange:
    """Has a node make a volume of what another node sends, and keeps nothing of it.

    A copy may take longer than its caller waits, so it goes on without the caller: that one asks
    again, and is told ABORTED by the node that holds the name, until the volume is there.
    """

    def __init__(self, nodes: Nodes, observed: Observed) -> None:
        self._nodes = nodes
        self._observed = observed
        self._copies: set[asyncio.Task[bytes]] = set()

    async def create(self, call: Call, origin: str, target: str) -> bytes:
        """Have `target` make the volume of a CreateVolume request, whose source is on `origin`.

        Return the encoded reply. `NodeError` with the status of either node, `Unavailable` if one
        does not answer.
        """
        copy = asyncio.get_running_loop().create_task(self._created(call, origin, target))
        self._copies.add(copy)
        copy.add_done_callback(self._copies.discard)
        try:
            return await asyncio.shield(copy)
        except asyncio.CancelledError:
            name = call.request.name
            copy.add_done_callback(lambda ended: _log(ended, name, origin, target))
            raise

    @contextlib.asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """Give up the copies that are under way when the `with` block ends."""
        try:
            yield
        finally:
            for copy in self._copies:
                copy.cancel()
            await asyncio.gather(*self._copies, return_exceptions=True)

    async def _created(self, call: Call, origin: str, target: str) -> bytes:
        request = csi.CreateVolumeRequest()
        request.CopyFrom(call.request)
        request.ClearField("secrets")
        begin = exchange.ReceiveRequest(volume_id=ids.id_at(request.name, target), begin=request)
        async with self.receiving(call, target, begin) as making:
            answer = await answer_of(making)
            if answer.HasField("ready"):
                source = request.volume_content_source
                wanted = exchange.SendRequest(
                    snapshot_id=source.snapshot.snapshot_id,
                    source_volume_id=source.volume.volume_id,
                )
                answer = await self.pass_on(call, origin, wanted, making)
            return csi.CreateVolumeResponse(volume=answer.volume).SerializeToString()

    @contextlib.asynccontextmanager
    async def receiving(
        self, call: Call, node: str, begin: exchange.ReceiveRequest
    ) -> AsyncIterator[Conversation]:
        """Begin to have a node receive data; that is given up if the `with` block ends early."""
        link = await self._nodes.get(node)
        try:
            with self._observed(link, _endless(call, _RECEIVE, begin)) as sent:
                making = Conversation(link, sent, _RECEIVE, _PURPOSE)
                try:
                    await making.write(sent.data)
                    yield making
                finally:
                    await making.end()
        except Unavailable:
            await self._nodes.successor(link)  # for the next attempt
            raise

    async def pass_on(
        self, call: Call, origin: str, wanted: exchange.SendRequest, making: Conversation
    ) -> exchange.ReceiveResponse:
        """Pass on what a node sends as it is `wanted`, piece by piece, as fast as it is taken.

        Return the last answer of the node that takes it; if that refuses it, raise its error.
        """
        answer = asyncio.get_running_loop().create_task(answer_of(making))
        try:
            async with contextlib.aclosing(self._sent(call, origin, wanted)) as pieces:
                async for piece in pieces:
                    if answer.done() or not await making.write(piece):
                        break
            await making.close()
            last = await answer
            # It wanted no more before the end; now it raises the error.
            return await answer_of(making) if last.HasField("refused") else last
        except BaseException:
            await making.end()  # its status comes after all its messages, of which one is awaited
            raise
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    async def _sent(
        self, call: Call, node: str, wanted: exchange.SendRequest
    ) -> AsyncGenerator[bytes, None]:
        """Yield what a node sends, as it is to be passed on."""
        link = await self._nodes.get(node)
        try:
            with self._observed(link, _endless(call, _SEND, wanted)) as sent:
                async with contextlib.aclosing(link.stream(sent)) as pieces:
                    async for piece in pieces:
                        yield piece
        except Unavailable:
            await self._nodes.successor(link)
            raise
        except CsiError as error:
            raise told(node, error, _PURPOSE) from None


def _endless(call: Call, path: str, request: Any) -> Call:
    """Return another RPC for a caller, which does not end when that one waits no longer."""
    return dataclasses.replace(call.asking(path, request), deadline=None)


async def answer_of(making: Conversation) -> exchange.ReceiveResponse:
    """Return the next answer of a node that receives data; `Unavailable` if it has ended."""
    answer = await making.read()
    if answer is None:
        raise Unavailable(f"node {making.node}: it has ended the copy; try again")
    return exchange.ReceiveResponse.FromString(answer)


def _log(copy: "asyncio.Task[bytes]", name: str, origin: str, target: str) -> None:
    """Tell in the log how a copy has ended that nobody waits for any more."""
    if copy.cancelled():
        return
    place = {"volume": name, "source_node": origin, "node": target}
    if error := copy.exception():
        log.warning("a copy to another node has failed", **place, error=str(error))
    else:
        log.info("a copy to another node is complete", **place)
