"""System calls that Python's standard library does not have.

The calls are made by number: the numbers above 400 are the same on every architecture, and the C
library of an older distribution has no wrappers for them. Each call gets a prototype of its own
when this package is imported; prototypes are never changed afterwards, so threads may share them.
"""

import ctypes
import os
from typing import Protocol, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

_libc = ctypes.CDLL(None, use_errno=True)


class Call(Protocol):
    """One C function: its result, or `OSError` with errno and `path` where it fails."""

    def __call__(self, *arguments: object, path: StrPath | None = None) -> int: ...


def function(name: str, *argtypes: type) -> Call:
    """Return the C library's function `name`, which answers -1 and errno on failure."""
    return _checked(name, argtypes, ctypes.c_int)


def system_call(number: int, *argtypes: type) -> Call:
    """Return the system call `number` as a function."""
    return _checked("syscall", (ctypes.c_long, *argtypes), ctypes.c_long, number)


def _checked(name: str, argtypes: tuple[type, ...], result: type, *first: int) -> Call:
    """Return a function of the C library, whose first arguments are `first`."""
    pointer = _libc[name]  # indexing makes a new object, so prototypes never clash
    pointer.argtypes = argtypes
    pointer.restype = result

    def call(*arguments: object, path: StrPath | None = None) -> int:
        answer: int = pointer(*first, *arguments)
        if answer < 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno), None if path is None else os.fspath(path))
        return answer

    return call
