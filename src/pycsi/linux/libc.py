"""System calls that Python's standard library lacks.

System calls are made by number: those above 400 are the same on every architecture, and the C
libraries of older distributions have no wrappers for them. Each call gets its own prototype when
this package is imported. Prototypes never change afterwards, so threads may share them.
"""

import ctypes
import os
from typing import Protocol, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

_libc = ctypes.CDLL(None, use_errno=True)


class Call(Protocol):
    """A C function that returns its result, or raises `OSError` with errno and `path`."""

    def __call__(self, *arguments: object, path: StrPath | None = None) -> int: ...


def function(name: str, *argtypes: type) -> Call:
    """Return the C library's function `name`, which must return -1 and set errno on failure."""
    return _checked(name, argtypes, ctypes.c_int)


def system_call(number: int, *argtypes: type) -> Call:
    """Return the system call `number` as a function."""
    return _checked("syscall", (ctypes.c_long, *argtypes), ctypes.c_long, number)


def _checked(name: str, argtypes: tuple[type, ...], result: type, *first: int) -> Call:
    """Return a function of the C library, with `first` as its first arguments."""
    pointer = _libc[name]  # indexing makes a new object, so each call has its own prototype
    pointer.argtypes = argtypes
    pointer.restype = result

    def call(*arguments: object, path: StrPath | None = None) -> int:
        answer: int = pointer(*first, *arguments)
        if answer < 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno), None if path is None else os.fspath(path))
        return answer

    return call
