"""Which parts of an image hold data, and which differ between two: ranges, in order, streamed.

Memory is bounded, whatever the number of extents. Ranges are half open, in bytes.
"""

import dataclasses
import heapq
import os
from collections.abc import Callable, Iterable, Iterator

from pycsi.linux import processors
from pycsi.linux.fiemap import Extent, extents
from pycsi.model.size import BLOCK, round_down, round_up

Range = tuple[int, int]

_ATTEMPTS = 10
_STEP = 1024 * 1024
_WINDOW = 1024 * 1024 * 1024
"""How much of a file is compared by its extents at a time."""


def allocated(fd: int, start: int, size: int) -> Iterator[Range]:
    """Yield the ranges of an image of `size` bytes that hold data, from `start` on."""
    return _joined(_clipped(_data(fd, start), start, size))


def changed(
    base: int,
    target: int,
    start: int,
    size: int,
    progress: Callable[[], None],
    *,
    by_extents: bool,
) -> Iterator[Range]:
    """Yield the ranges from `start` on in which `target`, of `size` bytes, may differ from `base`.

    With `by_extents` only where the two have other blocks, otherwise where their data differs;
    that is right in any case, but reads both. Both images are open files that nobody changes.
    `progress` is called now and then, also where nothing differs; what it raises ends it.
    """
    compare = _changed_extents if by_extents else _changed_data
    return _joined(_clipped(compare(base, target, start, size, progress), start, size))


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Join ranges that touch or overlap; they come in order of their starts."""
    pending: Range | None = None
    for start, end in ranges:
        if pending and start <= pending[1]:
            pending = pending[0], max(end, pending[1])
            continue
        if pending:
            yield pending
        pending = start, end
    if pending:
        yield pending


def _clipped(ranges: Iterable[Range], least: int, most: int) -> Iterator[Range]:
    for start, end in ranges:
        first, last = max(start, least), min(end, most)
        if first < last:
            yield first, last


def _data(fd: int, start: int) -> Iterator[Range]:
    return ((extent.start, extent.end) for extent in extents(fd, start) if extent.written)


# By extents


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a file, and what is there: None for zeros, or where the blocks are.

    Two pieces with blocks at the same place have the same data, if that place is exact.
    """

    start: int
    end: int
    place: "_Place | None"


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """`distance` is from an offset in the file to the place of its byte on the disk.

    It is not `exact` where the blocks are compressed, or within others: then it tells whether
    something has moved, but nothing of what is there.
    """

    distance: int
    exact: bool


def _pieces(fd: int, start: int, end: int) -> list[_Piece]:
    """Return what is in a part of a file, without gaps."""
    found: list[_Piece] = []
    at = start
    for extent in extents(fd, start):
        if extent.start >= end:
            break
        first, last = max(extent.start, start), min(extent.end, end)
        if first > at:
            found.append(_Piece(at, first, None))
        found.append(_Piece(first, last, _place(extent)))
        at = last
    if at < end:
        found.append(_Piece(at, end, None))
    return found


def _place(extent: Extent) -> _Place | None:
    if not extent.written:
        return None
    return _Place(extent.physical - extent.start, exact=extent.located)


def _changed_extents(
    base: int, target: int, start: int, size: int, progress: Callable[[], None]
) -> Iterator[Range]:
    for at in range(start, size, _WINDOW):
        progress()
        end = min(at + _WINDOW, size)
        for _ in range(_ATTEMPTS):
            before, after = _pieces(base, at, end), _pieces(target, at, end)
            # A filesystem may move blocks (btrfs balance). What the base did not move meanwhile
            # cannot have become a place of the target's.
            if before == _pieces(base, at, end):
                yield from _different(before, after)
                break
        else:
            yield at, end


def _different(before: list[_Piece], after: list[_Piece]) -> Iterator[Range]:
    """Yield where two descriptions of one part of a file differ."""
    left, right = iter(before), iter(after)
    one, other = next(left, None), next(right, None)
    while one and other:
        start, end = max(one.start, other.start), min(one.end, other.end)
        if start < end and not _same(one.place, other.place):
            yield start, end
        if one.end == end:
            one = next(left, None)
        if other.end == end:
            other = next(right, None)


def _same(one: _Place | None, other: _Place | None) -> bool:
    return one == other and (one is None or one.exact)


# By data


def _changed_data(
    base: int, target: int, start: int, size: int, progress: Callable[[], None]
) -> Iterator[Range]:
    """Compare whole blocks, counted from the beginning of the file: the same from every `start`."""
    least = round_down(start)
    either = heapq.merge(_data(base, least), _data(target, least))
    blocks = ((round_down(first), round_up(last)) for first, last in either)
    for first, last in _joined(_clipped(blocks, least, size)):
        for at in range(first, last, _STEP):
            progress()
            yield from _different_blocks(base, target, at, min(at + _STEP, last))


@processors.unpinned()
def _read_both(base: int, target: int, start: int, end: int) -> tuple[bytes, bytes]:
    size = end - start
    old, new = os.pread(base, size, start), os.pread(target, size, start)
    return old.ljust(size, b"\0"), new.ljust(size, b"\0")


def _different_blocks(base: int, target: int, start: int, end: int) -> Iterator[Range]:
    old, new = _read_both(base, target, start, end)
    if old == new:
        return
    one, other = memoryview(old), memoryview(new)
    for at in range(0, end - start, BLOCK):
        if one[at : at + BLOCK] != other[at : at + BLOCK]:
            yield start + at, min(start + at + BLOCK, end)
