"""The interceptor around every RPC: admission, status code, log line and metrics.

This is the only place where exceptions become status codes.
"""

import contextlib
import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from pycsi.model.errors import (
    ERRNO_CODES,
    Aborted,
    CsiError,
    Unavailable,
    Unimplemented,
)
from pycsi.proto import csi_pb2_grpc
from pycsi.server.redaction import redacted

log = structlog.get_logger()

_IDENTIFYING = (
    "volume_id",
    "name",
    "node_id",
    "source_volume_id",
    "snapshot_id",
    "group_snapshot_id",
    "base_snapshot_id",
    "target_snapshot_id",
    "target_path",
)
_ROUTINE = frozenset({"Probe"})
"""RPCs called every few seconds: separate threads, and successes logged at debug level only."""

_STREAMS = 16
"""Maximum number of concurrent streams: each occupies a thread for as long as its reader takes."""

_LONGEST_MESSAGE = 1024
_IDENTITY = "csi.v1.Identity"
_DONE = grpc.StatusCode.OK, ""

Method = Callable[[Any, grpc.ServicerContext], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Admission = Callable[[], contextlib.AbstractContextManager[None]]


class Observer(Protocol):
    """Counts an RPC by method and name of the status code, with its duration in seconds."""

    def __call__(self, method: str, code: str, seconds: float) -> None: ...


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Return the status code and message for an exception of an RPC.

    The code is never UNKNOWN, and the message never empty. The message is sent in an HTTP/2 header,
    so it is cut to 1024 bytes.
    """
    message = _cut(str(error) or type(error).__name__)
    if isinstance(error, CsiError):
        return error.code, message
    if isinstance(error, DecodeError):
        return grpc.StatusCode.INVALID_ARGUMENT, (
            "the request cannot be read as the message that this method takes; send what csi.proto "
            "describes"
        )
    if isinstance(error, GeneratorExit):
        return grpc.StatusCode.CANCELLED, "the caller of a stream has hung up"
    if isinstance(error, OSError) and error.errno in ERRNO_CODES:
        return ERRNO_CODES[error.errno], message
    return grpc.StatusCode.INTERNAL, message


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:_LONGEST_MESSAGE].decode(errors="ignore")


@functools.cache
def _identifying(kind: Descriptor) -> tuple[str, ...]:
    """Return the fields of a request type that identify the object of the request."""
    return tuple(field for field in _IDENTIFYING if field in kind.fields_by_name)


def _encoder(encode: Callable[[Message], bytes]) -> Callable[[Message | bytes], bytes]:
    """Return `encode`, passing through replies that are encoded already."""
    return lambda reply: reply if isinstance(reply, bytes) else encode(reply)


def _refuse(name: str, *_: object) -> NoReturn:
    """Answer a method that the driver does not advertise."""
    raise Unimplemented(
        f"{name} is not among the capabilities of this driver's --mode and --csi-version"
    )


class _Rpc(NamedTuple):
    """A method of a service: `decode` reads its request, `admitted` raises if it is refused."""

    name: str
    admitted: Admission
    decode: Callable[[bytes], Message]
    method: Method


def _is_generated(handler: Handler) -> bool:
    """Tell whether a handler is the one that the generated base class has: it serves nothing."""
    method = handler.unary_stream or handler.unary_unary
    return method.__module__ == csi_pb2_grpc.__name__


class _UnaryHandler(functools.partial[Any]):
    """The handler of a unary method; gRPC runs it on `experimental_thread_pool` if that is set."""

    experimental_thread_pool: ThreadPoolExecutor


class Interceptor:
    """Stands in for the `grpc.Server` when services are added, and wraps each method once.

    A `grpc.ServerInterceptor` would look up the method at every call. At most `most` RPCs are
    admitted at a time, besides those of Identity. Probe runs on the threads of `probers`.
    """

    def __init__(
        self,
        server: grpc.Server,
        unimplemented: frozenset[str],
        ready: threading.Event,
        most: int,
        observe: Observer,
        *,
        probers: ThreadPoolExecutor,
    ) -> None:
        self._server = server
        self._probers = probers
        self._unimplemented = unimplemented
        self._ready = ready
        self._slots = threading.Semaphore(most)
        self._streams = threading.Semaphore(_STREAMS)
        self._observe = observe
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)
        self._logger = log.bind()  # bound once: structlog's lazy proxy binds at each call
        self._debugging = self._logger.is_enabled_for(logging.DEBUG)

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Ignore generic handlers: methods are added by name, and gRPC refuses all others."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add a service's methods, as the generated `add_…_to_server` does.

        A service can be added in parts: of each part, the methods that it defines itself are added.
        """
        wrapped = {
            name: self._wrapped(service, name, item)
            for name, item in handlers.items()
            if not _is_generated(item)
        }
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrapped(self, service: str, name: str, handler: Handler) -> Handler:
        method = handler.unary_stream or handler.unary_unary
        decode, encode = handler.request_deserializer, handler.response_serializer
        if method is None or decode is None or encode is None:
            raise TypeError(f"{name} takes a stream or no message, which no method of CSI does")
        admitted: Admission = functools.partial(
            self._admitted, self._slots, "too many operations are under way; try again"
        )
        if service == _IDENTITY:
            admitted = contextlib.nullcontext
        if name in self._unimplemented:
            admitted, method = contextlib.nullcontext, functools.partial(_refuse, name)
        rpc = _Rpc(name, admitted, decode, method)
        # No deserializer, so that gRPC hands over the bytes: it answers its failure with INTERNAL.
        if handler.response_streaming:
            streams = functools.partial(self._stream, rpc)
            return grpc.unary_stream_rpc_method_handler(streams, None, _encoder(encode))
        answers = _UnaryHandler(self._call, rpc)
        if name in _ROUTINE:
            answers.experimental_thread_pool = self._probers
        return grpc.unary_unary_rpc_method_handler(answers, None, _encoder(encode))

    @contextlib.contextmanager
    def _admitted(self, slots: threading.Semaphore, refusal: str) -> Iterator[None]:
        """Take one of the `slots` for the `with` block.

        `Unavailable` before the driver is ready, `Aborted` with `refusal` if no slot is free.
        """
        if not self._ready.is_set():
            raise Unavailable("the driver is starting; try again")
        if not slots.acquire(blocking=False):
            raise Aborted(refusal)
        try:
            yield
        finally:
            slots.release()

    def _call(self, rpc: _Rpc, data: bytes, context: grpc.ServicerContext) -> Message | bytes:
        start = time.perf_counter()
        request = None
        try:
            request = rpc.decode(data)
            with rpc.admitted():
                response: Message | bytes = rpc.method(request, context)
        except Exception as error:  # noqa: BLE001  (every exception becomes a status here)
            context.abort(*self._report(rpc.name, request, start, error))
        self._report(rpc.name, request, start)
        return response

    def _stream(self, rpc: _Rpc, data: bytes, context: grpc.ServicerContext) -> Iterator[Message]:
        start = time.perf_counter()
        request = None
        busy = f"{_STREAMS} streams are open already; try again"
        try:
            request = rpc.decode(data)
            with rpc.admitted(), self._admitted(self._streams, busy):
                yield from rpc.method(request, context)
        except GeneratorExit as error:
            self._report(rpc.name, request, start, error)
            raise
        except Exception as error:  # noqa: BLE001
            context.abort(*self._report(rpc.name, request, start, error))
        self._report(rpc.name, request, start)

    def _report(
        self,
        name: str,
        request: Message | None,
        start: float,
        failure: BaseException | None = None,
    ) -> tuple[grpc.StatusCode, str]:
        """Count an RPC that began at `start`, log it, and return its status.

        `request` is None if it could not be decoded.
        """
        seconds = time.perf_counter() - start
        code, message = status_of(failure) if failure else _DONE
        self._observe(name, code.name, seconds)
        number = next(self._numbers)
        level = logging.DEBUG if name in _ROUTINE and not failure else logging.INFO
        if level == logging.DEBUG and not self._debugging:
            return code, message
        about: dict[str, Any] = {}
        if request is not None:
            fields = _identifying(request.DESCRIPTOR)
            about = {field: _cut(value) for field in fields if (value := getattr(request, field))}
        about["code"] = code.name
        about["duration_ms"] = round(seconds * 1000, 3)
        if message:
            about["error"] = message
        about["request_id"] = f"{self._prefix}-{number}"
        if self._debugging and request is not None:
            about["request"] = redacted(request)
        if code is grpc.StatusCode.INTERNAL:
            level, about["exc_info"] = logging.ERROR, failure
        with contextlib.suppress(OSError):  # an unwritable log must not fail the RPC
            self._logger.log(level, name, **about)
        return code, message
