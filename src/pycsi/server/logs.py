"""The log: one structured line per event, on standard error."""

import json
import logging
import sys

import structlog


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


def configure(fmt: str, level: str) -> None:
    """Log as `json` or as `text` (logfmt), from `level` upwards.

    Tracebacks are logged without local variables, which may hold secrets.
    """
    renderer: structlog.typing.Processor
    escaping: list[structlog.typing.Processor] = []
    if fmt == "json":
        renderer = structlog.processors.JSONRenderer(default=repr)
    else:
        renderer = structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], bool_as_flag=False
        )
        escaping.append(_escape)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *escaping,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
