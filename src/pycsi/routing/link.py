"""The connection to one node, over which RPCs are forwarded to it."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from pycsi.model.errors import CsiError, Unavailable
from pycsi.model.trace import Metadata
from pycsi.routing.certificates import KeyPair, node_name

NODE_KEY = "pycsi-node"
"""The metadata with the topology segment of the node that a request is for."""

_RESERVED = (NODE_KEY, "user-agent", "grpc-", ":")

_UNANSWERED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,  # by a node that stops; if the caller cancels nobody is told
        grpc.StatusCode.PERMISSION_DENIED,  # the node does not take this for the controller
    }
)
"""The codes of RPCs that the node has not answered: what an earlier attempt has done stays open."""

_OPTIONS = (
    # How large a reply can be is for the node to say, and for the sidecar to accept.
    ("grpc.max_receive_message_length", -1),
    # What the environment says of proxies is for others than the cluster's own addresses.
    ("grpc.enable_http_proxy", 0),
    # A node that has gone without closing its connections is noticed within 15 seconds.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # of a node that accepts data, but does not answer
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # An attempt to connect takes at most three seconds, and the next begins soon.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class NodeError(CsiError):
    """A node's own answer, which is forwarded with its status code."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """An RPC of a caller: the path of its method, its request, and its request as it was sent.

    `deadline` is in the event loop's time, and None if the caller has set none.
    """

    path: str
    request: Any
    data: bytes
    deadline: float | None
    metadata: Metadata

    def asking(self, path: str, request: Message) -> "Call":
        """Return another RPC, which is made for this one."""
        return Call(path, request, request.SerializeToString(), self.deadline, self.metadata)

    @property
    def remaining(self) -> float | None:
        """The seconds that are left until the deadline; None: any number."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


Forward = Callable[[Call, str | None], Awaitable[bytes]]
"""Sends a call to the node with a topology segment, or to any, and returns its encoded reply.

The errors are those of `NodeLink.send`.
"""


def open_channel(target: str, pair: KeyPair, driver_name: str) -> grpc.aio.Channel:
    """Return a channel to the node at `target`, an address and port, with mutual TLS."""
    credentials = grpc.ssl_channel_credentials(pair.authority, pair.key, pair.chain)
    name = ("grpc.ssl_target_name_override", node_name(driver_name))
    return grpc.aio.secure_channel(target, credentials, options=(*_OPTIONS, name))


class NodeLink:
    """One node's channel; `segment` is its topology segment, `target` its address and port."""

    def __init__(self, segment: str, target: str, channel: grpc.aio.Channel) -> None:
        self.segment = segment
        self.target = target
        self.channel = channel
        self._methods: dict[str, Any] = {}

    async def send(self, call: Call) -> bytes:
        """Return the node's reply to a unary RPC, encoded.

        `NodeError` if the node answers with an error, `Unavailable` if it does not answer.
        Cancelling this cancels the RPC.
        """
        method = self._methods.get(call.path)
        if method is None:
            method = self._methods[call.path] = self.channel.unary_unary(call.path)
        metadata = self._metadata(call)
        try:
            reply: bytes = await method(call.data, timeout=call.remaining, metadata=metadata)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise self.failure(error) from None
        except asyncio.CancelledError:
            self._check_open()
            raise
        return reply

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the node's replies to an RPC that answers with a stream; errors as in `send`.

        The node is asked for more only as they are taken (HTTP/2 flow control).
        """
        method: Any = self.channel.unary_stream(call.path)
        try:
            replies = method(call.data, timeout=call.remaining, metadata=self._metadata(call))
            try:
                async for reply in replies:
                    yield reply
            finally:
                replies.cancel()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise self.failure(error) from None
        except asyncio.CancelledError:
            self._check_open()
            raise

    def converse(self, call: Call, path: str) -> Any:
        """Begin the RPC `path` for `call`, with streams of bytes in both directions."""
        method: Any = self.channel.stream_stream(path)
        try:
            return method(timeout=call.remaining, metadata=self._metadata(call))
        except grpc.aio.UsageError as error:
            raise self.failure(error) from None

    def _metadata(self, call: Call) -> Metadata:
        kept = [item for item in call.metadata if not item[0].startswith(_RESERVED)]
        return (*kept, (NODE_KEY, self.segment))

    def failure(self, error: grpc.aio.AioRpcError | grpc.aio.UsageError) -> CsiError:
        """Return the error of an RPC that has failed, or whose channel has been closed."""
        if isinstance(error, grpc.aio.UsageError):
            return self._closed()
        code, details = error.code(), error.details() or "no reason given"
        if code in _UNANSWERED:
            return Unavailable(f"node {self.segment} at {self.target}: {details}")
        return NodeError(code, details)

    def _check_open(self) -> None:
        """Raise `Unavailable` if an RPC was cancelled because its channel was closed.

        gRPC tells that like the cancellation of the task, after which a caller gets no answer.
        """
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            raise self._closed() from None

    def _closed(self) -> Unavailable:
        return Unavailable(f"node {self.segment} is no longer at {self.target}; try again")
