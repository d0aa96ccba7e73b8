"""Files that are locked with flock(2), so that of several processes one acts at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pycsi.linux.descriptor import opened


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`, which is made if it is missing, for the `with` block.

    The lock goes with the process, however that ends.
    """
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
