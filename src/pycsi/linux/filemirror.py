"""Bringing the copy of a file up to date with its source, and comparing both."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

from pycsi.linux import filecopy, treecopy
from pycsi.linux.punch import punch_hole

_STEP = 1024 * 1024

Range = tuple[int, int]
"""The first byte, and the one after the last."""


def update(source: int, copy: int, ranges: Iterable[Range], progress: Callable[[], None]) -> None:
    """Make the `ranges` of the open file `copy` what they are in `source`: data and holes.

    Only what differs is written. The copy has its size. `progress` is called for each MiB; an
    exception from it ends the update.
    """
    for start, end, data in _pieces(source, ranges):
        if not data:
            if next(filecopy.data_ranges(copy, end, start), None):
                punch_hole(copy, start, end - start)
            continue
        for at in range(start, end, _STEP):
            progress()
            read = os.pread(source, min(_STEP, end - at), at)
            if read != os.pread(copy, len(read), at):
                _write(copy, read, at)


def is_same(source: int, copy: int, ranges: Iterable[Range], progress: Callable[[], None]) -> bool:
    """Tell whether the `ranges` of two open files read the same, the copy from its disk.

    It has to be on its disk already (fsync(2)): what only the page cache has is not read again.
    """
    os.posix_fadvise(copy, 0, 0, os.POSIX_FADV_DONTNEED)
    for start, end, data in _pieces(source, ranges):
        # Where the source has a hole, only what is no hole of the copy has to be looked at.
        there = [(start, end)] if data else filecopy.data_ranges(copy, end, start)
        for first, last in there:
            for at in range(first, last, _STEP):
                progress()
                count = min(_STEP, last - at)
                read = os.pread(source, count, at) if data else bytes(count)
                if read != os.pread(copy, count, at):
                    return False
    return True


def _pieces(fd: int, ranges: Iterable[Range]) -> Iterator[tuple[int, int, bool]]:
    """Yield the pieces of ranges of an open file, without gaps, and whether each holds data."""
    for first, last in ranges:
        at = first
        for start, end in filecopy.data_ranges(fd, last, first):
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


def align(source: int, copy: int) -> None:
    """Give the open file or directory `copy` the attributes of `source`, and none besides."""
    wanted = set(os.listxattr(source))
    for name in os.listxattr(copy):
        if name not in wanted and not name.startswith(treecopy.NOT_COPIED):
            os.removexattr(copy, name)
    treecopy.keep_attributes(source, copy)


def other_attributes(one: int, other: int) -> str | None:
    """Return which attribute of two open files differs; None if none does."""
    return other_status(os.fstat(one), os.fstat(other)) or other_xattrs(one, other)


def other_status(one: os.stat_result, other: os.stat_result) -> str | None:
    """Return what differs of that which stat(2) tells and a copy keeps; None if nothing does."""
    if (one.st_uid, one.st_gid) != (other.st_uid, other.st_gid):
        return "owner"
    if one.st_mode != other.st_mode:
        return "mode"
    return "time of modification" if one.st_mtime_ns != other.st_mtime_ns else None


def other_xattrs(one: int | str, other: int | str) -> str | None:
    """Return a word if the extended attributes of two files differ; None if they do not."""
    return None if _xattrs(one) == _xattrs(other) else "extended attribute"


def _xattrs(file: int | str) -> dict[str, bytes]:
    follow = isinstance(file, int)
    found = {}
    for name in os.listxattr(file, follow_symlinks=follow):
        if not name.startswith(treecopy.NOT_COPIED):
            with contextlib.suppress(OSError):  # removed since the listing
                found[name] = os.getxattr(file, name, follow_symlinks=follow)
    return found
