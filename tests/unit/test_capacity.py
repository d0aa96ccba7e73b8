"""The arithmetic of what a pool can still promise."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycsi.model.size import BLOCK, GIB, MIB
from pycsi.pool.capacity import Capacity

BYTES = st.integers(0, 2**50)
CAPACITIES = st.builds(
    Capacity,
    size=BYTES,
    free=BYTES,
    reserve=BYTES,
    overcommit=st.floats(0.01, 100),
    committed=BYTES,
    usable=BYTES,
    filesystem=st.sampled_from(["ext4", "xfs", "btrfs"]),
)
RECORDS = {"ext4": 128, "xfs": 128, "btrfs": 12}


def capacity(**changes: float) -> Capacity:
    given: dict[str, float] = {
        "size": 128 * GIB,
        "free": 128 * GIB,
        "reserve": 0,
        "overcommit": 1.0,
        "committed": 0,
        "written": 0,
    }
    given |= changes
    given["usable"] = given["free"] + given.pop("written")
    return Capacity(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "thin"),
    [
        ({}, 127 * GIB - 4 * MIB),
        ({"overcommit": 0.5}, 64 * GIB),
        ({"overcommit": 0.5, "reserve": 28 * GIB}, 50 * GIB),
        ({"overcommit": 2.0}, 254 * GIB - 8 * MIB),
        ({"committed": 30 * GIB}, 97 * GIB - 4 * MIB),
        ({"committed": 30 * GIB, "written": 30 * GIB, "free": 98 * GIB}, 97 * GIB - 4 * MIB),
        ({"committed": 30 * GIB, "free": 64 * GIB}, 33 * GIB + 512 * MIB - 4 * MIB),
        ({"committed": 127 * GIB}, 0),
        ({"committed": 201 * GIB}, 0),
        ({"reserve": 200 * GIB}, 0),
        ({"overcommit": 0.5, "committed": 1}, 64 * GIB - BLOCK),
        ({"free": 0}, 0),
        ({"free": 0, "overcommit": 100.0}, 0),
        ({"free": GIB // 2, "committed": 3 * GIB}, 0),
        ({"overcommit": 2.0, "committed": 64 * GIB}, 190 * GIB - 8 * MIB),
        (
            {"overcommit": 2.0, "committed": 64 * GIB, "written": 64 * GIB, "free": 64 * GIB},
            126 * GIB - 8 * MIB,
        ),
    ],
)
def test_thin(changes: dict[str, float], thin: int) -> None:
    """A thin volume is promised what the disk has for it, and others were not promised."""
    assert capacity(**changes).available(thick=False) == thin


def test_no_inodes() -> None:
    """Without inodes there is no room for anything."""
    for thick in (False, True):
        assert capacity(lacks_inodes=True).available(thick=thick) == 0


def test_disk_of_others() -> None:
    """On a disk that others have filled the reserve is left free too."""
    left = capacity(size=252 * GIB, free=74 * GIB, reserve=25 * GIB).available(thick=False)
    assert 48 * GIB < left < 49 * GIB


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({}, 126 * GIB, 128 * GIB - MIB),
        ({"overcommit": 10.0}, 126 * GIB, 128 * GIB - MIB),
        ({"overcommit": 0.1}, 12 * GIB, 13 * GIB),
        ({"free": 20 * GIB}, 19 * GIB, 20 * GIB - MIB),
        ({"free": 20 * GIB, "reserve": 15 * GIB}, 4 * GIB, 5 * GIB - MIB),
        ({"free": 10 * GIB, "reserve": 15 * GIB}, 0, 0),
        ({"committed": 95 * GIB}, 31 * GIB, 32 * GIB),
        ({"committed": 95 * GIB, "written": 95 * GIB, "free": 20 * GIB}, 19 * GIB, 20 * GIB),
        ({"committed": 95 * GIB, "overcommit": 2.0}, 78 * GIB, 80 * GIB),
        ({"free": MIB}, 0, 0),
    ],
)
def test_thick(changes: dict[str, float], least: int, most: int) -> None:
    """A thick volume takes its blocks now, and leaves others what they were promised."""
    assert least <= capacity(**changes).available(thick=True) <= most


@given(CAPACITIES, st.booleans())
def test_what_is_available(given: Capacity, thick: bool) -> None:
    """It is whole blocks, never negative, never over the limit, and less for what is thick."""
    available = given.available(thick=thick)
    assert available >= 0
    assert available % BLOCK == 0
    assert available <= max(0, given.limit - given.committed)
    assert given.available(thick=True) <= given.available(thick=False)


@given(CAPACITIES, st.booleans(), st.floats(0.01, 1))
def test_every_promised_byte_can_be_written(given: Capacity, thick: bool, ratio: float) -> None:
    """Without overcommit all that is promised fits what is usable, with the records of it."""
    given = dataclasses.replace(given, overcommit=ratio, usable=max(given.free, given.usable))
    if promised := given.available(thick=thick):
        needed = given.committed + promised
        assert needed + needed // RECORDS[given.filesystem] <= given.usable - given.reserve
        if given.usable - given.free <= given.committed:
            assert given.unwritten + promised <= given.free - given.reserve


@given(CAPACITIES)
def test_overcommit_is_of_what_is_free(given: Capacity) -> None:
    """However much is promised, each byte that is not written has its part of what is free."""
    given = dataclasses.replace(given, usable=min(given.usable, given.free + given.committed))
    if promised := given.available(thick=False):
        most = (given.free - given.reserve) * max(1.0, given.overcommit)
        assert given.unwritten + promised <= most


@given(CAPACITIES, st.integers(0, 2**50), st.booleans())
def test_written_by_volumes(given: Capacity, more: int, thick: bool) -> None:
    """What volumes write of their own does not change what is left to promise."""
    given = dataclasses.replace(given, overcommit=1.0)
    more = min(more, given.free, given.unwritten)
    after = dataclasses.replace(given, free=given.free - more)
    assert after.available(thick=thick) == given.available(thick=thick)
