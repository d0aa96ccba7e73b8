"""A driver that runs for one command, on a socket that only this user can reach."""

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pycsi.cli.errors import CommandError
from pycsi.linux import child


class PrivateDriver:
    """A child process that runs `pycsi serve`; it ends with this process, however that ends."""

    def __init__(self, folder: Path, pools: Sequence[str], node_id: str | None) -> None:
        self.socket = folder / "csi.sock"
        self._log = folder / "log"
        command = [sys.executable, "-m", "pycsi", "serve", f"--endpoint=unix://{self.socket}"]
        # What is configured is for the driver that runs as a service, such as its ports.
        command += ["--config=/dev/null", "--log-format=json", "--log-level=error"]
        command += [f"--pool={pool}" for pool in pools]
        command += [f"--node-id={node_id}"] if node_id else []
        self._child = child.start(command, self._log, _environment())

    def refuse_ended(self) -> None:
        """Raise `CommandError` with the driver's own message if it has ended."""
        if self._child.poll() is None:
            return
        said = [_message(line) for line in self._log.read_text(errors="replace").splitlines()]
        raise CommandError(
            "; ".join(filter(None, said))
            or "the driver of this command ended without a word; look at the kernel's log"
        )

    def stop(self) -> None:
        """End the driver once the calls under way have ended."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)
        self._child.wait()


def _message(line: str) -> str:
    """Return what a line of the driver's output says: of the log, or of a mistake."""
    try:
        event = json.loads(line)
        return str(event.get("error") or event["event"])
    except (ValueError, KeyError, AttributeError):
        return line.removeprefix("pycsi: ")


def _environment() -> dict[str, str]:
    """Return the environment without options, which are for other drivers, or given already."""
    return {
        key: value for key, value in os.environ.items() if not key.startswith(("PYCSI_", "CSI_"))
    }


@contextlib.contextmanager
def private_driver(pools: Sequence[str], node_id: str | None) -> Iterator[PrivateDriver]:
    """Run a driver on these pools for the `with` block.

    SIGTERM and SIGINT end the block as `SystemExit`, so that nothing is left of it.
    """
    before = {number: signal.signal(number, _interrupt) for number in child.STOPPING}
    try:
        with (
            tempfile.TemporaryDirectory(prefix="pycsi-") as folder,
            contextlib.ExitStack() as running,
        ):
            with child.signals_held():
                driver = PrivateDriver(Path(folder), pools, node_id)
                running.callback(driver.stop)
            yield driver
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: Any) -> None:
    raise SystemExit(128 + number)
