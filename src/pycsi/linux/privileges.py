"""The privileges of this process (capabilities(7), user_namespaces(7))."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from pycsi.linux.descriptor import AT_FDCWD
from pycsi.linux.mount import OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE, open_tree

CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
}

_FIRST_USER_NAMESPACE = 0xEFFFFFFD
"""`PROC_USER_INIT_INO` of <linux/proc_ns.h>."""

_LOOP_CONTROL = "/dev/loop-control"


def try_to_mount() -> None:
    """Test whether this process can mount, by making a detached copy of a mount.

    `OSError` if not. EPERM: not in this mount namespace; ENOSYS: not with this kernel or sandbox.
    """
    try:
        os.close(open_tree(AT_FDCWD, b"/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, path="/"))
    except OSError as error:
        # Other errors are about this mount alone, which may have locked mounts below it.
        if error.errno in {errno.EPERM, errno.ENOSYS}:
            raise


def try_devices() -> None:
    """Raise `PermissionError` if this process cannot use loop devices or mount them.

    In a user namespace the kernel refuses to mount filesystems on block devices.
    """
    if not in_first_user_namespace():
        raise PermissionError(errno.EPERM, "this process is in a user namespace", "/dev/loop*")
    try:
        os.close(os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        raise
    except OSError:
        pass  # the kernel module may be loaded later


def in_first_user_namespace() -> bool:
    """Tell whether this process is in the initial user namespace, so that root is the machine's."""
    return Path("/proc/self/ns/user").stat().st_ino == _FIRST_USER_NAMESPACE


def missing_capabilities(names: Iterable[str]) -> list[str]:
    """Return those of the capabilities `names` that this process lacks in its effective set."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return [name for name in names if not effective & 1 << CAPABILITIES[name]]
