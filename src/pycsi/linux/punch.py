"""Punching holes into files: fallocate(2) with FALLOC_FL_PUNCH_HOLE."""

import ctypes

from pycsi.linux.libc import function

FALLOC_FL_KEEP_SIZE = 0x1
FALLOC_FL_PUNCH_HOLE = 0x2

_fallocate = function("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch_hole(fd: int, start: int, length: int) -> None:
    """Make `length` bytes from `start` on of an open file a hole, which reads as zeros."""
    if not length:
        return
    _fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, length)
