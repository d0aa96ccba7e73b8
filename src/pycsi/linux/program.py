"""Programs: the only way in which this driver starts another process."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pycsi.linux import processors

_SAID = 400
"""How many characters are quoted of what a program said."""

_found: dict[str, str] = {}


class ProgramError(Exception):
    """A program was missing, failed or took too long; the text says which and what it said."""


def find(name: str) -> str | None:
    """Return where on PATH the program `name` is, or None.

    Every Probe asks: where it was found before is looked at first.
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
    """Run a program without a shell and return what it printed; `ok` are good exit statuses.

    The program gets the file descriptors `keep` too, so that a lock on one lasts as long as the
    program, and the environment `variables`. `timeout` is in seconds; the program is killed when it
    has passed.
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
    """Return what a program said as one line; of much the begin and the end.

    Some tell the reason first and go on with how they are called, others tell it at last.
    """
    text = " ".join(output.split())
    if len(text) > _SAID:
        half = _SAID // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text and f": {text}"
