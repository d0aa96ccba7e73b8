"""Files on btrfs that are written in place instead of copied on write (FS_NOCOW_FL; chattr(1), +C).

Such a file has neither checksums nor compression. A block that it shares with another file is
copied once, at the first write to either file, and is written in place from then on.
"""

import contextlib

from pycsi.linux.tree import change_inode_flags, inode_flags

FS_COMPR_FL = 0x4
FS_NOCOMP_FL = 0x400
FS_NOCOW_FL = 0x800000

_COMPRESSION = FS_COMPR_FL | FS_NOCOMP_FL


def is_nocow(fd: int) -> bool:
    """Tell whether an open file on btrfs is written in place."""
    return bool(inode_flags(fd) & FS_NOCOW_FL)


def set_nocow(fd: int, *, nocow: bool) -> bool:
    """Set whether an open, empty file on btrfs is written in place; return whether it now is.

    The kernel lets two files share blocks only if both are written in place, or neither is.
    """
    with contextlib.suppress(OSError):  # the result tells whether it worked
        if nocow and inode_flags(fd) & _COMPRESSION:
            # Inherited from the directory; the kernel refuses both changes at once.
            change_inode_flags(fd, remove=_COMPRESSION)
        change_inode_flags(fd, add=FS_NOCOW_FL) if nocow else change_inode_flags(
            fd, remove=FS_NOCOW_FL
        )
    return is_nocow(fd)
