"""Sizes in bytes: units, the block size, rounding, and display."""

KIB = 1024

MIB = 1024 * KIB

GIB = 1024 * MIB

BLOCK = 4 * KIB
"""Every size is a multiple of this: a page, and the block size of all three filesystems."""

LARGEST = 2**63 - BLOCK
"""The largest size: CSI's sizes are signed 64-bit numbers."""

DEFAULT_SIZE = GIB
"""The size of a volume whose request gives none."""


def round_up(size: int) -> int:
    """Return `size` bytes rounded up to whole blocks, in bytes."""
    return -(-size // BLOCK) * BLOCK


def round_down(size: int) -> int:
    """Return `size` bytes rounded down to whole blocks, in bytes; never negative."""
    return max(0, size // BLOCK * BLOCK)


def show(size: int) -> str:
    """Return a size in readable form, such as `1.5 GiB`."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value) < KIB:
            return f"{value:.4g} {unit}"
        value /= KIB
    return f"{value:.4g} TiB"
