"""The log: one structured line per event, on standard error."""

import json
import logging
import sys
import threading
from types import TracebackType

import structlog

from pycsi.model.trace import current

_FIRST = ("timestamp", "level", "event")
"""The keys that begin each line, in this order."""

log = structlog.get_logger()


def _escape(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape control characters, with which a name could forge or overwrite log lines."""
    return {
        key: json.dumps(value, ensure_ascii=False)[1:-1]
        if isinstance(value, str) and not value.isprintable()
        else value
        for key, value in event.items()
    }


def _order(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {key: event.pop(key) for key in _FIRST} | dict(event)


def _add_trace(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Add the ids of the RPC's trace, in the course of which this is logged."""
    return {**event, **current().ids}


def configure(fmt: str, level: str, *, traced: bool = False) -> None:
    """Log as `json` or as `text` (logfmt), from `level` upwards; if RPCs are `traced` with ids.

    Tracebacks are logged without local variables, which may hold secrets. What libraries log, and
    exceptions that nobody handles, are logged likewise.
    """
    renderer: structlog.typing.Processor
    escaping: list[structlog.typing.Processor] = []
    adding: list[structlog.typing.Processor] = [_add_trace] if traced else []
    if fmt == "json":
        renderer = structlog.processors.JSONRenderer(default=repr)
    else:
        renderer = structlog.processors.LogfmtRenderer(bool_as_flag=False)
        escaping.append(_escape)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *adding,
            structlog.processors.format_exc_info,
            *escaping,
            _order,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Handler()], level=logging.WARNING, force=True)
    sys.excepthook = _unhandled
    threading.excepthook = _unhandled_in_thread


def refuse(reason: str) -> None:
    """Log why the driver does not start."""
    log.error("the driver cannot start", error=reason)


class _Handler(logging.Handler):
    """Logs what libraries log, as gRPC and asyncio do."""

    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, record.getMessage(), library=record.name, exc_info=record.exc_info)


def _unhandled(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("the driver has failed", exc_info=(kind, error, trace))


def _unhandled_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value:
        trace = arguments.exc_type, arguments.exc_value, arguments.exc_traceback
        log.critical(
            "a thread has failed", thread=arguments.thread and arguments.thread.name, exc_info=trace
        )
