"""The spans of an RPC: its own, those of its phases, and those of what it sends to nodes."""

import contextlib
from collections.abc import Iterator, Mapping

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_span_id, format_trace_id
from opentelemetry.trace import set_span_in_context as within
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pycsi.model.trace import Metadata, follow
from pycsi.server.report import status_of

_PROPAGATOR = TraceContextTextMapPropagator()

_TO_BLAME = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""The status codes by which a server's span is an error: in others the caller is at fault.

OpenTelemetry's semantic conventions for gRPC.
"""


def rpc_attributes(path: str) -> dict[str, str]:
    """Return the attributes of an RPC by its path, as `/csi.v1.Controller/CreateVolume`."""
    return {"rpc.system.name": "grpc", "rpc.method": path[1:]}


class PhaseSpan:
    """A span in which a thread works, and the parent of the phases that begin there. A `Trace`."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        found = span.get_span_context()
        self.ids: dict[str, str] = {}
        if found.is_valid:
            self.ids["trace_id"] = format_trace_id(found.trace_id)
            self.ids["span_id"] = format_span_id(found.span_id)

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._phase(name) if self._span.is_recording() else contextlib.nullcontext()

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        span = self._tracer.start_span(name, within(self._span))
        follow(PhaseSpan(self._tracer, span))
        try:
            yield
        except Exception as error:
            _record(span, error, status_of(error)[1], to_blame=True)
            raise
        finally:
            span.end()
            follow(self)

    def about(self, **facts: str) -> None:
        self._span.set_attributes({f"pycsi.{key}": value for key, value in facts.items()})

    def sending(self, path: str, node: str, metadata: Metadata) -> "ClientSpan":
        attributes = {**rpc_attributes(path), "pycsi.node": node}
        span = self._tracer.start_span(path[1:], within(self._span), SpanKind.CLIENT, attributes)
        return ClientSpan(span, metadata)


class ServerSpan(PhaseSpan):
    """The span of an RPC that this process answers. An `RpcTrace`."""

    def ended(
        self, code: str, about: Mapping[str, str], failure: BaseException | None, message: str
    ) -> None:
        self.about(**about)
        _close(self._span, code, failure, message, to_blame=code in _TO_BLAME)


class ClientSpan:
    """The span of an RPC that this process sends to a node. A `Sending`."""

    def __init__(self, span: Span, metadata: Metadata) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, within(span))
        kept = [item for item in metadata if item[0] not in _PROPAGATOR.fields]
        self.metadata: Metadata = (*kept, *carrier.items())

    def ended(self, failure: BaseException | None = None) -> None:
        code, message = status_of(failure) if failure else ("OK", "")
        name = code if isinstance(code, str) else code.name
        _close(self._span, name, failure, message, to_blame=True)


def _close(
    span: Span, code: str, failure: BaseException | None, message: str, *, to_blame: bool
) -> None:
    span.set_attribute("rpc.response.status_code", code)
    if failure:
        span.set_attribute("error.type", code)
        _record(span, failure, message, to_blame=to_blame)
    span.end()


def _record(span: Span, error: BaseException, message: str, *, to_blame: bool) -> None:
    # Not `record_exception`: a traceback is long, and the log has it.
    kind = type(error).__name__
    span.add_event("exception", {"exception.type": kind, "exception.message": message})
    if to_blame:
        span.set_status(StatusCode.ERROR, message)
