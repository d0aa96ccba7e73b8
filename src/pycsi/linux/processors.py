"""The processors on which threads run (sched_setaffinity(2)).

Python runs one thread at a time, and each system call lets another one continue. On several
processors this wakes an idle processor each time, and the thread that returns from the call has to
wait in turn; both take longer than most system calls. On one processor threads change only when one
of them has to wait anyway.
"""

import contextlib
import os
from collections.abc import Iterator

from pycsi.linux.libc import function

_ALL = os.sched_getaffinity(0)
"""The processors on which this process was started, as the operator or container allows."""

_HOME: set[int] = set()
"""The processor to which threads are pinned; empty before `pin`."""

_current = function("sched_getcpu")


def pin() -> None:
    """Pin this thread, and the threads that it starts, to the processor on which it runs now.

    If that processor is busy, the kernel moves other processes away from it.
    """
    with contextlib.suppress(OSError):  # if a sandbox hides the processor, all are used
        _HOME.add(_current())
        _run_on(_HOME)


@contextlib.contextmanager
def unpinned() -> Iterator[None]:
    """Unpin this thread, and the programs that it starts, for the `with` block.

    This is for long work outside Python, such as copies and programs; it is a decorator as well. A
    thread that is not pinned, or whose affinity was changed from outside, keeps its affinity.
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
    # EINVAL: these processors were taken from this process (cpuset(7)), and the kernel has moved
    # its threads to the remaining ones. They can stay there.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, processors)
