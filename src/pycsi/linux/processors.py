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

_HOME: set[int] = set()
"""The one on which its threads have been gathered; none before."""

_current = function("sched_getcpu")


def pin() -> None:
    """Let this thread, and those that it starts, run on one processor: where it runs now.

    Others that could run elsewhere are moved away from it by the kernel, if they leave it no time.
    """
    with contextlib.suppress(OSError):  # a sandbox that does not tell which: then it is all
        _HOME.add(_current())
        _run_on(_HOME)


@contextlib.contextmanager
def unpinned() -> Iterator[None]:
    """Let this thread run on all processors in the `with` block, and programs that it starts there.

    It is for what takes long and is not Python's work; a decorator as well. A thread that was not
    gathered, or that somebody else has sent elsewhere since, stays where it may run.
    """
    if os.sched_getaffinity(0) != _HOME:
        yield
        return
    _run_on(_ALL)
    try:
        yield
    finally:
        _run_on(_HOME)


def _run_on(processors: set[int]) -> None:
    # EINVAL: they have been taken from this process (cpuset(7)), whose threads the kernel has moved
    # to those that are left. So they may stay there.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, processors)
