"""Comparing the copy of a file with its source, and giving it its attributes."""

import contextlib
import os
from collections.abc import Callable, Iterable

from pycsi.linux import filecopy, treecopy

_STEP = 1024 * 1024


def is_same(
    source: int, copy: int, ranges: Iterable[filecopy.Range], progress: Callable[[], None]
) -> bool:
    """Tell whether the `ranges` of two open files read the same, the copy from its disk.

    It has to be on its disk already (fsync(2)): what only the page cache has is not read again.
    """
    os.posix_fadvise(copy, 0, 0, os.POSIX_FADV_DONTNEED)
    for start, end, data in filecopy.pieces(source, ranges):
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
