"""Running programs; the driver starts other processes only here."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pycsi.linux import processors

_SAID = 400
"""Maximum number of characters of a program's output that are quoted in an error."""

_found: dict[str, str] = {}


class ProgramError(Exception):
    """A program was missing, failed or took too long; the message says which, with its output."""


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


@processors.unpinned()
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
        raise ProgramError(f"{name} {_fate(done.returncode)}{_said(done.stdout)}")
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
