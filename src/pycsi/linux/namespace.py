"""Namespaces: a view of the mounts that is this process's own (unshare(2), mount_namespaces(7)).

A namespace goes with its last process, and all that is mounted in it goes with it, whatever killed
that process. What a process has to do with its children's end is here for the same reason.
"""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

from pycsi.linux.libc import function

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_REC = 1 << 14
MS_SLAVE = 1 << 19
PR_SET_PDEATHSIG = 1

_mount = function(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p
)
_prctl = function("prctl", ctypes.c_int, ctypes.c_ulong)
_unshare = function("unshare", ctypes.c_int)


def _pass_nothing_on() -> None:
    """Pass what is mounted here on to no other namespace, and let go of what is unmounted there.

    A new namespace has a copy of every mount, which would keep its disk or loop device busy when
    everybody else has unmounted it. A slave of the original goes with that, where it is shared.
    """
    _mount(None, b"/", None, MS_REC | MS_SLAVE, None, path="/")


def enter_mounts() -> None:
    """Enter a mount namespace of our own; EPERM without CAP_SYS_ADMIN."""
    _unshare(CLONE_NEWNS)
    _pass_nothing_on()


def enter_mounts_as_user() -> None:
    """Enter user and mount namespaces of our own, in which this user is root.

    Root over these namespaces only: bind mounts can be made, block devices are out of reach. The
    kernel refuses (EINVAL) unless this is the process's only thread.
    """
    user, group = os.geteuid(), os.getegid()
    _unshare(CLONE_NEWUSER | CLONE_NEWNS)
    # Without this a user could drop a group that is there to deny access (user_namespaces(7)).
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _pass_nothing_on()


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, even by SIGKILL."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
