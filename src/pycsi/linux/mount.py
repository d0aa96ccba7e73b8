"""The system calls that make and remove mounts.

A mount is made detached, gets its attributes, and only then is attached by `move_mount`. So a
read-only mount is never writable, not even briefly, and a crash leaves nothing half mounted. Needs
Linux 5.12 (mount_setattr(2)).
"""

import contextlib
import ctypes
import errno
import functools
import operator
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pycsi.linux.descriptor import AT_FDCWD, closing, no_symlinks, opened
from pycsi.linux.libc import StrPath, function, system_call

AT_EMPTY_PATH = 0x1000
FSCONFIG_CMD_CREATE = 6
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSMOUNT_CLOEXEC = 0x1
FSOPEN_CLOEXEC = 0x1
MNT_DETACH = 0x2
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR__ATIME = 0x70
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
OPEN_TREE_CLONE = 0x1
UMOUNT_NOFOLLOW = 0x8


class Attributes(NamedTuple):
    """A change of a mount's attributes, in `MOUNT_ATTR_` bits; `set` wins over `clear`."""

    set: int = 0
    clear: int = 0


UNCHANGED = Attributes()

_ATIME = MOUNT_ATTR__ATIME
"""The access-time attributes are values of one field, so setting one has to clear the others."""

_CHANGES = {
    "atime": Attributes(MOUNT_ATTR_RELATIME, _ATIME),
    "dev": Attributes(clear=MOUNT_ATTR_NODEV),
    "diratime": Attributes(clear=MOUNT_ATTR_NODIRATIME),
    "exec": Attributes(clear=MOUNT_ATTR_NOEXEC),
    "noatime": Attributes(MOUNT_ATTR_NOATIME, _ATIME),
    "nodev": Attributes(MOUNT_ATTR_NODEV),
    "nodiratime": Attributes(MOUNT_ATTR_NODIRATIME),
    "noexec": Attributes(MOUNT_ATTR_NOEXEC),
    "nosuid": Attributes(MOUNT_ATTR_NOSUID),
    "nosymfollow": Attributes(MOUNT_ATTR_NOSYMFOLLOW),
    "relatime": Attributes(MOUNT_ATTR_RELATIME, _ATIME),
    "ro": Attributes(MOUNT_ATTR_RDONLY),
    "rw": Attributes(clear=MOUNT_ATTR_RDONLY),
    "strictatime": Attributes(MOUNT_ATTR_STRICTATIME, _ATIME),
    "suid": Attributes(clear=MOUNT_ATTR_NOSUID),
    "symfollow": Attributes(clear=MOUNT_ATTR_NOSYMFOLLOW),
}
_CHANGES["defaults"] = Attributes(
    clear=functools.reduce(
        operator.or_, (_CHANGES[name].clear for name in ("rw", "suid", "dev", "exec"))
    )
)

OF_ONE_MOUNT = frozenset(_CHANGES)
"""The mount(8) options that belong to a single mount, not to its filesystem."""

_PATIENCE = 2.0
"""Seconds that `unmount` waits for brief users of a mount."""


class _MountAttr(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


open_tree = system_call(428, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_move_mount = system_call(
    429, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_fsopen = system_call(430, ctypes.c_char_p, ctypes.c_uint)
_fsconfig = system_call(
    431, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int
)
_fsmount = system_call(432, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)
_mount_setattr = system_call(
    442,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
    ctypes.POINTER(_MountAttr),
    ctypes.c_size_t,
)
_umount2 = function("umount2", ctypes.c_char_p, ctypes.c_int)
_syncfs = function("syncfs", ctypes.c_int)


def attributes_of(options: Iterable[str]) -> Attributes:
    """Return the change that the `options` in `OF_ONE_MOUNT` make; others are ignored."""
    bits = cleared = 0
    for option in options:
        change = _CHANGES.get(option, UNCHANGED)
        bits |= change.set
        cleared |= change.clear
    return Attributes(bits, cleared)


def _mount_setattr_fd(fd: int, change: Attributes, path: str) -> None:
    clear = change.clear & (~change.set | MOUNT_ATTR__ATIME)
    request = _MountAttr(change.set, clear, 0, 0)
    size = ctypes.sizeof(request)
    _mount_setattr(fd, b"", AT_EMPTY_PATH, ctypes.byref(request), size, path=path)


def _attach(mount: int, target: StrPath) -> None:
    """Attach a detached mount at `target`, whose path must not contain a symbolic link."""
    with no_symlinks(target) as place:
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        try:
            _move_mount(mount, b"", place, b"", flags, path=target)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            reason = "the kernel allows no more mounts; raise fs.mount-max (sysctl)"
            raise OSError(errno.ENOSPC, reason, os.fspath(target)) from None


def bind(source: StrPath, target: StrPath, change: Attributes = UNCHANGED) -> None:
    """Bind-mount `source`, a directory, file or device, at `target`.

    The new mount has the attributes of the mount that `source` lies on, with the `change` applied.
    In a user namespace inherited restrictions cannot be cleared: EPERM. Neither path may contain a
    symbolic link: ELOOP.
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
    with (
        no_symlinks(source) as shown,
        closing(open_tree(shown, b"", flags, path=source)) as clone,
    ):
        if change != UNCHANGED:
            _mount_setattr_fd(clone, change, os.fspath(target))
        _attach(clone, target)


def mount(
    fstype: str, source: Path, target: StrPath, options: Iterable[str] = (), attributes: int = 0
) -> None:
    """Mount the filesystem on the device `source` at `target`.

    `options` are those of mount(8); `attributes` are `MOUNT_ATTR_` bits to set in addition. An
    option that the filesystem refuses is EINVAL. The error's text has the kernel's reason, but not
    the option, which may be sensitive.
    """
    options = list(options)
    bits = attributes | attributes_of(options).set
    with detached(fstype, source, options, bits) as mounted:
        _attach(mounted, target)


def answers(mountpoint: str) -> bool:
    """Tell whether a mounted directory can be read; False if its filesystem has been shut down.

    A shut-down ext4 still lists directories that are cached, so an extended attribute is read too.
    """
    try:
        next(Path(mountpoint).iterdir(), None)
    except OSError as error:
        return error.errno != errno.EIO
    return tells_attributes(mountpoint)


def tells_attributes(mountpoint: str) -> bool:
    """Tell the same by one attribute alone, which is in memory where it is mounted."""
    try:
        os.getxattr(mountpoint, "security.capability")
    except OSError as error:
        return error.errno != errno.EIO
    return True


def require(fstype: str) -> None:
    """Raise ENODEV if the kernel has no filesystem `fstype`, either built in or as a module."""
    with closing(_fsopen(fstype.encode(), FSOPEN_CLOEXEC, path=fstype)):
        pass


@contextlib.contextmanager
def detached(
    fstype: str, source: Path, options: Sequence[str] = (), attributes: int = 0
) -> Iterator[int]:
    """Mount the filesystem on the device `source` for the block, without attaching it anywhere.

    Yield a descriptor of the mount, which is only for openat(2). The mount ends when the descriptor
    is closed, and so at the latest with this process.
    """
    with closing(_fsopen(fstype.encode(), FSOPEN_CLOEXEC, path=source)) as context:
        try:
            _configure(context, source, options)
        except OSError as error:
            reason = _complaints(context) or error.strerror
            raise OSError(error.errno, reason, os.fspath(source)) from None
        with closing(_fsmount(context, FSMOUNT_CLOEXEC, attributes, path=source)) as mounted:
            yield mounted


def _configure(context: int, source: Path, options: Sequence[str]) -> None:
    _fsconfig(context, FSCONFIG_SET_STRING, b"source", os.fsencode(source), 0)
    for option in options:
        _set_option(context, option)
    _fsconfig(context, FSCONFIG_CMD_CREATE, None, None, 0)


def _set_option(context: int, option: str) -> None:
    if option in OF_ONE_MOUNT and option != "ro":
        return
    key, equals, value = option.partition("=")
    if equals:
        _fsconfig(context, FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)
    else:
        _fsconfig(context, FSCONFIG_SET_FLAG, key.encode(), None, 0)


def knows_option(fstype: str, option: str) -> bool:
    """Tell whether the kernel can parse a mount option of a filesystem.

    Whether it then mounts one with it, the kernel says only of a device. True where it cannot be
    asked: without the filesystem, or the right to mount it.
    """
    try:
        context = _fsopen(fstype.encode(), FSOPEN_CLOEXEC, path=fstype)
    except OSError:
        return True
    with closing(context):
        try:
            _set_option(context, option)
        except OSError as error:
            return error.errno != errno.EINVAL
    return True


def _complaints(context: int) -> str:
    """Return the kernel's messages on a failed configuration, except those that quote an option."""
    messages: list[str] = []
    while True:
        try:
            line = os.read(context, 4096).decode(errors="replace").strip()
        except OSError:
            return "; ".join(messages)
        kind, _, message = line.partition(" ")
        if kind == "e" and "'" not in message and '"' not in message:
            messages.append(message)


@contextlib.contextmanager
def uncovered(parent: str, inside: str) -> Iterator[int]:
    """Open the directory `inside` of the mount at `parent` without what is mounted over it.

    Yield a descriptor that is only for openat(2). It is of a copy of that one mount, which belongs
    to no namespace, and ends with the block (open_tree(2)).
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    with (
        closing(open_tree(AT_FDCWD, os.fsencode(parent), flags, path=parent)) as copy,
        opened(inside, os.O_DIRECTORY, at=copy) as fd,
    ):
        yield fd


def umount2(target: StrPath, flags: int = UMOUNT_NOFOLLOW) -> None:
    """Unmount the topmost mount at `target` (umount2(2)); EBUSY while it is in use.

    The target is named relative to its open parent directory: a descriptor of the mount itself
    would keep it busy, and the path may lead elsewhere by now.
    """
    folder, name = os.path.split(target)
    with no_symlinks(folder, os.O_DIRECTORY) as parent:
        _umount2(os.fsencode(f"/proc/self/fd/{parent}/{name}"), flags, path=target)


def unmount(target: StrPath) -> None:
    """Unmount the topmost mount at `target`; EBUSY if it is in use for longer than 2 seconds.

    Brief users are waited for. The driver is one itself: it measures a volume's filesystem without
    a lock, so an unmount may fall into that time.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return umount2(target)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def unmount_lazily(target: StrPath) -> None:
    """Detach the topmost mount at `target`; whoever uses it keeps it, where nobody else sees it."""
    umount2(target, UMOUNT_NOFOLLOW | MNT_DETACH)


def syncfs(place: Path | int) -> None:
    """Write the dirty data of the filesystem that holds a path or open file to disk (syncfs(2))."""
    if isinstance(place, int):
        _syncfs(place)
        return
    with opened(place) as fd:
        _syncfs(fd, path=place)
