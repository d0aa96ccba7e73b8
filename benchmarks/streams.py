"""The speed of exports and imports, against dd(1) of the same data on the same disk."""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from copies import write_at
from driver import GIB, MIB, Driver, block_capability
from ground import Location
from rows import Row, median, timed
from terminal import PYCSI, environment

from pycsi.linux.descriptor import opened

_SIZE = 10 * GIB
_PARTS = 64
_PLACES = 1000
_ROUNDS = 3


def exports(driver: Driver, ground: Location) -> list[Row]:
    """Measure exports and imports of a block volume of 10 GiB with 1 GiB of data, and increments.

    All files lie on the pool's disk, are written durably, and are read from it, not from memory.
    """
    volume_id = driver.create("v", _SIZE, capability=block_capability()).volume_id
    image = driver.folders[0] / "volumes" / volume_id / "disk.img"
    folder = ground.disk / "files"
    folder.mkdir()
    block = os.urandom(GIB // _PARTS)
    with opened(image, os.O_WRONLY) as fd:
        for number in range(_PARTS):
            os.pwrite(fd, block, number * (_SIZE // _PARTS))
        os.fsync(fd)
    (folder / "dense").write_bytes(block * _PARTS)
    driver.snapshot("before", volume_id)
    snapshot = driver.folders[0] / "snapshots" / "before@node-1" / "disk.img"
    pool = f"--pool={driver.pools[0]}"
    copy = ["dd", f"if={folder / 'dense'}", f"of={folder / 'copy'}", "bs=1M", "conv=fsync"]
    export = [*PYCSI, "export", "before", str(folder / "export"), pool]
    floor: list[float] = []
    found: list[float] = []
    for _ in range(_ROUNDS):
        _timed_cold(floor, copy, folder / "dense", folder / "copy")
        _timed_cold(found, export, snapshot, folder / "export")
    rows = [_ratio("export of 10 GiB with 1 GiB of data, speed against dd", ground, floor, found)]
    bring = [*PYCSI, "import", str(folder / "export"), "w", pool, f"--endpoint={driver.socket}"]
    found = []
    for _ in range(_ROUNDS):
        _cold(folder / "export")
        timed(found, lambda: _run(bring))
        driver.delete("w@node-1")
        driver.reaped()
    rows.append(_ratio("import of that, speed against dd", ground, floor, found, least=None))
    write_at(image, [number * (_SIZE // _PLACES) + 8 * MIB for number in range(_PLACES)])
    driver.snapshot("after", volume_id)
    words = ["export", "after", str(folder / "increment"), "--since", "before", pool]
    found = []
    for _ in range(_ROUNDS):
        _timed_cold(found, [*PYCSI, *words], image, folder / "increment")
    rows.append(
        Row(
            what=f"increment of 10 GiB with {_PLACES} changed extents",
            ground=ground.kind,
            seen="with the start of the command",
            value=median(found),
            unit="s",
            most=2,
        )
    )
    return rows


def _ratio(
    what: str, ground: Location, floor: list[float], found: list[float], least: float | None = 0.8
) -> Row:
    seen = f"{1 / median(found):.2f} GiB/s; dd {1 / median(floor):.2f} GiB/s"
    value = median(floor) / median(found)
    return Row(what=what, ground=ground.kind, seen=seen, value=value, least=least)


def _timed_cold(times: list[float], command: list[str], source: Path, result: Path) -> None:
    """Time a command that reads a file from the disk and makes another, which is removed before."""
    result.unlink(missing_ok=True)
    _cold(source)
    os.sync()
    timed(times, lambda: _run(command))


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, env=environment())


def _cold(file: Path) -> None:
    """Have the kernel forget what it has in memory of a file."""
    with opened(file) as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
