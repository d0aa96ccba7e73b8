"""Copies of files: by sharing their blocks (ioctl_ficlone(2)), or of their data, holes kept."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from pycsi.linux import processors
from pycsi.linux.descriptor import opened

FICLONE = 0x40049409

_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP, errno.EXDEV})
_STEP = 1024 * 1024


@processors.unpinned()
def share(source: int, target: int) -> bool:
    """Let the file `target` have all the blocks of the file `source`, at one point in time.

    False where the filesystem cannot share blocks, or the two are not on one. Both are open files.
    """
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def can_share(file: Path) -> bool:
    """Tell whether `file`, which is not empty, could share its blocks with others on its disk.

    That is asked by having it share them with itself, which nobody allows: EINVAL where it would be
    possible with another file. It needs no room, so that it works on a full disk too.
    """
    with opened(file, os.O_RDWR) as fd:
        try:
            fcntl.ioctl(fd, FICLONE, fd)
        except OSError as error:
            return error.errno == errno.EINVAL
    return True


@processors.unpinned()
def copy(source: int, target: int, progress: Callable[[], None]) -> None:
    """Copy the data of the open file `source` into the empty file `target`, and not its holes.

    No blocks are shared. `progress` is called every mebibyte; what it raises ends the copy.
    """
    os.ftruncate(target, os.fstat(source).st_size)
    buffer = memoryview(bytearray(_STEP))
    end = 0
    while (start := _seek(source, end, os.SEEK_DATA)) is not None:
        end = _seek(source, start, os.SEEK_HOLE) or start
        while start < end:
            progress()
            count = os.preadv(source, [buffer[: end - start]], start)
            if not count:
                return  # the file has been truncated since
            start += os.pwrite(target, buffer[:count], start)


def _seek(fd: int, offset: int, whence: int) -> int | None:
    """Return where after `offset` the next data or hole begins; None where there is no more."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
