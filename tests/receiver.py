"""An OTLP receiver for tests, and the spans that it has got."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from rpc.conftest import wait_for


def _values(attributes: Any) -> dict[str, Any]:
    return {
        item.key: getattr(item.value, str(item.value.WhichOneof("value"))) for item in attributes
    }


@dataclasses.dataclass(frozen=True)
class Span:
    """A span as it was sent; `by` are the attributes of the process that has sent it."""

    name: str
    kind: str
    trace_id: str
    id: str
    parent: str
    about: dict[str, Any]
    by: dict[str, Any]
    failed: bool
    message: str
    events: list[tuple[str, dict[str, Any]]]
    begin: int
    end: int

    @classmethod
    def of(cls, sent: Any, by: dict[str, Any]) -> "Span":
        return cls(
            name=sent.name,
            kind=Sent.SpanKind.Name(sent.kind).removeprefix("SPAN_KIND_").lower(),
            trace_id=sent.trace_id.hex(),
            id=sent.span_id.hex(),
            parent=sent.parent_span_id.hex(),
            about=_values(sent.attributes),
            by=by,
            failed=sent.status.code == Status.STATUS_CODE_ERROR,
            message=sent.status.message,
            events=[(event.name, _values(event.attributes)) for event in sent.events],
            begin=sent.start_time_unix_nano,
            end=sent.end_time_unix_nano,
        )


class Receiver:
    """Keeps what it is sent, as bytes and as spans; while it is `stuck` it does not answer."""

    def __init__(self) -> None:
        self.bytes = b""
        self.spans: list[Span] = []
        self.metadata: list[dict[str, str]] = []
        self.port = 0
        self._going = threading.Event()
        self._going.set()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Take a batch of spans."""
        self._going.wait(60)
        self.bytes += request.SerializeToString()
        self.metadata.append(dict(context.invocation_metadata()))
        for resource in request.resource_spans:
            by = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [Span.of(sent, by) for sent in scope.spans]
        return service.ExportTraceServiceResponse()

    @contextlib.contextmanager
    def stuck(self) -> Iterator[None]:
        """Answer nobody during the `with` block."""
        self._going.clear()
        try:
            yield
        finally:
            self._going.set()

    @property
    def variables(self) -> dict[str, str]:
        """The variables with which a driver sends here, and soon."""
        return sending_to(self.port)

    def named(self, name: str, /, **about: str) -> list[Span]:
        """Return the spans whose names end so, and whose attributes `pycsi.…` are these."""
        wanted = {f"pycsi.{key}": value for key, value in about.items()}
        return [
            span
            for span in self.spans
            if span.name.endswith(name) and wanted.items() <= span.about.items()
        ]

    def one(self, name: str, /, **about: str) -> Span:
        """Wait for a span, and return it; there has to be one such."""
        wait_for(lambda: bool(self.named(name, **about)))
        (found,) = self.named(name, **about)
        return found

    def below(self, parent: Span) -> list[Span]:
        """Return the children of a span, in the order of their begin."""
        found = (span for span in self.spans if span.parent == parent.id)
        return sorted(found, key=lambda span: span.begin)


def sending_to(port: int) -> dict[str, str]:
    """Return the variables with which a driver sends to a port of this machine, and soon."""
    return {
        "PYCSI_TRACING": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }


@contextlib.contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Run a receiver, on any port unless one is given."""
    server = grpc.server(ThreadPoolExecutor(4))
    receiver = Receiver()
    add: Any = services.add_TraceServiceServicer_to_server
    add(receiver, server)
    receiver.port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield receiver
    finally:
        server.stop(0).wait()
