"""File descriptors that are closed at the end of a `with` block.

The context managers are classes: generators would cost as much as the system calls.
"""

import ctypes
import errno
import os
import stat

from pycsi.linux.libc import StrPath, system_call

AT_FDCWD = -100
RESOLVE_NO_SYMLINKS = 0x4

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors of a full filesystem, and of a quota that is used up."""

DISK_FAULTS = frozenset(
    {
        errno.EIO,
        errno.EUCLEAN,
        errno.EBADMSG,
        errno.ENODATA,
        errno.EILSEQ,
        errno.EREMOTEIO,
        errno.ENXIO,
        errno.ESHUTDOWN,
        errno.ESTALE,
    }
)
"""The kernel's errors for a failed disk or damaged data; each layer of block I/O has its own."""

_PART = 1 << 16

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
"""The flags that open a directory and refuse a symbolic link to one."""


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_openat2 = system_call(
    437, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t
)


class closing:  # noqa: N801  (called like a function, as are the others here)
    """Close `fd` at the end of the block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class opened(closing):  # noqa: N801
    """Open `path`, relative to the directory descriptor `at` if that is given (open(2)).

    A file that is created has mode 0600. Child programs do not inherit the descriptor.
    """

    def __init__(self, path: StrPath, flags: int = os.O_RDONLY, *, at: int | None = None) -> None:
        self._path, self._flags, self._at = path, flags, at

    def __enter__(self) -> int:
        self._fd = os.open(self._path, self._flags | os.O_CLOEXEC, 0o600, dir_fd=self._at)
        return self._fd


class no_symlinks(closing):  # noqa: N801
    """Open `path` without read access (O_PATH); ELOOP if any part of it is a symbolic link.

    The kernel checks this while it opens the path (openat2(2)), so a link cannot be swapped in
    between check and use.
    """

    def __init__(self, path: StrPath, flags: int = 0) -> None:
        self._path = path
        self._how = _OpenHow(flags | os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS)

    def __enter__(self) -> int:
        path, how = os.fsencode(self._path), self._how
        try:
            self._fd = _openat2(
                AT_FDCWD, path, ctypes.byref(how), ctypes.sizeof(how), path=self._path
            )
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            reason = "leads through a symbolic link; give the real path"
            raise OSError(errno.ELOOP, reason, os.fspath(self._path)) from None
        return self._fd


def read_file(path: StrPath) -> bytes:
    """Return the content of the file `path`, with as few system calls as possible."""
    with opened(path) as fd:
        return read_whole(fd)


def read_whole(fd: int) -> bytes:
    """Return the rest of an open file, from its current offset."""
    parts = []
    while part := os.read(fd, _PART):
        parts.append(part)
    return b"".join(parts)


def exists(path: StrPath) -> bool:
    """Tell whether `path` exists; any error but its absence is raised."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_directory(path: StrPath) -> bool:
    """Tell whether `path` is a directory, and not a symbolic link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def sync_directory(path: StrPath) -> None:
    """Make the entries of the directory `path` durable (fsync(2))."""
    fd = os.open(path, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
