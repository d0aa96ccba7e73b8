"""What the kernel lets this process do (capabilities(7), user_namespaces(7))."""

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
    """Take a copy of a mount, which is nowhere to be seen; `OSError` where nothing can be mounted.

    EPERM: not in this mount namespace; ENOSYS: not with this kernel, or not in this sandbox.
    """
    try:
        os.close(open_tree(AT_FDCWD, b"/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, path="/"))
    except OSError as error:
        # Others say something about this very mount: it may have parts that are locked to it.
        if error.errno in {errno.EPERM, errno.ENOSYS}:
            raise


def try_devices() -> None:
    """Raise `PermissionError` where loop devices, or filesystems on them, are out of reach.

    In a user namespace the kernel mounts no filesystem of a block device.
    """
    if not in_first_user_namespace():
        raise PermissionError(errno.EPERM, "this process is in a user namespace", "/dev/loop*")
    try:
        os.close(os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        raise
    except OSError:
        pass  # the module may be loaded later


def in_first_user_namespace() -> bool:
    """Tell whether root is the machine's root, not that of a user namespace."""
    return Path("/proc/self/ns/user").stat().st_ino == _FIRST_USER_NAMESPACE


def missing_capabilities(names: Iterable[str]) -> list[str]:
    """Return those of `CAPABILITIES` called `names` that this process does not have."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return [name for name in names if not effective & 1 << CAPABILITIES[name]]
