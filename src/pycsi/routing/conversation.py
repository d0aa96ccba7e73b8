"""An RPC to one node with streams in both directions."""

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio

from pycsi.model.errors import CsiError, FailedPrecondition, Unavailable
from pycsi.routing.link import Call, NodeError, NodeLink

_END = 5.0
"""Seconds for a node to undo what was begun, before an error is told."""

_BROKEN_OFF = "Internal error from Core"
"""What gRPC says if an RPC ends while a message is sent, for then it loses the status."""


class Conversation:
    """Messages to and from a node, encoded.

    Its errors are those of `NodeLink.send`, with the name of the node. `purpose` says what a node
    of an older version has no part in.
    """

    def __init__(self, link: NodeLink, call: Call, path: str, purpose: str) -> None:
        self.node = link.segment
        self._link = link
        self._purpose = purpose
        self._rpc: Any = link.converse(call, path)

    async def write(self, message: bytes) -> bool:
        """Send a message, once the node has room for it.

        Return False if the node has ended the RPC; then `read` tells why.
        """
        try:
            await self._rpc.write(message)
        except asyncio.InvalidStateError:
            return False
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise self._told(error) from None
        return True

    async def close(self) -> None:
        """Tell the node that this was the last message."""
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self._rpc.done_writing()

    async def read(self) -> bytes | None:
        """Return the node's next message; None if there is none any more."""
        try:
            answer = await self._rpc.read()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise self._told(error) from None
        return None if answer is grpc.aio.EOF else bytes(answer)

    async def end(self) -> None:
        """Give up, or let a complete RPC end; the node's locks are free afterwards."""
        try:
            async with asyncio.timeout(_END):
                await self.close()
                await self._rpc.code()
        except TimeoutError:
            pass
        finally:
            self._rpc.cancel()

    def _told(self, error: grpc.aio.AioRpcError | grpc.aio.UsageError) -> CsiError:
        if isinstance(error, grpc.aio.AioRpcError) and error.details() == _BROKEN_OFF:
            return Unavailable(f"node {self.node} has broken off; try again")
        return told(self.node, self._link.failure(error), self._purpose)


def told(node: str, error: CsiError, purpose: str) -> CsiError:
    """Return the error of a node as the caller of the controller gets it: with the node's name."""
    if not isinstance(error, NodeError):
        return error
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        return FailedPrecondition(
            f"the driver on node {node} is of a version that takes no part in {purpose}; update it"
        )
    return NodeError(error.code, f"node {node}: {error}")
