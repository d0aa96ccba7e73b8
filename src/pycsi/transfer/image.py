"""The content of images and raw block volumes: extents out of a file, and into one."""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator

from pycsi.transfer.format import StreamError
from pycsi.transfer.reader import Piece
from pycsi.transfer.writer import StreamWriter

Range = tuple[int, int]

STEP = 1024 * 1024
_AHEAD = 4
"""How many pieces are read ahead, while others are checked and written."""


def send(
    image: int, ranges: Iterable[Range], writer: StreamWriter, progress: Callable[[int], None]
) -> None:
    """Write the `ranges` of the open file `image`; `progress` is told how many bytes were done."""
    for offset, data in _ahead(_read(image, ranges)):
        writer.data(offset, data)
        progress(len(data))


def _read(image: int, ranges: Iterable[Range]) -> Iterator[tuple[int, bytes]]:
    for start, end in ranges:
        for at in range(start, end, STEP):
            want = min(STEP, end - at)
            data = os.pread(image, want, at)
            yield at, data.ljust(want, b"\0")


def _ahead(items: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield what `items` yields, of which a thread prepares some in advance."""
    ready: queue.Queue[tuple[int, bytes] | BaseException | None] = queue.Queue(_AHEAD)
    ended = threading.Event()

    def prepare() -> None:
        try:
            for item in items:
                if ended.is_set():
                    return
                ready.put(item)
        except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits)
            ready.put(error)
        else:
            ready.put(None)

    thread = threading.Thread(target=prepare, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ended.set()
        while thread.is_alive():  # it may wait for a place in the queue
            try:
                ready.get(timeout=0.01)
            except queue.Empty:
                continue


def receive(pieces: Iterable[Piece], image: int, progress: Callable[[int], None]) -> None:
    """Write pieces into the open file `image`, which has its size, and zeros elsewhere."""
    for piece in pieces:
        if piece.data is None:
            raise StreamError("it has a hole of an increment, and is none")
        left, at = memoryview(piece.data), piece.offset
        while left:
            count = os.pwrite(image, left, at)
            left, at = left[count:], at + count
        progress(piece.size)
