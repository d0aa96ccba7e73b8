"""File descriptors that are closed at the end of a `with` block."""

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


class closing(int):  # noqa: N801  (called like a function)
    """A file descriptor that is closed at the end of a `with` block."""

    def __enter__(self) -> int:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self)


def opened(path: StrPath, flags: int = os.O_RDONLY, *, at: int | None = None) -> closing:
    """Open `path`, relative to the directory descriptor `at` if that is given (open(2)).

    A file that is created has mode 0600. Child programs do not inherit the descriptor.
    """
    return closing(os.open(path, flags | os.O_CLOEXEC, 0o600, dir_fd=at))


def no_symlinks(path: StrPath, flags: int = 0) -> closing:
    """Open `path` without read access (O_PATH); ELOOP if any part of it is a symbolic link.

    The kernel checks this while it opens the path (openat2(2)), so a link cannot be swapped in
    between check and use.
    """
    how = _OpenHow(flags | os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS)
    size = ctypes.sizeof(how)
    try:
        return closing(_openat2(AT_FDCWD, os.fsencode(path), ctypes.byref(how), size, path=path))
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        reason = "leads through a symbolic link; give the real path"
        raise OSError(errno.ELOOP, reason, os.fspath(path)) from None


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


def names_in(fd: int) -> list[str]:
    """Return the names in an open directory, as they are now.

    os.listdir alone does not: btrfs shows an open directory as it was when it was opened, or when
    lseek(2) has last set it to its beginning.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    return os.listdir(fd)


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
    with opened(path, os.O_DIRECTORY) as fd:
        os.fsync(fd)
