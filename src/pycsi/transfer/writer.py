"""Writing an export, frame by frame, to anything that takes bytes."""

from collections.abc import Callable

from pycsi.transfer import compression
from pycsi.transfer.format import (
    LARGEST_FRAME,
    Codec,
    FrameKind,
    Header,
    Position,
    first_link,
    link,
    preface,
)
from pycsi.transfer.manifest import Manifest

Sink = Callable[[bytes | memoryview], None]
"""Takes all the bytes that it is given, or raises an error."""


class StreamWriter:
    """Writes an export to `sink`; with `compress`, frames that get smaller by it are compressed.

    `after` is where one was cut off that is continued; it has its manifest already.
    """

    def __init__(
        self, sink: Sink, *, compress: bool = False, after: Position | None = None
    ) -> None:
        self._sink = sink
        self._compress = compress
        begin = preface()
        self._after = after or Position(length=0, digest=first_link(begin), frames=0, done=0)
        self._frames, self._before = self._after.frames, self._after.digest
        if after is None:
            sink(begin)

    @property
    def done(self) -> int:
        """Where the data ends that was there when this began; what lies before is not wanted."""
        return self._after.done

    def manifest(self, manifest: Manifest) -> None:
        """Write the manifest; it comes first."""
        data = manifest.encoded()
        self._frame(FrameKind.MANIFEST, 0, len(data), data)

    def data(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes and their place; the places of calls ascend, and do not overlap."""
        for at in range(0, len(data), LARGEST_FRAME):
            part = memoryview(data)[at : at + LARGEST_FRAME]
            if offset + at >= self.done:
                self._frame(FrameKind.DATA, offset + at, len(part), part)

    def hole(self, offset: int, size: int) -> None:
        """Write that a range is a hole, where the base of an increment may have data."""
        if offset >= self.done:
            self._frame(FrameKind.HOLE, offset, size, b"")

    def end(self, size: int) -> None:
        """Write the end: without it an export is cut off. `size` is that of what was exported."""
        self._frame(FrameKind.END, self._frames, size, b"")

    def _frame(self, kind: FrameKind, offset: int, size: int, data: bytes | memoryview) -> None:
        codec, stored = Codec.PLAIN, data
        if self._compress and kind is FrameKind.DATA:
            smaller = compression.compressed(data)
            if len(smaller) < len(data):
                codec, stored = Codec.ZSTD, smaller
        header = Header(kind, codec, offset, size, len(stored)).packed()
        self._before = link(self._before, header, stored)
        self._frames += 1
        self._sink(header + self._before)
        if stored:
            self._sink(stored)
