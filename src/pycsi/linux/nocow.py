"""Files on btrfs that are written in place instead of copied on write (FS_NOCOW_FL; chattr(1), +C).

Such a file has neither checksums nor compression. A block that it shares with another file is
copied once, at the first write to either file, and is written in place from then on.
"""

import contextlib

from pycsi.linux.tree import marks_of, set_marks

FS_COMPR_FL = 0x4
FS_NOCOMP_FL = 0x400
FS_NOCOW_FL = 0x800000

_COMPRESSION = FS_COMPR_FL | FS_NOCOMP_FL


def is_nocow(fd: int) -> bool:
    """Tell whether an open file on btrfs is written in place."""
    return bool(marks_of(fd) & FS_NOCOW_FL)


def set_nocow(fd: int, *, nocow: bool) -> bool:
    """Set whether an open, empty file on btrfs is written in place; return whether it now is.

    The kernel lets two files share blocks only if both are written in place, or neither is.
    """
    with contextlib.suppress(OSError):  # the result tells whether it worked
        if nocow and marks_of(fd) & _COMPRESSION:
            # Inherited from the directory; the kernel refuses both changes at once.
            set_marks(fd, remove=_COMPRESSION)
        set_marks(fd, add=FS_NOCOW_FL) if nocow else set_marks(fd, remove=FS_NOCOW_FL)
    return is_nocow(fd)
