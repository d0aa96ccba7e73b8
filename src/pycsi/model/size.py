"""Sizes in bytes: units, the block size, parsing, rounding, and display."""

import contextlib
import dataclasses
import re
from fractions import Fraction

KIB = 1024

MIB = 1024 * KIB

GIB = 1024 * MIB

BLOCK = 4 * KIB
"""Every size is a multiple of this: a page, and the block size of all three filesystems."""

LARGEST = 2**63 - BLOCK
"""The largest size: CSI's sizes are signed 64-bit numbers."""

DEFAULT_SIZE = GIB
"""The size of a volume whose request gives none."""

_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([KMGTP]i?)?B?", re.ASCII)
_POWERS = "KMGTP"
_LARGEST_NUMBER = 2**63 - 1


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


def parse_size(text: str) -> int:
    """Return the bytes of `10Gi`, `1.5GiB`, `500M` or a plain number, rounded down.

    Other text, and sizes of 2**63 bytes and more, raise `ValueError`.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write bytes or a number with Ki, Mi, Gi, Ti")
    number, unit = match.groups()
    step = KIB if unit and unit.endswith("i") else 1000
    factor = step ** (_POWERS.index(unit[0]) + 1) if unit else 1
    size = int(Fraction(number) * factor)
    if size > _LARGEST_NUMBER:
        raise ValueError(f"{text!r} is over {_LARGEST_NUMBER} bytes; give a smaller size")
    return size


def parse_number(text: str) -> float | None:
    """Return a finite number of 0 or more; None for any other text."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if 0 <= number < float("inf") and "_" not in text:
            return number
    return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """The part of a pool's filesystem kept from volumes: bytes, or a share (0 to 1) of its size."""

    size: int = 0
    share: float = 0.0

    def of(self, total: int) -> int:
        """Return the reserve in bytes on a filesystem of `total` bytes."""
        return self.size + int(total * self.share)

    def __str__(self) -> str:
        """Return the text from which `parse` makes an equal reserve."""
        return f"{self.share * 100:.12g}%" if self.share else str(self.size)

    @classmethod
    def parse(cls, text: str) -> "Reserve":
        """Parse a size such as `10Gi`, or a percentage such as `5%`; `ValueError` for others."""
        if not text.endswith("%"):
            try:
                return cls(size=parse_size(text))
            except ValueError as error:
                raise ValueError(f"reserve: {error}; or write a percentage such as 10%") from None
        share = parse_number(text[:-1])
        if share is None or share >= 100:  # noqa: PLR2004
            raise ValueError(f"reserve: {text!r} is not between 0% and 100%; give one such as 10%")
        return cls(share=share / 100)
