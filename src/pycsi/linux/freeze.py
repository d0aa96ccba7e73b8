"""Freezing a mounted filesystem: earlier writes are on its disk, and new ones wait.

The ioctls are FIFREEZE and FITHAW of <linux/fs.h>. A freeze outlives the process that made it.
"""

import errno
import fcntl

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878


def freeze(fd: int) -> bool:
    """Freeze the filesystem on which `fd` is open; False if it is frozen already."""
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def thaw(fd: int) -> bool:
    """Thaw the filesystem on which `fd` is open; False if it is not frozen."""
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True
