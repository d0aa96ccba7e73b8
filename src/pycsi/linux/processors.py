"""Which processors threads run on (sched_setaffinity(2)).

Python runs one thread at a time, and each system call lets another one go on. On several processors
that wakes an idle one each time, and whoever comes back from the call waits in turn: all that takes
longer than most calls. On one processor threads take turns where one of them has to wait anyway.
"""

import contextlib
import os
from collections.abc import Iterator

from pycsi.linux.libc import function

_ALL = os.sched_getaffinity(0)
"""Those that this process was started on: what an operator or a container allows."""

_current = function("sched_getcpu")


def gather() -> None:
    """Let this thread, and those that it starts, run on one processor: where it runs now.

    Others that could run elsewhere are moved away from it by the kernel, if they leave it no time.
    """
    _run_on({_current()})


@contextlib.contextmanager
def spread() -> Iterator[None]:
    """Let this thread run on all processors in the `with` block, and programs that it starts there.

    It is for what takes long and is not Python's work; a decorator as well.
    """
    before = os.sched_getaffinity(0)
    if before == _ALL:
        yield
        return
    _run_on(_ALL)
    try:
        yield
    finally:
        _run_on(before)


def _run_on(processors: set[int]) -> None:
    # EINVAL: they have been taken from this process (cpuset(7)), whose threads the kernel has moved
    # to those that are left. So they may stay there.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, processors)
