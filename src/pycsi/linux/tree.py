"""Deleting directory trees that somebody else has filled."""

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from pycsi.linux.descriptor import DIRECTORY, opened
from pycsi.linux.mount import mountinfo


def refuse_mounts(path: Path) -> None:
    """Raise EBUSY if anything is mounted at `path` or below it."""
    place = os.path.realpath(path)
    for item in mountinfo():
        if item.target == place or item.target.startswith(f"{place}/"):
            raise OSError(errno.EBUSY, "something is mounted there; unmount it", item.target)


def remove(path: Path, interrupted: Callable[[], bool] = lambda: False) -> None:
    """Delete the directory `path` with all that is in it; absent is fine.

    Nothing is followed: neither links nor mounts (EBUSY). Directories are moved up before they are
    emptied, so a tree of any depth takes neither stack nor file descriptors. `interrupted` is asked
    now and then whether to stop, which is an `InterruptedError`.
    """
    if not os.path.lexists(path):
        return
    refuse_mounts(path)
    with opened(path, DIRECTORY) as root:
        while entries := os.listdir(root):  # noqa: PTH208  (pathlib knows no descriptors)
            for name in entries:
                if interrupted():
                    raise InterruptedError(errno.EINTR, "stopped half way", os.fspath(path))
                if not _unlink(name, root):
                    _move_up(name, root)
                    os.rmdir(name, dir_fd=root)
    path.rmdir()


def _unlink(name: str, directory: int) -> bool:
    """Delete what is not a directory; return False where `name` is one."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _move_up(name: str, root: int) -> None:
    """Empty the directory `name` in `root`: its files are deleted, its directories move up."""
    with opened(name, DIRECTORY, at=root) as directory:
        for entry in os.listdir(directory):  # noqa: PTH208
            if not _unlink(entry, directory):
                unused = f".{uuid.uuid4().hex}"
                os.rename(entry, unused, src_dir_fd=directory, dst_dir_fd=root)
