"""Files on btrfs that are written in place, not copied on write (FS_NOCOW_FL; chattr(1), +C).

Such a file has neither checksums nor compression. Blocks that it shares with another file are
copied when one of the two is written, once, and are written in place from then on.
"""

import contextlib
import fcntl
import struct

from pycsi.linux.tree import FS_IOC_GETFLAGS, FS_IOC_SETFLAGS

FS_COMPR_FL = 0x4
FS_NOCOMP_FL = 0x400
FS_NOCOW_FL = 0x800000

_COMPRESSION = FS_COMPR_FL | FS_NOCOMP_FL


def is_nocow(fd: int) -> bool:
    """Tell whether an open file, on btrfs, is written in place."""
    return bool(_marks(fd) & FS_NOCOW_FL)


def set_nocow(fd: int, *, nocow: bool) -> bool:
    """Have an open file, on btrfs and empty, written in place, or not; tell how it is now.

    The kernel lets only files of the same kind share blocks.
    """
    with contextlib.suppress(OSError):  # what counts is what the file has afterwards
        if nocow and _marks(fd) & _COMPRESSION:
            _change(fd, remove=_COMPRESSION)  # its directory's; the kernel takes one at a time
        _change(fd, add=FS_NOCOW_FL) if nocow else _change(fd, remove=FS_NOCOW_FL)
    return is_nocow(fd)


def _marks(fd: int) -> int:
    (marks,) = struct.unpack("=i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
    return int(marks)


def _change(fd: int, *, add: int = 0, remove: int = 0) -> None:
    marks = _marks(fd)
    if (changed := (marks | add) & ~remove) != marks:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=i", changed))
