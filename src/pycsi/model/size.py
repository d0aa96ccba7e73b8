"""Sizes in bytes: units, the block, rounding, and how people are shown them."""

KIB = 1024

MIB = 1024 * KIB

GIB = 1024 * MIB

BLOCK = 4 * KIB

"""Every size is a whole number of these; a page, and the block of all three filesystems."""

LARGEST = 2**63 - BLOCK

"""No size is larger: the protocol's are signed 64-bit numbers."""

DEFAULT_SIZE = GIB

"""The size of a volume for which none was asked."""


def round_up(size: int) -> int:
    """Return the least whole number of blocks that holds `size` bytes."""
    return -(-size // BLOCK) * BLOCK


def round_down(size: int) -> int:
    """Return the largest whole number of blocks within `size` bytes, never negative."""
    return max(0, size // BLOCK * BLOCK)


def show(size: int) -> str:
    """Return a size for people, such as `1.5 GiB`."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value) < KIB:
            return f"{value:.4g} {unit}"
        value /= KIB
    return f"{value:.4g} TiB"
