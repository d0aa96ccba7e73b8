"""The arithmetic of what a pool can still promise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycsi.capacity import Capacity
from pycsi.model import BLOCK, GIB, MIB

BYTES = st.integers(0, 2**50)
CAPACITIES = st.builds(
    Capacity,
    size=BYTES,
    free=BYTES,
    reserve=BYTES,
    overcommit=st.floats(0.01, 100),
    committed=BYTES,
)


def capacity(**changes: float) -> Capacity:
    given: dict[str, float] = {
        "size": 100 * GIB,
        "free": 100 * GIB,
        "reserve": 0,
        "overcommit": 1.0,
        "committed": 0,
    }
    return Capacity(**given | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "thin"),
    [
        ({}, 100 * GIB),
        ({"reserve": 10 * GIB}, 90 * GIB),
        ({"overcommit": 1.5}, 150 * GIB),
        ({"overcommit": 1.5, "reserve": 10 * GIB}, 135 * GIB),
        ({"committed": 30 * GIB}, 70 * GIB),
        ({"committed": 100 * GIB}, 0),
        ({"committed": 101 * GIB}, 0),
        ({"reserve": 200 * GIB}, 0),
        ({"committed": 1}, 100 * GIB - BLOCK),
        ({"free": 0}, 100 * GIB),
    ],
)
def test_thin(changes: dict[str, float], thin: int) -> None:
    """A thin volume needs a promise: (size - reserve) x overcommit - committed, in whole blocks."""
    assert capacity(**changes).available(thick=False) == thin


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({}, 98 * GIB, 100 * GIB - MIB),
        ({"overcommit": 10.0}, 98 * GIB, 100 * GIB - MIB),
        ({"overcommit": 0.1}, 10 * GIB, 10 * GIB),
        ({"free": 20 * GIB}, 19 * GIB, 20 * GIB - MIB),
        ({"free": 20 * GIB, "reserve": 15 * GIB}, 4 * GIB, 5 * GIB - MIB),
        ({"free": 10 * GIB, "reserve": 15 * GIB}, 0, 0),
        ({"committed": 95 * GIB}, 5 * GIB, 5 * GIB),
        ({"free": MIB}, 0, 0),
    ],
)
def test_thick(changes: dict[str, float], least: int, most: int) -> None:
    """A thick volume also needs its blocks now, beside the reserve."""
    assert least <= capacity(**changes).available(thick=True) <= most


@given(CAPACITIES, st.booleans())
def test_what_is_available(given: Capacity, thick: bool) -> None:
    """It is whole blocks, never negative, never over the limit, and less for what is thick."""
    available = given.available(thick=thick)
    assert available >= 0
    assert available % BLOCK == 0
    assert available <= max(0, given.limit - given.committed)
    assert given.available(thick=True) <= given.available(thick=False)
