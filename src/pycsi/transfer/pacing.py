"""Slowing a transfer down to a rate."""

import time
from collections.abc import Callable

_BURST = 0.1
"""Seconds for which a transfer that fell behind may be faster."""


def paced(rate: int | None, done: Callable[[int], None]) -> Callable[[int], None]:
    """Return `done` made to sleep, so that the bytes it is told are `rate` in a second at most."""
    if rate is None:
        return done
    free = time.monotonic()

    def wait(count: int) -> None:
        nonlocal free
        done(count)
        now = time.monotonic()
        free = max(free, now - _BURST) + count / rate
        if free > now:
            time.sleep(free - now)

    return wait
