"""Mounts: where something lies, and the system calls that change what is mounted.

A mount is prepared detached, gets its attributes, and only then is attached by `move_mount`: there
is no moment at which a read-only mount can be written to, and a crash leaves nothing attached.
Needs Linux 5.12 (mount_setattr(2)).
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

from pycsi.linux.descriptor import closing, no_symlinks, opened
from pycsi.linux.libc import StrPath, function, system_call
from pycsi.linux.mounttable import Mount, MountTable

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
    """What to change of a mount's attributes, in `MOUNT_ATTR_` bits: `set` wins over `clear`."""

    set: int = 0
    clear: int = 0


UNCHANGED = Attributes()

_ATIME = MOUNT_ATTR__ATIME
"""An access-time attribute is a value, not a flag: the old one has to be cleared with it."""

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
"""mount(8) options that belong to one mount, not to its filesystem."""

_PATIENCE = 2.0
"""Seconds to wait for those who use a mount for a moment only."""


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


def mountinfo() -> list[Mount]:
    """Return what this process sees mounted, in the order of mounting."""
    return list(MountTable())


def topmost(path: StrPath) -> Mount | None:
    """Return the mount that one sees at `path`, or None where nothing is mounted."""
    return MountTable().topmost(path)


def mount_of(fd: int) -> Mount:
    """Return the mount through which `fd` was opened."""
    fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_text()
    number = int(next(row.split()[1] for row in fdinfo.splitlines() if row.startswith("mnt_id:")))
    if mount := MountTable().numbered(number):
        return mount
    raise FileNotFoundError(2, "no such mount; it was detached", f"mnt_id {number}")


def mount_under(path: Path) -> Mount:
    """Return the mount that the directory `path` lies on."""
    with opened(path, os.O_DIRECTORY) as fd:
        return mount_of(fd)


def attributes_of(options: Iterable[str]) -> Attributes:
    """Return what those `options` change that are in `OF_ONE_MOUNT`."""
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
    """Attach a detached mount at `target`, in whose path there must be no symbolic link."""
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
    """Make `source` (a directory, file or device) visible at `target`.

    Its mount is like the one that `source` lies on, but for the `change`. In a user namespace what
    that mount forbids cannot be cleared: EPERM. In neither path there may be a symbolic link.
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
    """Let the filesystem on the device `source` appear at `target`.

    `options` are those of mount(8), `attributes` are `MOUNT_ATTR_` bits besides those that the
    options stand for. An option that the filesystem refuses is EINVAL; the kernel's reason is in
    the error's text, the option is not.
    """
    options = list(options)
    bits = attributes | attributes_of(options).set
    with detached(fstype, source, options, bits) as mounted:
        _attach(mounted, target)


def answers(mountpoint: str) -> bool:
    """Tell whether a directory can be read: not in a filesystem that was shut down.

    Of an ext4 the kernel still lists what it has read before, but tells no attribute.
    """
    try:
        next(Path(mountpoint).iterdir(), None)
        os.getxattr(mountpoint, "security.capability")
    except OSError as error:
        return error.errno != errno.EIO
    return True


def require(fstype: str) -> None:
    """Raise ENODEV where the kernel has no such filesystem, also not as a module."""
    with closing(_fsopen(fstype.encode(), FSOPEN_CLOEXEC, path=fstype)):
        pass


@contextlib.contextmanager
def detached(
    fstype: str, source: Path, options: Sequence[str] = (), attributes: int = 0
) -> Iterator[int]:
    """Mount the filesystem on the device `source` where nobody sees it, through the block.

    The descriptor of the mount is for openat(2) only. The mount ends with it, and so with us.
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
        if option in OF_ONE_MOUNT and option != "ro":
            continue
        key, equals, value = option.partition("=")
        if equals:
            _fsconfig(context, FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)
        else:
            _fsconfig(context, FSCONFIG_SET_FLAG, key.encode(), None, 0)
    _fsconfig(context, FSCONFIG_CMD_CREATE, None, None, 0)


def _complaints(context: int) -> str:
    """Return what the kernel says of a failed configuration, without the options' own text."""
    messages: list[str] = []
    while True:
        try:
            line = os.read(context, 4096).decode(errors="replace").strip()
        except OSError:
            return "; ".join(messages)
        kind, _, message = line.partition(" ")
        if kind == "e" and "'" not in message and '"' not in message:
            messages.append(message)


def umount2(target: StrPath, flags: int = UMOUNT_NOFOLLOW) -> None:
    """Detach the topmost mount at `target`; EBUSY while somebody uses it.

    It is looked for in a directory that is open: a descriptor of the mount itself would keep it
    busy, and its path may lead elsewhere by now.
    """
    folder, name = os.path.split(target)
    with no_symlinks(folder, os.O_DIRECTORY) as parent:
        _umount2(os.fsencode(f"/proc/self/fd/{parent}/{name}"), flags, path=target)


def unmount(target: StrPath) -> None:
    """Detach the topmost mount at `target`; EBUSY where somebody uses it for longer than a look.

    This driver looks too: a volume's filesystem is measured while nobody is kept from unmounting.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return umount2(target)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def syncfs(place: Path | int) -> None:
    """Write the filesystem that holds a path or an open file to its disk (syncfs(2))."""
    if isinstance(place, int):
        _syncfs(place)
        return
    with opened(place) as fd:
        _syncfs(fd, path=place)
