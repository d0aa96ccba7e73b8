"""Whether a filesystem was shut down: until it is mounted anew nothing is written to its disk.

The kernel does that to an ext4 or XFS whose disk fails. Only what it knows without the disk is
asked here, for that may never answer, and a bad sector is no shutdown.
"""

import errno
import fcntl
import os

from pycsi.linux import loop
from pycsi.linux.backing import number_shown
from pycsi.linux.descriptor import no_symlinks, opened
from pycsi.linux.kernel import Mount, MountTable, mount_of

_SHUT_DOWN = "shutdown"
"""How recent kernels list an ext4 then."""


def is_shut_down(mounted: Mount) -> bool:
    """Tell whether it is certain that nothing can be written through a mount any more.

    Its filesystem was shut down, or that of the file whose loop device it is on, or shows. Of btrfs
    nothing is certain: the kernel does not tell.
    """
    if _SHUT_DOWN in mounted.super_options or _fails(mounted):
        return True
    number = number_shown(mounted)
    return number is not None and _is_file_lost(number)


def _fails(mounted: Mount) -> bool:
    """Tell whether the kernel refuses the attributes of a mount's root: XFS has them in memory."""
    try:
        with no_symlinks(mounted.target) as fd:
            if mount_of(fd).id != mounted.id:
                return False
            try:
                os.fstat(fd)
            except OSError as error:
                return error.errno == errno.EIO
    except OSError:  # the way there fails
        return False
    return False


def _is_file_lost(number: int) -> bool:
    """Tell whether the file of a loop device is on a filesystem that was shut down."""
    status = loop.LoopInfo64()
    try:
        with opened(f"/dev/loop{number}", os.O_RDONLY) as fd:
            fcntl.ioctl(fd, loop.LOOP_GET_STATUS64, status)
    except OSError as error:
        return error.errno == errno.EIO  # the file's attributes are asked for
    return any(_SHUT_DOWN in item.super_options for item in MountTable().of(status.lo_device))
