"""Writing an export, frame by frame, to anything that takes bytes."""

from collections.abc import Callable

from pycsi.transfer import compression
from pycsi.transfer.format import (
    LARGEST_FRAME,
    Codec,
    FrameKind,
    Header,
    first_link,
    link,
    preface,
)
from pycsi.transfer.manifest import Manifest

Sink = Callable[[bytes | memoryview], None]
"""Takes all the bytes that it is given, or raises an error."""


class StreamWriter:
    """Writes an export to `sink`; with `compress`, frames that get smaller by it are compressed."""

    def __init__(self, sink: Sink, *, compress: bool = False) -> None:
        self._sink = sink
        self._compress = compress
        self._frames = 0
        begin = preface()
        self._before = first_link(begin)
        sink(begin)

    def manifest(self, manifest: Manifest) -> None:
        """Write the manifest; it comes first."""
        data = manifest.encoded()
        self._frame(FrameKind.MANIFEST, 0, len(data), data)

    def data(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes and their place; the places of calls ascend, and do not overlap."""
        for at in range(0, len(data), LARGEST_FRAME):
            part = memoryview(data)[at : at + LARGEST_FRAME]
            self._frame(FrameKind.DATA, offset + at, len(part), part)

    def hole(self, offset: int, size: int) -> None:
        """Write that a range is a hole, where the base of an increment may have data."""
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
