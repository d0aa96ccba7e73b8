"""The rows of the printed table, and how their values are measured."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import load

T = TypeVar("T")
Series = dict[str, dict[int, float]]
"""The lines of a chart, by name: milliseconds by the number of volumes, or by MiB of data."""

SHORT = 200
"""The number of calls of which a median is taken."""

SEVERAL = 20
"""The number of calls of which a median is taken, for operations that start programs."""

DIRECTORY = {"type": "directory", "quota": "none"}
IMAGE = {"type": "image"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table; the target is a `value` of at most `most`, or of at least `least`.

    `ground` is the type of the pool's filesystem, and `seen` describes the measured times.
    """

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
    """Return the median seconds of an operation, called by one client from this process."""
    call: Callable[[str], object] = getattr(client, operation)
    return median(load.timed(call, range(first, first + count)))


def timed(times: list[float], call: Callable[[], T]) -> T:
    """Call `call`, and add the seconds that it took to `times`; return its result."""
    begin = time.perf_counter()
    answer = call()
    times.append(time.perf_counter() - begin)
    return answer
