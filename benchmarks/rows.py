"""A line of the table that is printed, and how its figures are taken."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import load

T = TypeVar("T")
Series = dict[str, dict[int, float]]
"""What a plot shows: for each line of it, milliseconds at a number of volumes or MiB of data."""

SHORT = 200
"""How often something is done of which the median is taken."""

SEVERAL = 20
"""The same for what starts programs."""

DIRECTORY = {"type": "directory", "quota": "none"}
IMAGE = {"type": "image"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: `value` is to be at most `most`, or at least `least`."""

    what: str
    ground: str
    seen: str
    value: float
    unit: str = "x"
    most: float | None = None
    least: float | None = None

    @property
    def target(self) -> str:
        if self.most is None and self.least is None:
            return ""
        sign, limit = ("≤", self.most) if self.least is None else ("≥", self.least)
        return f"{sign} {limit:g} {self.unit}"

    @property
    def holds(self) -> bool:
        return (self.most is None or self.value <= self.most) and (
            self.least is None or self.value >= self.least
        )


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def median(times: Sequence[float]) -> float:
    return statistics.median(times)


def here(client: load.Client, operation: str, count: int, first: int = 0) -> float:
    """Return the median time of an operation of one client, from this process."""
    call: Callable[[str], object] = getattr(client, operation)
    return median(load.timed(call, range(first, first + count)))


def timed(times: list[float], call: Callable[[], T]) -> T:
    """Call `call`, and add to `times` how many seconds that took."""
    begin = time.perf_counter()
    answer = call()
    times.append(time.perf_counter() - begin)
    return answer
