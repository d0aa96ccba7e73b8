"""Mount namespaces, which give a process mounts of its own (unshare(2), mount_namespaces(7)).

A namespace ends with its last process, however that ends, and so do the mounts in it.
"""

import contextlib
import ctypes
import os
from pathlib import Path

from pycsi.linux.libc import function

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_REC = 1 << 14
MS_SLAVE = 1 << 19

_mount = function(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p
)
_unshare = function("unshare", ctypes.c_int)


def _pass_nothing_on() -> None:
    """Pass new mounts on to no other namespace, but follow the unmounts of others (MS_SLAVE).

    A new namespace has a copy of every mount, which would keep its disk or loop device busy after
    all other namespaces have unmounted it. A slave of a shared mount is unmounted together with it.
    """
    _mount(None, b"/", None, MS_REC | MS_SLAVE, None, path="/")


def enter_mounts() -> None:
    """Move this process to a new mount namespace; EPERM without CAP_SYS_ADMIN."""
    _unshare(CLONE_NEWNS)
    _pass_nothing_on()


def enter_mounts_as_user() -> None:
    """Move this process to new user and mount namespaces, in which its user is root.

    That root can make bind mounts, but cannot mount block devices. EINVAL if the process has more
    than one thread.
    """
    user, group = os.geteuid(), os.getegid()
    _unshare(CLONE_NEWUSER | CLONE_NEWNS)
    # The kernel wants this before gid_map is written: otherwise a user could drop a group that
    # denies access (user_namespaces(7)).
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _pass_nothing_on()
