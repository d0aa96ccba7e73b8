"""Commands of pycsi on a terminal of a chosen width, and in a pipe."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

PYCSI = (sys.executable, "-m", "pycsi")


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what changes the output or options of pycsi."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYCSI_", "CSI_")) and key not in {"NO_COLOR", "COLUMNS"}
    }
    return kept | {"TERM": "xterm", **more}


def piped(*words: str | Path, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose output goes to a pipe; what it says is never a traceback."""
    done = subprocess.run(
        [*PYCSI, *words],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(**more),
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def on_terminal(
    columns: int, *words: str | Path, answer: str = "", **more: str
) -> tuple[int, list[str]]:
    """Run a command on a terminal; return its exit status, and the lines on the screen.

    `answer` is what somebody types there.
    """
    reading, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    with subprocess.Popen(
        [*PYCSI, *words],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment(**more),
    ) as process:
        os.close(terminal)
        os.write(reading, answer.encode())
        said = _rest(reading)
    os.close(reading)
    assert b"Traceback" not in said
    return process.returncode, said.decode().splitlines()


def _rest(fd: int) -> bytes:
    """Return what is written to a terminal until nobody has it open any more."""
    said = b""
    while True:
        try:
            part = os.read(fd, 65536)
        except OSError:  # EIO, which is the end of a terminal
            return said
        if not part:
            return said
        said += part
