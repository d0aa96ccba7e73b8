"""The interceptor around every RPC of a node: who may call, admission, status code and report."""

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, TypeAlias

import grpc
from google.protobuf.message import Message

from pycsi.model.errors import Aborted, Unavailable, Unimplemented
from pycsi.proto import csi_pb2_grpc, exchange_pb2_grpc, groups_pb2_grpc, transfers_pb2_grpc
from pycsi.server.report import ROUTINE, Reporter

_STREAMS = 16
"""Maximum number of concurrent streams: each occupies a thread for as long as its reader takes."""

_IDENTITY = "csi.v1.Identity"
_GENERATED = {
    item.__name__ for item in (csi_pb2_grpc, exchange_pb2_grpc, groups_pb2_grpc, transfers_pb2_grpc)
}

Method = Callable[[Any, grpc.ServicerContext], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Admitted = Callable[[], contextlib.AbstractContextManager[None]]
Guard = Callable[[grpc.ServicerContext], None]


def _encoder(encode: Callable[[Message], bytes]) -> Callable[[Message | bytes], bytes]:
    """Return `encode`, passing through replies that are encoded already."""
    return lambda reply: reply if isinstance(reply, bytes) else encode(reply)


def refuse(name: str, *_: object) -> NoReturn:
    """Answer a method that the driver does not advertise."""
    raise Unimplemented(
        f"{name} is not among the capabilities of this driver's --mode and --csi-version"
    )


class _Rpc(NamedTuple):
    """A method of a service: `decode` reads a request, `admitted` raises if it is refused.

    If it `converses`, it takes a stream of requests.
    """

    path: str
    admitted: Admitted
    decode: Callable[[bytes], Message]
    method: Method
    converses: bool = False


def _is_generated(handler: Handler) -> bool:
    """Tell whether a handler is the one that the generated base class has: it serves nothing."""
    method = handler.stream_stream or handler.unary_stream or handler.unary_unary
    return method.__module__ in _GENERATED


class _UnaryHandler(functools.partial[Any]):
    """The handler of a unary method; gRPC runs it on `experimental_thread_pool` if that is set."""

    experimental_thread_pool: ThreadPoolExecutor


class Admission:
    """Admits at most `most` RPCs at a time, once the driver is `ready`.

    One is shared by all servers of a process, which share their threads.
    """

    def __init__(self, ready: threading.Event, most: int) -> None:
        self._ready = ready
        self._slots = threading.Semaphore(most)
        self._streams = threading.Semaphore(_STREAMS)

    @contextlib.contextmanager
    def rpc(self) -> Iterator[None]:
        """Admit an RPC for the `with` block.

        `Unavailable` before the driver is ready, `Aborted` if too many are under way.
        """
        if not self._ready.is_set():
            raise Unavailable("the driver is starting; try again")
        with _slot(self._slots, "too many operations are under way; try again"):
            yield

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Admit a stream for the `with` block, as `rpc` does; of streams there can be fewer."""
        with self.rpc(), _slot(self._streams, f"{_STREAMS} streams are open already; try again"):
            yield


@contextlib.contextmanager
def _slot(slots: threading.Semaphore, refusal: str) -> Iterator[None]:
    if not slots.acquire(blocking=False):
        raise Aborted(refusal)
    try:
        yield
    finally:
        slots.release()


class Interceptor:
    """Stands in for the `grpc.Server` when services are added, and wraps each method once.

    A `grpc.ServerInterceptor` would look up the method at every call. `guard` raises if the caller
    may not call. Identity needs no admission, and routine runs on the threads of `probers`.
    """

    def __init__(
        self,
        server: grpc.Server,
        unimplemented: frozenset[str],
        admission: Admission,
        reporter: Reporter,
        *,
        probers: ThreadPoolExecutor,
        guard: Guard | None = None,
    ) -> None:
        self._server = server
        self._probers = probers
        self._unimplemented = unimplemented
        self._admission = admission
        self._reporter = reporter
        self._guard = guard

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
        method = handler.stream_stream or handler.unary_stream or handler.unary_unary
        decode, encode = handler.request_deserializer, handler.response_serializer
        if method is None or decode is None or encode is None:
            raise TypeError(f"{name} takes no message, or answers a stream with one message")
        admission, converses = self._admission, handler.request_streaming
        only_answers = handler.response_streaming and not converses
        admitted: Admitted = admission.stream if only_answers else admission.rpc
        if service == _IDENTITY:
            admitted = contextlib.nullcontext
        if name in self._unimplemented:
            admitted, method = contextlib.nullcontext, functools.partial(refuse, name)
        rpc = _Rpc(f"/{service}/{name}", admitted, decode, method, converses=converses)
        # No deserializer, so that gRPC hands over the bytes: it answers its failure with INTERNAL.
        if converses:
            streams = functools.partial(self._stream, rpc)
            return grpc.stream_stream_rpc_method_handler(streams, None, _encoder(encode))
        if handler.response_streaming:
            answered = functools.partial(self._answer, rpc)
            return grpc.unary_stream_rpc_method_handler(answered, None, _encoder(encode))
        answers = _UnaryHandler(self._call, rpc)
        if name in ROUTINE:
            answers.experimental_thread_pool = self._probers
        return grpc.unary_unary_rpc_method_handler(answers, None, _encoder(encode))

    def _call(self, rpc: _Rpc, data: bytes, context: grpc.ServicerContext) -> Message | bytes:
        begun = self._reporter.begin(rpc.path, context)
        request = None
        try:
            if self._guard:
                self._guard(context)
            request = rpc.decode(data)
            with rpc.admitted():
                response: Message | bytes = rpc.method(request, context)
        except Exception as error:  # noqa: BLE001  (every exception becomes a status here)
            context.abort(*self._reporter.report(begun, request, error))
        self._reporter.report(begun, request)
        return response

    def _answer(self, rpc: _Rpc, data: bytes, context: grpc.ServicerContext) -> Iterator[Message]:
        return self._stream(rpc, iter([data]), context)

    def _stream(
        self, rpc: _Rpc, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[Message]:
        begun = self._reporter.begin(rpc.path, context)
        first = None
        try:
            if self._guard:
                self._guard(context)
            first = rpc.decode(next(requests, b""))
            every = itertools.chain([first], map(rpc.decode, requests))
            with rpc.admitted():
                yield from rpc.method(every if rpc.converses else first, context)
        except GeneratorExit as error:
            self._reporter.report(begun, first, error)
            raise
        except Exception as error:  # noqa: BLE001
            context.abort(*self._reporter.report(begun, first, error))
        self._reporter.report(begun, first)
