"""A program that ends with the process that has started it, and signals that end that process."""

import contextlib
import ctypes
import errno
import functools
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pycsi.linux.libc import function

PR_SET_PDEATHSIG = 1

STOPPING = (signal.SIGTERM, signal.SIGINT)
"""What ends a command."""

_prctl = function("prctl", ctypes.c_int, ctypes.c_ulong)


def start(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a program whose output goes to the file `log`; it gets SIGTERM when this process ends.

    This process has to be single-threaded, and has to hold its signals, see `signals_held`.
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the program
            # In a process with a single thread it is safe to run code before exec.
            preexec_fn=functools.partial(_prepare, os.getpid()),  # noqa: PLW1509
        )


def _prepare(parent: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before, and the kernel tells nobody of that
        raise ProcessLookupError(errno.ESRCH, "the parent has ended")


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let what ends this process arrive after the `with` block.

    An exception from a signal's handler would be lost in what Python calls around fork(2), which
    has nobody to raise it to.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
