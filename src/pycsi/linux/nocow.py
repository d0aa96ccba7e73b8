"""Files on btrfs that are written in place, not copied on write (FS_NOCOW_FL; chattr(1), +C).

Such a file has neither checksums nor compression. Blocks that it shares with another file are
copied when one of the two is written, once, and are written in place from then on.
"""

import contextlib

from pycsi.linux.tree import marks_of, set_marks

FS_COMPR_FL = 0x4
FS_NOCOMP_FL = 0x400
FS_NOCOW_FL = 0x800000

_COMPRESSION = FS_COMPR_FL | FS_NOCOMP_FL


def is_nocow(fd: int) -> bool:
    """Tell whether an open file, on btrfs, is written in place."""
    return bool(marks_of(fd) & FS_NOCOW_FL)


def set_nocow(fd: int, *, nocow: bool) -> bool:
    """Have an open file, on btrfs and empty, written in place, or not; tell how it is now.

    The kernel lets only files of the same kind share blocks.
    """
    with contextlib.suppress(OSError):  # what counts is what the file has afterwards
        if nocow and marks_of(fd) & _COMPRESSION:
            set_marks(fd, remove=_COMPRESSION)  # its directory's; the kernel takes one at a time
        set_marks(fd, add=FS_NOCOW_FL) if nocow else set_marks(fd, remove=FS_NOCOW_FL)
    return is_nocow(fd)
