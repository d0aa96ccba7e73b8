"""The interceptor around every RPC: admission, status code, log line and metrics.

This is the only place where exceptions become status codes.
"""

import contextlib
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from pycsi.model.errors import (
    ERRNO_CODES,
    Aborted,
    CsiError,
    InvalidArgument,
    Unavailable,
    Unimplemented,
)
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
_DEBUG = 10
_IDENTITY = "csi.v1.Identity"
_DONE = grpc.StatusCode.OK, ""

Method = Callable[[Any, grpc.ServicerContext], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Admission = contextlib.AbstractContextManager[None]


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


def _decoder(decode: Callable[[bytes], Message]) -> Callable[[bytes], Message | DecodeError]:
    """Return `decode`, with `DecodeError` as a result: gRPC answers a raised one with INTERNAL."""

    def read(data: bytes) -> Message | DecodeError:
        try:
            return decode(data)
        except DecodeError as error:
            return error

    return read


def _encoder(encode: Callable[[Message], bytes]) -> Callable[[Message | bytes], bytes]:
    """Return `encode`, passing through replies that are encoded already."""
    return lambda reply: reply if isinstance(reply, bytes) else encode(reply)


def _readable(request: Message | DecodeError) -> Message:
    if isinstance(request, DecodeError):
        raise InvalidArgument(
            "the request cannot be read as the message that this method takes; send what csi.proto "
            "describes"
        )
    return request


class _Refusal(contextlib.AbstractContextManager[None]):
    """Admits no RPC: the driver does not advertise the method."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        raise Unimplemented(f"{self._name} is not among the capabilities of this driver's mode")

    def __exit__(self, *_: object) -> None:
        """Do nothing; this is never called, since `__enter__` raises."""


class _ConcurrencyLimit(contextlib.AbstractContextManager[None]):
    """Admits at most `most` RPCs at a time, and none before `ready` is set.

    RPCs over the limit raise `Aborted` with the message `refusal`; early ones, `Unavailable`.
    """

    def __init__(self, most: int, refusal: str, ready: threading.Event | None = None) -> None:
        self._free = most
        self._mutex = threading.Lock()
        self._refusal = refusal
        self._ready = ready

    def __enter__(self) -> None:
        if self._ready and not self._ready.is_set():
            raise Unavailable("the driver is starting; try again")
        with self._mutex:
            if not self._free:
                raise Aborted(self._refusal)
            self._free -= 1

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            self._free += 1


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
        self._limit = _ConcurrencyLimit(most, "too many operations are under way; try again", ready)
        self._streaming = _ConcurrencyLimit(
            _STREAMS, f"{_STREAMS} streams are open already; try again"
        )
        self._observe = observe
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)
        self._logger = log.bind()  # bound once: structlog's lazy proxy binds at each call
        self._debugging = self._logger.is_enabled_for(_DEBUG)

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Ignore generic handlers: methods are added by name, and gRPC refuses all others."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add a service's methods, as the generated `add_…_to_server` does."""
        wrapped = {name: self._wrapped(service, name, item) for name, item in handlers.items()}
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrapped(self, service: str, name: str, handler: Handler) -> Handler:
        method = handler.unary_stream or handler.unary_unary
        decode, encode = handler.request_deserializer, handler.response_serializer
        if method is None or decode is None or encode is None:
            raise TypeError(f"{name} takes a stream or no message, which no method of CSI does")
        coders = (_decoder(decode), _encoder(encode))
        admitted: Admission = contextlib.nullcontext() if service == _IDENTITY else self._limit
        if name in self._unimplemented:
            admitted = _Refusal(name)
        if handler.response_streaming:
            streams = functools.partial(self._stream, name, admitted, method)
            return grpc.unary_stream_rpc_method_handler(streams, *coders)
        answers = _UnaryHandler(self._call, name, admitted, method)
        if name in _ROUTINE:
            answers.experimental_thread_pool = self._probers
        return grpc.unary_unary_rpc_method_handler(answers, *coders)

    def _call(
        self,
        name: str,
        admitted: Admission,
        method: Method,
        request: Message | DecodeError,
        context: grpc.ServicerContext,
    ) -> Message | bytes:
        start = time.perf_counter()
        try:
            with admitted:
                response: Message | bytes = method(_readable(request), context)
        except Exception as error:  # noqa: BLE001  (every exception becomes a status here)
            context.abort(*self._tell(name, request, start, error))
        self._tell(name, request, start)
        return response

    def _stream(
        self,
        name: str,
        admitted: Admission,
        method: Method,
        request: Message | DecodeError,
        context: grpc.ServicerContext,
    ) -> Iterator[Message]:
        start = time.perf_counter()
        try:
            with admitted, self._streaming:
                yield from method(_readable(request), context)
        except GeneratorExit as error:
            self._tell(name, request, start, error)
            raise
        except Exception as error:  # noqa: BLE001
            context.abort(*self._tell(name, request, start, error))
        self._tell(name, request, start)

    def _tell(
        self,
        name: str,
        request: Message | DecodeError,
        start: float,
        failure: BaseException | None = None,
    ) -> tuple[grpc.StatusCode, str]:
        """Count an RPC that began at `start`, log it, and return its status."""
        seconds = time.perf_counter() - start
        code, message = status_of(failure) if failure else _DONE
        said = code.name
        self._observe(name, said, seconds)
        number = next(self._numbers)
        if failure or self._debugging or name not in _ROUTINE:
            about = self._about(request)
            about["code"] = said
            about["duration_ms"] = round(seconds * 1000, 3)
            if message:
                about["error"] = message
            about["request_id"] = f"{self._prefix}-{number}"
            if self._debugging and isinstance(request, Message):
                about["request"] = redacted(request)
            with contextlib.suppress(OSError):  # an unwritable log must not fail the RPC
                self._log(name, code, about, failure)
        return code, message

    @staticmethod
    def _about(request: Message | DecodeError) -> dict[str, Any]:
        """Return the identifying fields that are set in a request."""
        if not isinstance(request, Message):
            return {}
        fields = _identifying(request.DESCRIPTOR)
        return {field: _cut(value) for field in fields if (value := getattr(request, field))}

    def _log(
        self, name: str, code: grpc.StatusCode, about: dict[str, Any], failure: BaseException | None
    ) -> None:
        if code is grpc.StatusCode.INTERNAL:
            self._logger.error(name, exc_info=failure, **about)
        elif failure is None and name in _ROUTINE:
            self._logger.debug(name, **about)
        else:
            self._logger.info(name, **about)
