"""Spans of RPCs, by OpenTelemetry's conventions for RPC, and sending them over OTLP."""

import logging
import os
import threading
from collections.abc import Iterable
from typing import Any

from grpc import Compression
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pycsi import __version__
from pycsi.model import ids
from pycsi.model.config import Config
from pycsi.model.errors import ConfigError
from pycsi.server.otel import variables
from pycsi.server.otel.spans import ServerSpan, rpc_attributes
from pycsi.server.report import ROUTINE

PATIENCE = 2.0
"""Seconds that a stopping driver waits for what was not sent yet."""

_TRACEPARENT, _TRACESTATE = "traceparent", "tracestate"
_PROPAGATOR = TraceContextTextMapPropagator()

_QUIET = {
    # One line in 20 seconds while nobody receives, not one for each attempt.
    "opentelemetry.exporter.otlp.proto.grpc.exporter": logging.ERROR,
    # What callers send is theirs to see to: they could fill the log.
    "opentelemetry.trace.span": logging.ERROR,
    "opentelemetry.trace.propagation.tracecontext": logging.ERROR,
}
"""The least severe level that is logged of the library's loggers."""


class OtelTracer:
    """Begins a span for each RPC; a thread of its own sends those that have ended. A `Tracer`.

    Spans wait in a queue that is bounded (OTEL_BSP_MAX_QUEUE_SIZE); while it is full they are
    dropped. So no RPC ever waits for the receiver.
    """

    def __init__(self, resource: Resource, exporter: OTLPSpanExporter | None, node: str) -> None:
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = exporter
        if exporter:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pycsi", __version__)
        self._own = {"pycsi.node": node} if node else {}

    def began(self, path: str, context: Any) -> ServerSpan | None:
        parent = _parent(context.invocation_metadata() or ())
        if not parent and path.rpartition("/")[2] in ROUTINE:
            return None
        span = self._tracer.start_span(
            path[1:], parent, SpanKind.SERVER, {**rpc_attributes(path), **self._own}
        )
        return ServerSpan(self._tracer, span)

    def close(self) -> None:
        """Send what was not sent yet, for 2 seconds at most; what is left then is lost."""
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(PATIENCE)
        if last.is_alive() and self._exporter:
            self._exporter.shutdown()  # ends the attempt under way
            last.join(PATIENCE)


def _parent(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """Return the context that the caller has sent; an empty one if it has sent none, or nonsense.

    Only W3C Trace Context is read: baggage would be anybody's words.
    """
    carrier: dict[str, list[str]] = {_TRACEPARENT: [], _TRACESTATE: []}
    for key, value in metadata:
        if key in carrier and isinstance(value, str):
            carrier[key].append(value)
    if not carrier[_TRACEPARENT]:
        return Context()
    found: Context = _PROPAGATOR.extract(carrier, Context())
    return found


def start(config: Config) -> OtelTracer:
    """Return the tracer that the variables OTEL_* describe, which sends from now on.

    `ConfigError` if one of them cannot be used.
    """
    if mistakes := [*variables.mistakes()]:
        raise ConfigError(*mistakes)
    variables.drop_empty()
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    node = ids.segment(config.node_id) if config.node_id else ""
    try:
        return OtelTracer(_resource(config, node), _exporter(), node)
    except Exception:  # noqa: BLE001  (the library raises whatever it meets)
        given = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_")))
        raise ConfigError(
            f"--tracing: OpenTelemetry cannot use what is set in {given}; correct that"
        ) from None


def _exporter() -> OTLPSpanExporter | None:
    if variables.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    # "none" is in OpenTelemetry's specification, and the library does not know it.
    none = variables.of_traces("COMPRESSION") == "none"
    return OTLPSpanExporter(compression=Compression.NoCompression if none else None)


def _resource(config: Config, node: str) -> Resource:
    """Return what is the same for all spans; what the variables say of it comes first."""
    own = {
        "service.name": "pycsi",
        "service.version": __version__,
        "pycsi.driver_name": config.driver_name,
        "pycsi.mode": config.mode.value,
        **({"pycsi.node": node} if node else {}),
    }
    given = OTELResourceDetector().detect().attributes
    return Resource.create({key: value for key, value in own.items() if key not in given})
