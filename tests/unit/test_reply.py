"""What an orchestrator is told, where it is cut to what it can take."""

import itertools

import pytest

from pycsi import reply


@pytest.mark.parametrize(
    ("size", "shown", "more"),
    [(2, [0, 1], True), (5, [0, 1, 2, 3, 4], False), (9, [0, 1, 2, 3, 4], False)],
)
def test_page(size: int, shown: list[int], *, more: bool) -> None:
    """A page is as long as it was asked for, and says whether it is the last."""
    assert reply.page(iter(range(5)), size) == (shown, more)


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_longest_page(size: int) -> None:
    """However much is asked for, a page is not longer than what a client takes in one message."""
    shown, more = reply.page(itertools.count(), size)
    assert len(shown) == 3000
    assert more
    assert reply.page(iter(shown), size) == (shown, False)
