"""Unit tests call functions: they mount nothing, so there is nothing to look for afterwards."""

import pytest


@pytest.fixture(autouse=True)
def _nothing_is_left() -> None:
    """Spare hundreds of tests the look at the kernel's lists."""
