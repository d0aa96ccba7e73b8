"""Running programs, and the processors that they and the driver's threads run on.

The driver starts other processes only here.

Python runs one thread at a time, and each system call lets another one continue. On several
processors this wakes an idle processor each time, and the thread that returns from the call has to
wait in turn; both take longer than most system calls. On one processor threads change only when one
of them has to wait anyway. So the driver's threads may be pinned to one (sched_setaffinity(2));
programs, and other long work outside Python, use all.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pycsi.linux.libc import function

_SAID = 400
"""Maximum number of characters of a program's output that are quoted in an error."""

_ALL_PROCESSORS = os.sched_getaffinity(0)
"""The processors on which this process was started, as the operator or container allows."""

_HOME: set[int] = set()
"""The processor to which threads are pinned; empty before `pin`."""

_current_processor = function("sched_getcpu")

_found: dict[str, str] = {}


class ProgramError(Exception):
    """A program was missing, failed or took too long; the message says which, with its output.

    `status` is its exit status; None if it had none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def find(name: str) -> str | None:
    """Return the path of the program `name` on PATH, or None.

    Every Probe calls this, so the path that was found last is checked first.
    """
    found = _found.get(name)
    if found is None or not os.access(found, os.X_OK):
        found = shutil.which(name)
        if found:
            _found[name] = found
    return found


def pin() -> None:
    """Pin this thread, and the threads that it starts, to the processor on which it runs now.

    If that processor is busy, the kernel moves other processes away from it.
    """
    with contextlib.suppress(OSError):  # if a sandbox hides the processor, all are used
        _HOME.add(_current_processor())
        os.sched_setaffinity(0, _HOME)


@contextlib.contextmanager
def unpinned() -> Iterator[None]:
    """Unpin this thread, and the programs that it starts, for the `with` block.

    This is for long work outside Python, such as copies and programs; it is a decorator as well. A
    thread that is not pinned, or whose affinity was changed from outside, keeps its affinity.
    """
    if os.sched_getaffinity(0) != _HOME:
        yield
        return
    # EINVAL: these processors were taken from this process (cpuset(7)), and the kernel has moved
    # its threads to the remaining ones. They can stay there.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, _ALL_PROCESSORS)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, _HOME)


@unpinned()
def run(
    name: str,
    *arguments: str | Path,
    ok: Sequence[int] = (0,),
    keep: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> str:
    """Run a program without a shell, and return its output (standard output and error).

    `ok` are the exit statuses that mean success; others raise `ProgramError`. The program inherits
    the file descriptors `keep`, so that a lock on one lasts as long as the program, and gets the
    environment `variables`. After `timeout` seconds it is killed, which is a `ProgramError` too.
    """
    program = find(name)
    if program is None:
        raise ProgramError(f"{name} is not installed")
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **(variables or {})}
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            pass_fds=keep,
            timeout=timeout,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProgramError(f"{name} did not end within {timeout:g} s") from None
    if done.returncode not in ok:
        raise ProgramError(f"{name} {_fate(done.returncode)}{_said(done.stdout)}", done.returncode)
    return done.stdout


def _fate(status: int) -> str:
    if status < 0:
        return f"was killed by signal {-status} ({signal.strsignal(-status)})"
    return f"failed with exit status {status}"


def _said(output: str) -> str:
    """Return a program's output as one line; of a long one only the beginning and the end.

    Some programs print the reason first, followed by their usage; others print it last.
    """
    text = " ".join(output.split())
    if len(text) > _SAID:
        half = _SAID // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text and f": {text}"
