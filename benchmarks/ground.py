"""The environment of a measurement: a filesystem in a sparse file, and drivers with pools on it."""

import contextlib
import dataclasses
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from driver import GIB, Driver

from pycsi.linux import kernel

_SIZE = 40 * GIB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Location:
    """A filesystem of the type `kind`, mounted at `disk`; `folder`, outside it, has other files."""

    kind: str
    folder: Path
    disk: Path

    @contextlib.contextmanager
    def driver(self, name: str = "driver", *options: str) -> Iterator[Driver]:
        """Run a driver with a pool of its own, and more `options`, through the `with` block."""
        pool = self.disk / name
        pool.mkdir()
        with Driver(self.folder / name, [f"default={pool},overcommit=1000000"], options) as driver:
            yield driver


@contextlib.contextmanager
def ground(kind: str) -> Iterator[Location]:
    """Make a filesystem of the type `kind`, and mount it through the `with` block."""
    with tempfile.TemporaryDirectory(prefix="pycsi-benchmark-") as name:
        folder = Path(name)
        image, disk = folder / "disk.img", folder / "disk"
        with image.open("wb") as file:
            file.truncate(_SIZE)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, stdout=subprocess.DEVNULL)
        disk.mkdir()
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        try:
            yield Location(kind=kind, folder=folder, disk=disk)
        finally:
            for left in reversed(kernel.mountinfo()):
                if left.target.startswith(f"{folder}/"):
                    subprocess.run(["umount", left.target], check=True)


def endpoint(driver: Driver) -> str:
    return f"unix://{driver.socket}"


def resident(driver: Driver) -> int:
    """Return the resident memory of a driver's process in bytes."""
    return _memory(driver, "VmRSS")


def peak(driver: Driver) -> int:
    """Return the most that the resident memory of a driver's process has been, in bytes."""
    return _memory(driver, "VmHWM")


def _memory(driver: Driver, field: str) -> int:
    """Return a field of proc_pid_status(5), in bytes."""
    assert driver.process is not None
    status = Path(f"/proc/{driver.process.pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
