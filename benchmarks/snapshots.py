"""How long snapshots, restores and clones of small and of large volumes take, and what they share.

    sudo .venv/bin/python benchmarks/snapshots.py [--rounds 10] [--filesystem xfs]

A driver is run on a pool with a filesystem of its own in a sparse file. The volumes are mounted
while their snapshots are taken. The rounds alternate between the two sizes, so that what else the
machine does meets both: compare the figures of one run with each other.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from driver import GIB, MIB, Driver, from_snapshot, from_volume, mount_capability

from pycsi.linux.descriptor import opened
from pycsi.linux.fiemap import extents
from pycsi.proto import csi_pb2 as csi

T = TypeVar("T")
DATA = {"1 MiB": MIB, "1 GiB": GIB}
STEPS = ("snapshot", "restore", "clone")
SIZE = 2 * GIB


class Bench:
    """One volume with some data in it, mounted, and what was measured with it."""

    def __init__(self, driver: Driver, folder: Path, label: str, kind: str) -> None:
        self.driver = driver
        self.label = label
        self.capability = mount_capability(kind)
        self.times: dict[str, list[float]] = {step: [] for step in STEPS}
        self.shared: dict[str, int] = {}
        self.staging = folder / f"staging-{label[2]}"
        self.volume_id = driver.create(
            f"v{label[2]}", SIZE, capability=self.capability, type="image"
        ).volume_id
        driver.stage(self.volume_id, self.staging, self.capability)
        (self.staging / "data").write_bytes(os.urandom(DATA[label]))
        os.sync()

    def round(self) -> None:
        """Take a snapshot, restore it, clone the volume, and delete all that again."""
        taken = self._timed("snapshot", lambda: self.driver.snapshot("s", self.volume_id))
        source = from_snapshot(taken.snapshot_id)
        restored = self._timed("restore", lambda: self._copy("restored", source))
        cloned = self._timed("clone", lambda: self._copy("cloned", from_volume(self.volume_id)))
        places = (f"snapshots/{taken.snapshot_id}", f"volumes/{restored}", f"volumes/{cloned}")
        for step, place in zip(STEPS, places, strict=True):
            with opened(self.driver.folders[0] / place / "disk.img") as fd:
                self.shared[step] = sum(
                    item.end - item.start for item in extents(fd) if item.shared
                )
        self.driver.delete(restored)
        self.driver.delete(cloned)
        self.driver.delete_snapshot(taken.snapshot_id)
        self.driver.reaped()

    def _copy(self, name: str, source: csi.VolumeContentSource) -> str:
        return self.driver.create(
            name + self.label[2], SIZE, capability=self.capability, source=source
        ).volume_id

    def _timed(self, step: str, call: Callable[[], T]) -> T:
        begin = time.perf_counter()
        answer = call()
        self.times[step].append((time.perf_counter() - begin) * 1000)
        return answer

    def close(self) -> None:
        self.driver.unstage(self.volume_id, self.staging)
        self.driver.delete(self.volume_id)


def measure(driver: Driver, folder: Path, rounds: int, kind: str) -> None:
    """Print the figures for images with the filesystem `kind`."""
    small, large = benches = [Bench(driver, folder, label, kind) for label in DATA]
    for _ in range(rounds):
        for bench in benches:
            bench.round()
    print(f"{kind} images: median of {rounds}, and what is shared with the source")
    for step in STEPS:
        medians = [statistics.median(bench.times[step]) for bench in benches]
        cells = [
            f"{bench.label}: {median:6.1f} ms, {bench.shared[step] // MIB:5} MiB"
            for bench, median in zip(benches, medians, strict=True)
        ]
        print(f"  {step:9} {'   '.join(cells)}   ratio {medians[1] / medians[0]:.2f}")
    for bench in (small, large):
        bench.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--filesystem", default="xfs", choices=["xfs", "btrfs"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pycsi-benchmark-") as name:
        folder = Path(name)
        image, disk = folder / "disk.img", folder / "disk"
        with image.open("wb") as file:
            file.truncate(16 * GIB)
        subprocess.run([f"mkfs.{given.filesystem}", "-q", image], check=True)
        disk.mkdir()
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        try:
            (disk / "pool").mkdir()
            with Driver(folder / "driver", [f"default={disk / 'pool'},overcommit=10"]) as driver:
                for kind in ("ext4", "xfs", "btrfs"):
                    measure(driver, folder, given.rounds, kind)
        finally:
            subprocess.run(["umount", disk], check=True)


if __name__ == "__main__":
    main()
