"""The demo's processes: the driver, which is `pycsi serve`, and other `pycsi` commands."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pycsi.linux import child

NODE = "demo-node"

_PATIENCE = 30
_TAIL = 8


def run(*words: str) -> tuple[int, str]:
    """Run `pycsi` with the arguments `words`; return its exit status and output."""
    done = subprocess.run(
        [sys.executable, "-m", "pycsi", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
        env=_environment(),
    )
    return done.returncode, (done.stdout + done.stderr).strip()


def _environment() -> dict[str, str]:
    """Return the environment without options meant for another driver, such as PYCSI_MODE."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYCSI_")}


class Process:
    """The driver as a child process, which a `with` block starts, and ends with SIGTERM."""

    def __init__(self, socket: Path, log: Path, pools: Iterable[str]) -> None:
        self.socket = socket
        self._log = log
        self._pools = list(pools)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "pycsi", "serve", "--endpoint", f"unix://{self.socket}"]
        command += ["--node-id", NODE, "--log-format", "text", *self._pools]
        with child.signals_held():
            self._child = child.start(command, self._log, _environment())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def last_words(self) -> str:
        """The last lines of the driver's log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL:])

    def stop(self) -> int:
        """End the driver if it is running, and return its exit status.

        The driver gets SIGTERM, and after 30 seconds SIGKILL.
        """
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()
