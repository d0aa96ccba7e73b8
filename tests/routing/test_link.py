"""What becomes of an RPC whose connection is given up."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import grpc.aio
import pytest

from pycsi.model.errors import Unavailable
from pycsi.routing.link import Call, NodeLink

PATH = "/csi.v1.Controller/DeleteVolume"

Sending = Callable[[NodeLink, Call], Coroutine[Any, Any, object]]


async def unary(link: NodeLink, call: Call) -> bytes:
    return await link.send(call)


async def streaming(link: NodeLink, call: Call) -> list[bytes]:
    return [reply async for reply in link.stream(call)]


async def begun(sending: Sending, port: int) -> tuple[NodeLink, "asyncio.Task[object]"]:
    """Begin an RPC to a port that never answers."""
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    link = NodeLink("a", "there", channel)
    task = asyncio.create_task(sending(link, Call(PATH, None, b"", None, ())))
    await asyncio.sleep(0.1)
    return link, task


@pytest.mark.parametrize("sending", [unary, streaming])
def test_closed_channel(sending: Sending) -> None:
    """An RPC that outlasts its channel ends with an error that its caller gets."""

    async def close(port: int) -> None:
        link, task = await begun(sending, port)
        await link.channel.close(grace=0.1)
        with pytest.raises(Unavailable, match="node a is no longer at there"):
            await task
        with pytest.raises(Unavailable, match="node a is no longer at there"):
            await sending(link, Call(PATH, None, b"", None, ()))

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(close(silent.getsockname()[1]))


@pytest.mark.parametrize("sending", [unary, streaming])
def test_cancelled_task(sending: Sending) -> None:
    """An RPC whose caller hangs up is cancelled, and not answered."""

    async def cancel(port: int) -> None:
        link, task = await begun(sending, port)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await link.channel.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(cancel(silent.getsockname()[1]))
