"""What became of an RPC: its status code, its line in the log, its metrics and its trace.

This is the only place where exceptions become status codes.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import time
from typing import Any, NamedTuple

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from pycsi.model.errors import ERRNO_CODES, CsiError
from pycsi.model.observer import Observer
from pycsi.model.trace import UNTRACED, RpcTrace, Tracer, follow
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
ROUTINE = frozenset({"Probe", "ListPrepared"})
"""RPCs called again and again: successes are logged at debug level only."""

_LONGEST_MESSAGE = 1024
_DONE = grpc.StatusCode.OK, ""


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
    if isinstance(error, GeneratorExit | asyncio.CancelledError | grpc.RpcError):
        return grpc.StatusCode.CANCELLED, "the caller has hung up"
    if isinstance(error, OSError) and error.errno in ERRNO_CODES:
        return ERRNO_CODES[error.errno], message
    return grpc.StatusCode.INTERNAL, message


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:_LONGEST_MESSAGE].decode(errors="ignore")


def _level(name: str, code: grpc.StatusCode) -> int:
    """Return the level at which the end of an RPC is logged."""
    if code is grpc.StatusCode.INTERNAL:
        return logging.ERROR
    if code is not grpc.StatusCode.OK:
        return logging.WARNING
    return logging.DEBUG if name in ROUTINE else logging.INFO


@functools.cache
def _identifying(kind: Descriptor) -> tuple[str, ...]:
    """Return the fields of a request type that identify the object of the request."""
    return tuple(field for field in _IDENTIFYING if field in kind.fields_by_name)


def _about(request: Message) -> dict[str, str]:
    """Return the fields of a request that identify its object, and their values."""
    fields = _identifying(request.DESCRIPTOR)
    return {field: _cut(value) for field in fields if (value := getattr(request, field))}


class Begun(NamedTuple):
    """An RPC that has begun: the path of its method, its start, and its trace, if it has one."""

    path: str
    start: float
    trace: RpcTrace | None


class Reporter:
    """Has every RPC counted by `observer` and traced by `tracer`, if there is one, and logs it."""

    def __init__(self, observer: Observer, tracer: Tracer | None = None) -> None:
        self._observer = observer
        self._tracer = tracer
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)
        self._logger = log.bind()  # bound once: structlog's lazy proxy binds at each call
        self._debugging = self._logger.is_enabled_for(logging.DEBUG)

    def begin(self, path: str, context: Any) -> Begun:
        """Count an RPC that begins, by the path of its method; `report` has to end it.

        `context` is gRPC's. Until then this thread or task tells the RPC's trace.
        """
        self._observer.began(path)
        trace = self._tracer.began(path, context) if self._tracer else None
        if trace:
            follow(trace)
        return Begun(path, time.perf_counter(), trace)

    def report(
        self, begun: Begun, request: Message | None, failure: BaseException | None = None
    ) -> tuple[grpc.StatusCode, str]:
        """Count the end of an RPC, log it, and return its status.

        One that has failed is logged as a warning, or as an error if the driver is to blame.

        `request` is None if it could not be decoded.
        """
        seconds = time.perf_counter() - begun.start
        code, message = status_of(failure) if failure else _DONE
        self._observer.ended(begun.path, code.name, seconds)
        number = next(self._numbers)
        name = begun.path.rpartition("/")[2]
        level = _level(name, code)
        logged = level > logging.DEBUG or self._debugging
        if not (logged or begun.trace):
            return code, message
        about = {} if request is None else _about(request)
        if begun.trace:
            begun.trace.ended(code.name, about, failure, message)
        if logged:
            line: dict[str, Any] = {
                **about,
                "code": code.name,
                "duration_ms": round(seconds * 1000, 3),
                **({"error": message} if message else {}),
                "request_id": f"{self._prefix}-{number}",
            }
            if self._debugging and request is not None:
                line["request"] = redacted(request)
            if code is grpc.StatusCode.INTERNAL:
                line["exc_info"] = failure
            with contextlib.suppress(OSError):  # an unwritable log must not fail the RPC
                self._logger.log(level, name, **line)
        if begun.trace:
            follow(UNTRACED)  # not before its line is logged
        return code, message
