"""Finding out whether a filesystem was shut down.

The kernel shuts down an ext4 or XFS whose disk fails: it writes nothing to that disk until the
filesystem is mounted anew. The functions here read only what the kernel has in memory, because a
failed disk may never answer, and because a read error from a bad sector is no shutdown.
"""

import errno
import fcntl
import os

from pycsi.linux import loop
from pycsi.linux.backing import number_shown
from pycsi.linux.descriptor import no_symlinks, opened
from pycsi.linux.kernel import Mount, MountTable, mount_of

_SHUT_DOWN = "shutdown"
"""The mount option with which recent kernels list an ext4 that was shut down."""


def is_shut_down(mounted: Mount) -> bool:
    """Tell whether it is certain that nothing can be written through a mount any more.

    It is certain if the mounted filesystem was shut down. If that filesystem is on a loop device,
    or the mount shows the node of one, it is also certain if the filesystem of the device's file
    was shut down. For btrfs the result is False, since the kernel does not show its state.
    """
    if _SHUT_DOWN in mounted.super_options or _fails(mounted):
        return True
    number = number_shown(mounted)
    return number is not None and _is_file_lost(number)


def _fails(mounted: Mount) -> bool:
    """Tell whether fstat(2) of a mount's root fails with EIO, as it does on an XFS shut down.

    XFS has these attributes in memory, so this does not read the disk.
    """
    try:
        with no_symlinks(mounted.target) as fd:
            if mount_of(fd).id != mounted.id:
                return False
            try:
                os.fstat(fd)
            except OSError as error:
                return error.errno == errno.EIO
    except OSError:  # a directory above the mount cannot be read
        return False
    return False


def _is_file_lost(number: int) -> bool:
    """Tell whether the file of a loop device is on a filesystem that was shut down."""
    status = loop.LoopInfo64()
    try:
        with opened(f"/dev/loop{number}", os.O_RDONLY) as fd:
            fcntl.ioctl(fd, loop.LOOP_GET_STATUS64, status)
    except OSError as error:
        return error.errno == errno.EIO  # the ioctl reads the attributes of the file
    return any(_SHUT_DOWN in item.super_options for item in MountTable().of(status.lo_device))
