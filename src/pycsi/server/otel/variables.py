"""What the variables OTEL_* may be: what the SDK would fail on, or pass over with its own texts."""

import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_GENERAL = "OTEL_EXPORTER_OTLP_"
_OF_TRACES = "OTEL_EXPORTER_OTLP_TRACES_"

_SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)


_BATCH, _QUEUE = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_MAX_QUEUE_SIZE"

_NUMBERS = (
    "OTEL_BSP_SCHEDULE_DELAY",
    _QUEUE,
    _BATCH,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
)


def _endpoint(text: str) -> str | None:
    try:
        found = urllib.parse.urlsplit(text)
        usable = bool(found.scheme in {"http", "https"} and found.hostname and found.port != 0)
        usable = usable and found.path in {"", "/"}
    except ValueError:
        usable = False
    return None if usable else "give the URL of an OTLP receiver, such as http://collector:4317"


def _seconds(text: str) -> str | None:
    try:
        usable = 0 < float(text) < float("inf")
    except ValueError:
        usable = False
    return None if usable else "give a number of seconds, such as 10"


def _number(text: str) -> str | None:
    return None if text.isascii() and text.isdigit() and int(text) else "give a whole number over 0"


def _file(text: str) -> str | None:
    try:
        Path(text).read_bytes()
    except (OSError, ValueError) as error:
        return f"it cannot be read ({getattr(error, 'strerror', 'no path')}); give a readable file"
    return None


def _one_of(*words: str) -> Callable[[str], str | None]:
    return lambda text: None if text.lower() in words else f"give one of {', '.join(words)}"


_EXPORTER: Mapping[str, Callable[[str], str | None]] = {
    "PROTOCOL": lambda text: (
        None if text == "grpc" else "only grpc is sent; give that, and the port of gRPC (4317)"
    ),
    "ENDPOINT": _endpoint,
    "INSECURE": _one_of("true", "false"),
    "TIMEOUT": _seconds,
    "COMPRESSION": _one_of("gzip", "none"),
    "CERTIFICATE": _file,
    "CLIENT_KEY": _file,
    "CLIENT_CERTIFICATE": _file,
}

_CHECKS: Mapping[str, Callable[[str], str | None]] = {
    **{
        f"{prefix}{name}": check
        for prefix in (_GENERAL, _OF_TRACES)
        for name, check in _EXPORTER.items()
    },
    "OTEL_TRACES_EXPORTER": _one_of("otlp", "none"),
    "OTEL_TRACES_SAMPLER": _one_of(*_SAMPLERS),
    **dict.fromkeys(_NUMBERS, _number),
}


def mistakes() -> Iterator[str]:
    """Yield what is wrong with the variables; one that is empty counts as not set."""
    for name, check in _CHECKS.items():
        text = os.environ.get(name, "")
        if text and (wanted := check(text)):
            yield f"{name}={text!r}: {wanted}"
    batch, queue = get(_BATCH) or "512", get(_QUEUE) or "2048"
    if not (_number(batch) or _number(queue)) and int(batch) > int(queue):
        yield f"{_BATCH} is {batch}, and {_QUEUE} is {queue}; let the queue hold at least a batch"
    ratio = get("OTEL_TRACES_SAMPLER_ARG")
    if ratio and "ratio" in get("OTEL_TRACES_SAMPLER") and not _is_share(ratio):
        yield f"OTEL_TRACES_SAMPLER_ARG={ratio!r}: give a share from 0 to 1, such as 0.1"


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def drop_empty() -> None:
    """Unset the variables that are empty: for the specification they are unset already."""
    for name in [
        name for name, text in os.environ.items() if name.startswith("OTEL_") and not text
    ]:
        del os.environ[name]


def get(name: str) -> str:
    """Return the value of a variable in small letters, "" if it is not set."""
    return os.environ.get(name, "").lower()


def of_traces(name: str) -> str:
    """Return the exporter's setting `name`: the one for traces, or else the general one."""
    return get(_OF_TRACES + name) or get(_GENERAL + name)
