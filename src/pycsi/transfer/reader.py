"""Reading an export, which may be hostile, from anything that gives bytes.

Every byte is checked before anything is done with it, and no frame takes more memory than the
format allows.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from pycsi.model.size import LARGEST
from pycsi.transfer import compression
from pycsi.transfer.format import (
    HEADER_SIZE,
    LARGEST_FRAME,
    PREFACE_SIZE,
    Codec,
    FrameKind,
    Header,
    Position,
    StreamError,
    check_preface,
    first_link,
    link,
)
from pycsi.transfer.manifest import LARGEST_MANIFEST, Manifest

Source = Callable[[int], bytes]
"""Returns the next bytes, at most as many as are asked for; none at the end."""

_DIGEST = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A range of what is exported: its bytes, or None if it is a hole."""

    offset: int
    size: int
    data: bytes | None


class StreamReader:
    """Reads an export from `source`; `manifest` is that of it, once `open` has read it.

    `StreamError` for whatever is no export, damaged or cut off.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._frames = 0
        self._at = 0
        begin = self._take(PREFACE_SIZE, short=True)
        check_preface(begin)
        self._before = first_link(begin)
        header, data = self._frame()
        if header.kind is not FrameKind.MANIFEST:
            raise self._damaged("the manifest is not where it belongs")
        self.manifest = Manifest.parse(data)

    def pieces(self, size: int) -> Iterator[Piece]:
        """Yield what follows the manifest, in ascending order, all of it below `size` bytes.

        When the last one was yielded, the export is whole, and nothing follows it.
        """
        end = 0
        while True:
            header, data = self._frame()
            if header.kind is FrameKind.END:
                break
            if header.kind is FrameKind.MANIFEST:
                raise self._damaged("there is a second manifest")
            if not header.size:
                raise self._damaged("a range is empty")
            if header.offset < end:
                raise self._damaged("ranges overlap, or are out of order")
            end = header.offset + header.size
            if end > size:
                raise self._damaged(f"a range ends at {end}, beyond the size of {size} bytes")
            if header.kind is FrameKind.HOLE and not self.manifest.base:
                raise self._damaged("there is a hole of an increment, and it is none")
            yield Piece(header.offset, header.size, data if header.kind is FrameKind.DATA else None)
        if header.offset != self._frames - 1:
            raise self._damaged(f"there are {self._frames - 1} frames where {header.offset} were")
        if self._source(1):
            raise self._damaged("something follows its end")

    def intact(self) -> Position:
        """Read on while frames are whole; return where the last one ends that is not the end."""
        found = Position(length=self._at, digest=self._before, frames=self._frames, done=0)
        with contextlib.suppress(StreamError):
            while (header := self._frame()[0]).kind in {FrameKind.DATA, FrameKind.HOLE}:
                found = Position(
                    length=self._at,
                    digest=self._before,
                    frames=self._frames,
                    done=header.offset + header.size,
                )
        return found

    def _frame(self) -> tuple[Header, bytes]:
        """Return the next frame, checked: its header, and its bytes as they were exported."""
        raw = self._take(HEADER_SIZE)
        head, digest = raw[:-_DIGEST], raw[-_DIGEST:]
        try:
            header = Header.parse(head)
        except ValueError:
            raise self._damaged("no frame begins where one should") from None
        most = LARGEST_MANIFEST if header.kind is FrameKind.MANIFEST else LARGEST_FRAME
        if header.stored > most or header.offset > LARGEST or header.size > LARGEST:
            raise self._damaged("a frame is larger than any can be")
        stored = self._take(header.stored)
        if link(self._before, head, stored) != digest:
            raise self._damaged("a checksum does not agree")
        self._before = digest
        self._frames += 1
        return header, self._unpacked(header, stored, most)

    def _unpacked(self, header: Header, stored: bytes, most: int) -> bytes:
        if header.kind in {FrameKind.HOLE, FrameKind.END}:
            if header.stored or header.codec is not Codec.PLAIN:
                raise self._damaged("a frame has bytes where none belong")
            return stored
        if header.size > most:
            raise self._damaged("a frame is larger than any can be")
        if header.codec is Codec.ZSTD:
            return compression.decompressed(stored, header.size)
        if header.size != header.stored:
            raise self._damaged("a frame holds another number of bytes than it says")
        return stored

    def _take(self, count: int, *, short: bool = False) -> bytes:
        """Return the next `count` bytes; fewer only if that may be `short`."""
        parts = []
        missing = count
        while missing and (part := self._source(missing)):
            parts.append(part)
            missing -= len(part)
        if missing and not short:
            raise StreamError(
                f"it is cut off after {self._at + count - missing} bytes; export or copy it again"
            )
        self._at += count - missing
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _damaged(self, how: str) -> StreamError:
        return StreamError(f"it is damaged before byte {self._at}: {how}; export or copy it again")
