"""Deleting directory trees with untrusted content."""

import contextlib
import errno
import fcntl
import os
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

from pycsi.linux.descriptor import DIRECTORY, closing, names_in, opened
from pycsi.linux.kernel import MountTable

FS_APPEND_FL = 0x20
FS_IMMUTABLE_FL = 0x10
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_SYNC_FL = 0x8

_PROTECTED = FS_APPEND_FL | FS_IMMUTABLE_FL


def refuse_mounts(path: Path) -> None:
    """Raise EBUSY if anything is mounted at `path` or below it."""
    refuse_listed(MountTable(), os.path.realpath(path))


def refuse_listed(mounts: MountTable, path: str) -> None:
    """Raise EBUSY if one of `mounts` is at `path` or below it; `path` has no symbolic links."""
    if found := mounts.below(path):
        raise OSError(errno.EBUSY, "something is mounted there; unmount it", found[0].target)


def remove(path: Path, interrupted: Callable[[], bool] = lambda: False) -> None:
    """Delete the directory `path` and everything in it, as `empty` does; it may be absent."""
    empty(path, interrupted)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def empty(path: Path, interrupted: Callable[[], bool] = lambda: False) -> None:
    """Delete everything in the directory `path`, which may be absent.

    Symbolic links are not followed, and mounts are refused: EBUSY. Subdirectories are moved up
    before they are emptied, so the depth of the tree costs neither stack nor file descriptors. When
    `interrupted` returns true, the deletion stops with `InterruptedError`.
    """
    try:
        root = os.open(path, DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with closing(root):
        refuse_listed(MountTable(), os.readlink(f"/proc/self/fd/{root}"))
        try_change_inode_flags(root, remove=_PROTECTED)
        while entries := names_in(root):
            for name in entries:
                if interrupted():
                    raise InterruptedError(errno.EINTR, "stopped half way", os.fspath(path))
                with contextlib.suppress(FileNotFoundError):  # another process deletes it too
                    if not _unlink(name, root):
                        _move_up(name, root)
                        os.rmdir(name, dir_fd=root)


def unprotect(path: Path) -> None:
    """Clear the inode flags immutable and append-only (chattr(1)) of the directory `path`."""
    with opened(path, DIRECTORY) as fd:
        try_change_inode_flags(fd, remove=_PROTECTED)


def _unlink(name: str, directory: int) -> bool:
    """Delete the entry `name`; return False if it is a directory."""
    try:
        try:
            os.unlink(name, dir_fd=directory)
        except PermissionError:
            _unprotect(name, directory)
            os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _unprotect(name: str, directory: int) -> None:
    """Clear the inode flags that keep an entry from being deleted (chattr(1))."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(OSError), opened(name, flags, at=directory) as fd:
        try_change_inode_flags(fd, remove=_PROTECTED)


def try_change_inode_flags(fd: int, *, add: int = 0, remove: int = 0) -> None:
    """Change the inode flags (chattr(1)) of an open file; any failure is ignored."""
    with contextlib.suppress(OSError):
        change_inode_flags(fd, add=add, remove=remove)


def inode_flags(fd: int) -> int:
    """Return the inode flags, FS_..._FL bits, of an open file (FS_IOC_GETFLAGS)."""
    (flags,) = struct.unpack("=i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
    return int(flags)


def change_inode_flags(fd: int, *, add: int = 0, remove: int = 0) -> None:
    """Change the inode flags of an open file; `OSError` if that is refused (FS_IOC_SETFLAGS)."""
    before = inode_flags(fd)
    if (after := (before | add) & ~remove) != before:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=i", after))


def _move_up(name: str, root: int) -> None:
    """Empty the directory `name` in `root`: its files are deleted, its directories move up."""
    with opened(name, DIRECTORY, at=root) as directory:
        try_change_inode_flags(directory, remove=_PROTECTED)
        for entry in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                if not _unlink(entry, directory):
                    _rename_up(entry, directory, root)


def _rename_up(entry: str, directory: int, root: int) -> None:
    unused = f".{uuid.uuid4().hex}"
    try:
        os.rename(entry, unused, src_dir_fd=directory, dst_dir_fd=root)
    except PermissionError:
        _unprotect(entry, directory)
        os.rename(entry, unused, src_dir_fd=directory, dst_dir_fd=root)
