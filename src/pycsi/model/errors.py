"""The errors that an RPC can answer with.

An error is raised where the fault is found and carries its status code. Only `server/report.py`
turns it into a gRPC status. Messages say what was wanted, what was found and what to change.
"""

import contextlib
import errno
from collections.abc import Callable
from typing import TypeVar

import grpc

from pycsi.linux.descriptor import DISK_FAULTS

_ATTEMPTS = 3

T = TypeVar("T")


class ConfigError(Exception):
    """The configuration cannot work; each of `messages` is one line for the operator."""

    def __init__(self, *messages: str) -> None:
        super().__init__(*messages)
        self.messages = messages

    def __str__(self) -> str:
        return "; ".join(self.messages)


class CsiError(Exception):
    """The base of all errors. The orchestrator gets the message."""

    code = grpc.StatusCode.INTERNAL


class InvalidArgument(CsiError):
    """A field is missing or malformed, or asks for something that the driver never does."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(CsiError):
    """The volume, snapshot, node or path does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(CsiError):
    """The volume, snapshot or publication exists, but differs from what the request describes."""

    code = grpc.StatusCode.ALREADY_EXISTS


class OutOfRange(CsiError):
    """No volume of this kind can have a size in the range, or an offset lies past the end."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(CsiError):
    """There is no room on this node now; there may be some on another node, or later."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(CsiError):
    """The node, pool or volume is in the wrong state for the RPC; the message says what to do."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class PoolMissing(FailedPrecondition):
    """The pool is missing at present, or cannot be written to."""


class PoolReadOnly(PoolMissing):
    """The pool is there, but cannot be written to."""


class Aborted(CsiError):
    """Another operation on the object or too many are under way, or a paging token is invalid."""

    code = grpc.StatusCode.ABORTED


class Cancelled(CsiError):
    """The caller is no longer waiting for the answer."""

    code = grpc.StatusCode.CANCELLED


class Unauthenticated(CsiError):
    """The secrets of the request are not those that it takes."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(CsiError):
    """The caller's certificate is not one that may call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unavailable(CsiError):
    """The driver is starting or stopping, or does not reach a node; try again."""

    code = grpc.StatusCode.UNAVAILABLE


class Unimplemented(CsiError):
    """The RPC is switched off in this mode."""

    code = grpc.StatusCode.UNIMPLEMENTED


ERRNO_CODES = {
    errno.ENOSPC: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.EDQUOT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.ENOMEM: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.EMFILE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.ENFILE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.EFBIG: grpc.StatusCode.OUT_OF_RANGE,
    errno.EROFS: grpc.StatusCode.FAILED_PRECONDITION,
    **dict.fromkeys(DISK_FAULTS, grpc.StatusCode.FAILED_PRECONDITION),
    errno.ENODEV: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EBUSY: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EAGAIN: grpc.StatusCode.ABORTED,
    errno.EINTR: grpc.StatusCode.UNAVAILABLE,
    errno.EXDEV: grpc.StatusCode.FAILED_PRECONDITION,
    errno.ELOOP: grpc.StatusCode.INVALID_ARGUMENT,
}
"""The status code of an `OSError` that was not turned into a `CsiError`; others are INTERNAL."""


def retry(act: Callable[[], T]) -> T:
    """Return what `act` returns; where it fails, call it again at once, three times in all.

    It is for steps without which an operation would stay half done. The last error is raised.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(OSError, CsiError):
            return act()
    return act()
