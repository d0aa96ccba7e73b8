"""What an RPC may answer instead of its response.

An error is raised where the fault is found and carries its status code; `rpc.py` turns it into a
gRPC status, and nothing else does. Messages say what was wanted, what was found, what to change.
"""

import contextlib
import errno
from collections.abc import Callable
from typing import TypeVar

import grpc

from pycsi.linux.descriptor import DISK_FAULTS

_ATTEMPTS = 3

T = TypeVar("T")


class CsiError(Exception):
    """The base of all answers that are not OK. Its message goes to the orchestrator."""

    code = grpc.StatusCode.INTERNAL


class InvalidArgument(CsiError):
    """A field is missing, malformed, or asks for what this driver never does."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(CsiError):
    """The volume, snapshot, node or path does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(CsiError):
    """It exists, and is not what this request describes."""

    code = grpc.StatusCode.ALREADY_EXISTS


class OutOfRange(CsiError):
    """No volume of this kind can have a size in the range."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(CsiError):
    """There is no room here now; elsewhere or later there may be."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(CsiError):
    """The world has to be changed first; the message says how."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class PoolMissing(FailedPrecondition):
    """The pool is not there now, or cannot be written to."""


class Aborted(CsiError):
    """Another operation on the same object is under way, or a token is not ours; try again."""

    code = grpc.StatusCode.ABORTED


class Cancelled(CsiError):
    """The caller does not wait for the answer any more."""

    code = grpc.StatusCode.CANCELLED


class Unavailable(CsiError):
    """The driver is starting or stopping; try again."""

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
"""The status of an `OSError` that nobody has given a better meaning; all others are INTERNAL."""


def retry(act: Callable[[], T]) -> T:
    """Call `act` again at once where it fails: what was begun would stay half done otherwise."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(OSError, CsiError):
            return act()
    return act()
