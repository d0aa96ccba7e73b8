"""The content of images and raw block volumes: extents out of a file, and into one."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

from pycsi.linux import filecopy
from pycsi.linux.punch import punch_hole
from pycsi.transfer.reader import Piece
from pycsi.transfer.writer import StreamWriter

Range = tuple[int, int]

STEP = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A range of an image, and whether it is a hole, which the base of an increment may not be."""

    start: int
    end: int
    hole: bool = False


def changes(image: int, changed: Iterable[Range]) -> Iterator[Span]:
    """Yield the data and the holes that the open file `image` has in the `changed` ranges."""
    for start, end in changed:
        at = start
        for first, last in filecopy.data_ranges(image, end, start):
            if first > at:
                yield Span(at, first, hole=True)
            yield Span(first, last)
            at = last
        if at < end:
            yield Span(at, end, hole=True)


def send(
    image: int, spans: Iterable[Span], writer: StreamWriter, progress: Callable[[int], None]
) -> None:
    """Write the `spans` of the open file `image`; `progress` is told how many bytes were done."""
    rest = (
        dataclasses.replace(span, start=max(span.start, writer.done))
        for span in spans
        if span.end > writer.done
    )
    for piece in _read(image, rest):
        if piece.data is None:
            writer.hole(piece.offset, piece.size)
        else:
            writer.data(piece.offset, piece.data)
            progress(piece.size)


def _read(image: int, spans: Iterable[Span]) -> Iterator[Piece]:
    for span in spans:
        if span.hole:
            yield Piece(span.start, span.end - span.start, None)
            continue
        for at in range(span.start, span.end, STEP):
            want = min(STEP, span.end - at)
            yield Piece(at, want, pread(image, want, at))


def pread(file: int, count: int, at: int) -> bytes:
    """Return `count` bytes; zeros beyond the end. An error has the path of the file."""
    try:
        return os.pread(file, count, at).ljust(count, b"\0")
    except OSError as error:
        path = os.readlink(f"/proc/self/fd/{file}")
        raise OSError(error.errno, error.strerror, path) from None


def receive(pieces: Iterable[Piece], image: int, progress: Callable[[int], None]) -> None:
    """Write pieces into the open file `image`, which has its size."""
    for piece in pieces:
        if piece.data is None:
            punch_hole(image, piece.offset, piece.size)
            continue
        left, at = memoryview(piece.data), piece.offset
        while left:
            count = os.pwrite(image, left, at)
            left, at = left[count:], at + count
        progress(piece.size)
