"""Freezing a mounted filesystem: what was written is on its disk, what comes now waits.

FIFREEZE and FITHAW of <linux/fs.h>. A freeze does not end with the process that asked for it.
"""

import errno
import fcntl

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878


def freeze(fd: int) -> bool:
    """Freeze the filesystem that `fd` is open on; False where somebody has done so already."""
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def thaw(fd: int) -> bool:
    """Thaw the filesystem that `fd` is open on; False where it is not frozen."""
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True
