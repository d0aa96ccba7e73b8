"""What became of an RPC: its status code, its line in the log, and its metrics.

This is the only place where exceptions become status codes.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import time
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from pycsi.model.errors import ERRNO_CODES, CsiError
from pycsi.model.observer import Observer
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


class Reporter:
    """Has every RPC counted by `observer`, and logs it. RPCs are named by their paths."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)
        self._logger = log.bind()  # bound once: structlog's lazy proxy binds at each call
        self._debugging = self._logger.is_enabled_for(logging.DEBUG)

    def begin(self, path: str) -> float:
        """Count an RPC that begins, which `report` has to end; return its start."""
        self._observer.began(path)
        return time.perf_counter()

    def report(
        self,
        path: str,
        request: Message | None,
        start: float,
        failure: BaseException | None = None,
        **more: str,
    ) -> tuple[grpc.StatusCode, str]:
        """Count the end of an RPC that began at `start`, log it, and return its status.

        One that has failed is logged as a warning, or as an error if the driver is to blame.

        `request` is None if it could not be decoded; `more` is added to the log line.
        """
        seconds = time.perf_counter() - start
        code, message = status_of(failure) if failure else _DONE
        self._observer.ended(path, code.name, seconds)
        number = next(self._numbers)
        name = path.rpartition("/")[2]
        level = _level(name, code)
        if level == logging.DEBUG and not self._debugging:
            return code, message
        about: dict[str, Any] = {}
        if request is not None:
            fields = _identifying(request.DESCRIPTOR)
            about = {field: _cut(value) for field in fields if (value := getattr(request, field))}
        about |= more
        about["code"] = code.name
        about["duration_ms"] = round(seconds * 1000, 3)
        if message:
            about["error"] = message
        about["request_id"] = f"{self._prefix}-{number}"
        if self._debugging and request is not None:
            about["request"] = redacted(request)
        if code is grpc.StatusCode.INTERNAL:
            about["exc_info"] = failure
        with contextlib.suppress(OSError):  # an unwritable log must not fail the RPC
            self._logger.log(level, name, **about)
        return code, message
