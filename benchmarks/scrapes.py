"""What a scrape of the metrics costs a driver whose image volumes are all mounted."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import load
import metrics
from driver import MIB, Driver
from ground import Location, endpoint
from rows import IMAGE, Row, median, ms

PORT = 19180

_MOUNTED = 2000
_PAUSE = 12.0
"""Seconds after which a scrape has everything measured anew, and what it began has ended."""

_TIMES = 3


def scrapes(driver: Driver, ground: Location, most: int) -> Iterator[Row]:
    """Measure the processor time of a scrape with mounted volumes, and how long RPCs take beside.

    The volumes are images with ext4 of the smallest size; there are `most` of them, or 2,000.
    """
    number = min(most, _MOUNTED)
    wanted = load.Wanted(folder=ground.folder, parameters=IMAGE, size=MIB, prefix="scraped")
    with contextlib.closing(load.Client(endpoint(driver), wanted)) as client:
        names = [f"{name:06}" for name in range(number)]
        try:
            with ThreadPoolExecutor(8) as workers:
                list(workers.map(lambda name: _mount(client, name), names))
            yield from _measured(driver, client, ground, number)
        finally:
            for name in names:
                with contextlib.suppress(KeyError):  # not made, for another has failed
                    client.unpublish(name)
                    client.unstage(name)


def _mount(client: load.Client, name: str) -> None:
    client.create(name)
    client.stage(name)
    client.publish(name)


def _measured(driver: Driver, client: load.Client, ground: Location, number: int) -> Iterator[Row]:
    busy, waited, beside, alone = [], [], [], []
    time.sleep(_PAUSE)
    for _ in range(_TIMES):
        idle = _processor(driver)
        alone += _calls(client)
        calling = _processor(driver) - idle
        before = _processor(driver)
        with ThreadPoolExecutor(1) as worker:
            scraped = worker.submit(_scrape)
            beside += _calls(client)
            waited.append(scraped.result())
        busy.append(_processor(driver) - before - calling)
    yield Row(
        what=f"scrape with {number} mounted images",
        ground=ground.kind,
        seen="of processor time, with all that is measured for it; answered after "
        f"{ms(median(waited))}",
        value=median(busy),
        unit="s",
        most=1,
    )
    yield Row(
        what="ControllerGetVolume, beside a scrape, the slowest",
        ground=ground.kind,
        seen=f"{ms(max(beside))}; without a scrape {ms(max(alone))}; medians "
        f"{ms(median(beside))} and {ms(median(alone))}",
        value=max(beside),
        unit="s",
        most=1,
    )


def _scrape() -> float:
    """Return the seconds that a scrape took."""
    begin = time.perf_counter()
    status, _ = metrics.get(PORT, "/metrics")
    assert status == 200  # noqa: PLR2004
    return time.perf_counter() - begin


def _calls(client: load.Client) -> list[float]:
    """Return the seconds that calls took which were made in turn for a while."""
    times = []
    end = time.perf_counter() + _PAUSE
    while time.perf_counter() < end:
        times += load.timed(client.get, range(1))
        time.sleep(0.01)
    return times


def _processor(driver: Driver) -> float:
    """Return the seconds that a driver's process has had of processors (proc_pid_stat(5))."""
    assert driver.process is not None
    fields = Path(f"/proc/{driver.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
