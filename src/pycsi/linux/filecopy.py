"""Copying single files: by reflink (ioctl_ficlone(2)), or by copying the data but not the holes."""

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pycsi.linux.descriptor import opened
from pycsi.linux.program import unpinned
from pycsi.linux.punch import punch_hole

FICLONE = 0x40049409

_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP, errno.EXDEV})
_STEP = 1024 * 1024

Range = tuple[int, int]
"""The first byte, and the one after the last."""


@unpinned()
def reflink(source: int, target: int) -> bool:
    """Make the open file `target` a point-in-time copy of the open file `source`, sharing blocks.

    False if the filesystem cannot share blocks, or the files are not on the same one.
    """
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def can_reflink(file: Path) -> bool:
    """Tell whether `file`, which must not be empty, can share its blocks with other files.

    The test is to clone the file onto itself, which always fails: with EINVAL if cloning to another
    file would work. The test needs no space, so it works on a full disk too.
    """
    with opened(file, os.O_RDWR) as fd:
        try:
            fcntl.ioctl(fd, FICLONE, fd)
        except OSError as error:
            return error.errno == errno.EINVAL
    return True


@unpinned()
def copy(source: int, target: int, progress: Callable[[], None]) -> None:
    """Copy the data of the open file `source`, but not its holes, into the empty file `target`.

    No blocks are shared. `progress` is called for every MiB; an exception from it ends the copy.
    """
    os.ftruncate(target, os.fstat(source).st_size)
    buffer = memoryview(bytearray(_STEP))
    for first, end in data_ranges(source):
        start = first
        while start < end:
            progress()
            count = os.preadv(source, [buffer[: end - start]], start)
            if not count:
                return  # the file has been truncated since
            start += os.pwrite(target, buffer[:count], start)


def bring(source: int, target: int, progress: Callable[[], None]) -> None:
    """Copy an open file into another, by reflink if possible.

    The other is empty, or has a part of an earlier copy, of which what is right stays.
    """
    size = os.fstat(source).st_size
    if os.fstat(target).st_size:
        os.ftruncate(target, size)
        if size and not reflink(source, target):
            renew(source, target, progress)
    elif size and not reflink(source, target):
        copy(source, target, progress)


@unpinned()
def renew(source: int, target: int, progress: Callable[[], None]) -> None:
    """Make the open file `target` what `source` is, whatever it held: data, holes and size.

    Both are read, and only what differs is written: so a copy that was cut off goes on, and is
    right even if the disk has kept another part of it than was written first. No blocks are shared.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    update(source, target, [(0, size)], progress)


def update(source: int, copy: int, ranges: Iterable[Range], progress: Callable[[], None]) -> None:
    """Make the `ranges` of the open file `copy` what they are in `source`: data and holes.

    Only what differs is written. The copy has its size. `progress` is called for each MiB; an
    exception from it ends the update.
    """
    for start, end, data in pieces(source, ranges):
        if not data:
            if next(data_ranges(copy, end, start), None):
                punch_hole(copy, start, end - start)
            continue
        for at in range(start, end, _STEP):
            progress()
            read = os.pread(source, min(_STEP, end - at), at)
            if read != os.pread(copy, len(read), at):
                _write(copy, read, at)


def pieces(fd: int, ranges: Iterable[Range]) -> Iterator[tuple[int, int, bool]]:
    """Yield the pieces of ranges of an open file, without gaps, and whether each holds data."""
    for first, last in ranges:
        at = first
        for start, end in data_ranges(fd, last, first):
            if start > at:
                yield at, start, False
            yield start, end, True
            at = end
        if at < last:
            yield at, last, False


def _write(fd: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(fd, left, at)
        left, at = left[count:], at + count


def data_ranges(fd: int, size: int = sys.maxsize, first: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each range of the open file `fd` that is no hole.

    They are those from `first` on and below `size`.
    """
    end = first
    while end < size and (start := _seek(fd, end, os.SEEK_DATA)) is not None:
        end = _seek(fd, start, os.SEEK_HOLE) or start
        if start < min(end, size):
            yield start, min(end, size)


def _seek(fd: int, offset: int, whence: int) -> int | None:
    """Return the offset of the next data or hole from `offset` on; None if there is no more."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
