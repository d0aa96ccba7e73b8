"""The ranges of an image that hold data, and those in which two images differ.

Ranges are half open, in bytes. They are yielded in order, and with bounded memory, however many
extents there are.
"""

import dataclasses
import heapq
import os
from collections.abc import Callable, Iterable, Iterator

from pycsi.linux.fiemap import Extent, extents
from pycsi.linux.program import unpinned
from pycsi.model.size import BLOCK, round_down, round_up

Range = tuple[int, int]

_ATTEMPTS = 10
_STEP = 1024 * 1024
_WINDOW = 1024 * 1024 * 1024
"""The bytes of a file whose extents are compared at a time."""


def allocated(fd: int, start: int, size: int) -> Iterator[Range]:
    """Yield the ranges that hold data, from `start` on, of the open image `fd` of `size` bytes."""
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

    With `by_extents` these are the ranges in which the images do not share blocks. Otherwise the
    data of both images is read and compared, which works on any filesystem. Both are open files
    that must not change. `progress` is called now and then; an exception from it ends the search.
    """
    compare = _changed_extents if by_extents else _changed_data
    return _joined(_clipped(compare(base, target, start, size, progress), start, size))


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Join ranges that touch or overlap; `ranges` is in the order of their starts."""
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
    """A range of a file, and the place of its blocks on the disk; None if it reads as zeros.

    Pieces of two files whose blocks are at the same place have the same data if that is exact.
    """

    start: int
    end: int
    place: "_Place | None"


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """The place of blocks: `distance` is that of a byte's offset on the disk from that in the file.

    It is not `exact` if the blocks are compressed, or packed into other blocks: then a changed
    distance shows that they have moved, but an equal one does not show that the data is the same.
    """

    distance: int
    exact: bool


def _pieces(fd: int, start: int, end: int) -> list[_Piece]:
    """Return the pieces of a range of a file, without gaps."""
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
            # A filesystem may move blocks (btrfs balance). If those of the base have not moved
            # meanwhile, none of the target's can have moved to their places.
            if before == _pieces(base, at, end):
                yield from _different(before, after)
                break
        else:
            yield at, end


def _different(before: list[_Piece], after: list[_Piece]) -> Iterator[Range]:
    """Yield the ranges in which two lists of pieces, of the same range, differ."""
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
    """Yield the blocks that differ, counted from the file's beginning whatever `start` is."""
    least = round_down(start)
    either = heapq.merge(_data(base, least), _data(target, least))
    blocks = ((round_down(first), round_up(last)) for first, last in either)
    for first, last in _joined(_clipped(blocks, least, size)):
        for at in range(first, last, _STEP):
            progress()
            yield from _different_blocks(base, target, at, min(at + _STEP, last))


@unpinned()
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
