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
MS_PRIVATE = 1 << 18
MS_REC = 1 << 14
PR_SET_PDEATHSIG = 1

_mount = function(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p
)
_prctl = function("prctl", ctypes.c_int, ctypes.c_ulong)
_unshare = function("unshare", ctypes.c_int)


def make_private(target: Path) -> None:
    """Pass mounts at and below `target` on to no other namespace, and take none from there."""
    _mount(None, os.fsencode(target), None, MS_REC | MS_PRIVATE, None, path=target)


def enter_mounts() -> None:
    """Enter a mount namespace of our own; EPERM without CAP_SYS_ADMIN."""
    _unshare(CLONE_NEWNS)
    make_private(Path("/"))


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
    make_private(Path("/"))


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, even by SIGKILL."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
