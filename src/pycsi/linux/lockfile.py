"""Files and directories locked with flock(2), so that of several processes one acts at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pycsi.linux.descriptor import DIRECTORY, opened


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`, which is made if it is missing, for the `with` block.

    The lock goes with the process, however that ends.
    """
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def locked_directory(path: str) -> Iterator[None]:
    """Hold the lock of a directory, as `locked` that of a file; `BlockingIOError` if it is held."""
    with opened(path, DIRECTORY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def is_locked(path: Path | str) -> bool:
    """Tell whether a process holds the lock of a file or directory; a missing one is nobody's."""
    try:
        with opened(path) as fd:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
