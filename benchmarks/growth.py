"""The cost of the same operations as the number of a driver's volumes grows."""

import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import load
from driver import Driver
from ground import Location, endpoint, resident
from rows import DIRECTORY, Row, Series, median, ms

_MEGABYTE = 1000 * 1000


class Growing:
    """A driver whose number of volumes grows, and one that keeps 100 volumes for comparison."""

    OPERATIONS = ("create", "delete", "cycle")

    def __init__(self, few: Driver, many: Driver, ground: Location) -> None:
        self._ground = ground
        wanted = load.Wanted(folder=ground.folder, parameters=DIRECTORY, prefix="few")
        self._few = load.Client(endpoint(few), wanted)
        self._wanted = dataclasses.replace(wanted, prefix="many")
        self._driver = many
        self._many = load.Client(endpoint(many), self._wanted)
        self._there = 0
        load.run(endpoint(few), wanted, "create", clients=4, count=100, first=500_000)

    def fill(self, number: int) -> None:
        """Create volumes until the growing driver has `number` of them."""
        load.run(
            endpoint(self._driver),
            self._wanted,
            "create",
            clients=8,
            count=number - self._there,
            first=500_000 + self._there,
        )
        self._there = number

    def costs(self) -> dict[str, tuple[float, float]]:
        """Return the median seconds of each operation with many and with few volumes.

        Both drivers are measured in turns.
        """
        found: dict[str, tuple[list[float], list[float]]] = {
            operation: ([], []) for operation in self.OPERATIONS
        }
        for _ in range(5):
            for index, client in enumerate((self._many, self._few)):
                names = range(50)
                found["create"][index].append(median(load.timed(client.create, names)))
                found["cycle"][index].append(median(load.timed(client.cycle, names)))
                found["delete"][index].append(median(load.timed(client.delete, names)))
        return {key: (median(many), median(few)) for key, (many, few) in found.items()}

    def listing(self) -> tuple[int, float]:
        """Return the number of listed volumes, and the median seconds of a repeated listing."""
        count = self._many.list()
        return count, median(load.repeated(self._many.list, 3))

    def first_listing(self) -> float:
        """Return the seconds of a single listing, the first one after a start of the driver."""
        (seconds,) = load.repeated(self._many.list, 1)
        return seconds


def growing(few: Driver, many: Driver, ground: Location, most: int) -> tuple[list[Row], Series]:
    """Measure both drivers while `many` grows to `most` volumes.

    Return the rows of the table, and the milliseconds of each operation by the number of volumes.
    """
    rows, series = [], Series()
    grown = Growing(few, many, ground)
    idle = resident(few)
    steps = [step for step in (100, 300, 1000, 3000, 10_000, 30_000) if step < most] + [most]
    for step in steps:
        grown.fill(step)
        costs = grown.costs()
        for operation, (there, _) in costs.items():
            series.setdefault(operation, {})[step] = there * 1000
        count, seconds = grown.listing()
        series.setdefault("list, per volume", {})[step] = seconds / count * 1000
    for operation, (there, here) in costs.items():
        rows.append(
            Row(
                what=f"{operation} at {most} volumes against 100",
                ground=ground.kind,
                seen=f"{ms(there)}; with 100: {ms(here)}",
                value=there / here,
                most=1.2,
            )
        )
    rows.append(
        Row(
            what=f"ListVolumes of {count}, again",
            ground=ground.kind,
            seen="",
            value=seconds,
            unit="s",
        )
    )
    rows.append(
        Row(
            what="resident, idle",
            ground=ground.kind,
            seen="with 100 volumes",
            value=idle / _MEGABYTE,
            unit="MB",
            most=60,
        )
    )
    many.stop()
    begin = time.perf_counter()
    many.start()
    rows.append(
        Row(
            what=f"start to serving with {most} volumes",
            ground=ground.kind,
            seen="",
            value=time.perf_counter() - begin,
            unit="s",
            most=1,
        )
    )
    rows.append(
        Row(
            what=f"ListVolumes of {count}, for the first time",
            ground=ground.kind,
            seen="after a start",
            value=grown.first_listing(),
            unit="s",
        )
    )
    rows.append(
        Row(
            what=f"resident with {most} volumes",
            ground=ground.kind,
            seen="after a start and a listing",
            value=resident(many) / _MEGABYTE,
            unit="MB",
            most=90,
        )
    )
    return rows, series
