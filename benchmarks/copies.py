"""The cost of snapshots, copies and changed-block queries, by the amount of data."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from driver import GIB, MIB, Driver, block_capability, from_snapshot, from_volume
from ground import Location, resident
from rows import IMAGE, Row, Series, median, timed

from pycsi.linux.descriptor import opened
from pycsi.proto import csi_pb2 as csi

SIZES = (MIB, 16 * MIB, 256 * MIB, 4 * GIB)
"""The amounts of data, in bytes, in the images that are copied."""

_PAUSE = 0.1
"""Seconds between copies, because FIFREEZE is faster just after another FIFREEZE."""

T = TypeVar("T")


def copies(driver: Driver, ground: Location) -> tuple[list[Row], Series]:
    """Measure snapshots, restores and clones of mounted images, for each of `SIZES`.

    Return the rows of the table, and the medians in milliseconds by MiB of data.
    """
    series: Series = {"snapshot": {}, "restore": {}, "clone": {}}
    rows = []
    for data in SIZES:
        volume_id = driver.create(f"data-{data}", 5 * GIB, parameters=IMAGE).volume_id
        found: dict[str, list[float]] = {step: [] for step in series}
        with driver.published(volume_id, ground.folder) as target:
            fill(target / "data", data)
            for _ in range(7):
                _round(driver, volume_id, found)
        driver.delete(volume_id)
        for step, times in found.items():
            series[step][data // MIB] = median(times) * 1000
    for step, line in series.items():
        sizes = sorted(line)
        rows.append(
            Row(
                what=f"{step} of an image in use",
                ground=ground.kind,
                seen=", ".join(f"{size} MiB: {line[size]:.1f} ms" for size in sizes),
                value=max(line.values()),
                unit="ms",
                most=50,
            )
        )
        rows.append(
            Row(
                what=f"{step}: {sizes[-1]} MiB against {sizes[0]} MiB",
                ground=ground.kind,
                seen="",
                value=line[sizes[-1]] / line[sizes[0]],
                most=1.5,
            )
        )
    return rows, series


def fill(file: Path, size: int) -> None:
    """Write a file of `size` bytes durably."""
    block = os.urandom(MIB)
    with file.open("wb") as out:
        for _ in range(size // MIB):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())


def _round(driver: Driver, volume_id: str, found: dict[str, list[float]]) -> None:
    """Take a snapshot, restore it, clone the volume, and delete all three again."""
    taken = _timed_alone(found["snapshot"], lambda: driver.snapshot("s", volume_id))
    source = from_snapshot(taken.snapshot_id)
    restored = _timed_alone(found["restore"], lambda: _copy(driver, "restored", source))
    origin = from_volume(volume_id)
    cloned = _timed_alone(found["clone"], lambda: _copy(driver, "cloned", origin))
    driver.delete(restored)
    driver.delete(cloned)
    driver.delete_snapshot(taken.snapshot_id)
    driver.reaped()


def _timed_alone(times: list[float], act: Callable[[], T]) -> T:
    """Call `act` after a pause, and add the seconds that it took to `times`; return its result."""
    time.sleep(_PAUSE)
    return timed(times, act)


def _copy(driver: Driver, name: str, source: csi.VolumeContentSource) -> str:
    return driver.create(name, 5 * GIB, source=source, parameters=IMAGE).volume_id


def changes(driver: Driver, ground: Location) -> Row:
    """Measure GetMetadataDelta for a 10 GiB block volume that was changed in 1000 places."""
    size, places = 10 * GIB, 1000
    capability = block_capability()
    volume_id = driver.create("device", size, capability=capability, type="image").volume_id
    with driver.published(volume_id, ground.folder, capability) as device:
        write_at(device, [number * (size // places) for number in range(places)])
        before = driver.snapshot("before", volume_id).snapshot_id
        write_at(device, [number * (size // places) + 8 * MIB for number in range(places)])
        after = driver.snapshot("after", volume_id).snapshot_id
    times: list[float] = []
    grown = resident(driver)
    for _ in range(9):
        assert len(timed(times, lambda: driver.delta(before, after))) == places
    grown = resident(driver) - grown
    for snapshot_id in (before, after):
        driver.delete_snapshot(snapshot_id)
    driver.delete(volume_id)
    return Row(
        what=f"changed blocks of 10 GiB, {places} extents",
        ground=ground.kind,
        seen=f"memory {grown / MIB:+.1f} MiB",
        value=median(times) * 1000,
        unit="ms",
        most=200,
    )


def write_at(device: Path, offsets: Sequence[int]) -> None:
    """Write a block of 4096 random bytes at each offset, durably."""
    with opened(device, os.O_WRONLY) as fd:
        for offset in offsets:
            os.pwrite(fd, os.urandom(4096), offset)
        os.fsync(fd)
