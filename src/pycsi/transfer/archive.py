"""Reading a tar archive, which may be hostile, as a stream: its entries, one after the other."""

import array
import dataclasses
from collections.abc import Iterable, Iterator

from pycsi.transfer import pax
from pycsi.transfer.format import StreamError
from pycsi.transfer.reader import Piece

_STEP = 1024 * 1024
_END = bytes(pax.BLOCK)


class _Bytes:
    """The bytes of pieces that follow one another without a gap."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = iter(pieces)
        self._here = memoryview(b"")
        self._end = 0

    def some(self, most: int) -> memoryview:
        """Return the next bytes, at least one and at most `most`; none at the end."""
        while not self._here:
            piece = next(self._pieces, None)
            if piece is None:
                return memoryview(b"")
            if piece.data is None or piece.offset != self._end:
                raise StreamError("its tar has a gap")
            self._end += piece.size
            self._here = memoryview(piece.data)
        part, self._here = self._here[:most], self._here[most:]
        return part

    def exactly(self, count: int) -> bytes:
        """Return the next `count` bytes; `StreamError` if there are fewer."""
        parts = []
        while count:
            part = self.some(count)
            if not part:
                raise StreamError("its tar is cut off")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """An entry of an archive, with the size of its file, and the data of it that is no hole.

    The data, with the place of each part, has to be read before the next member is.
    """

    entry: pax.Entry
    size: int
    data: Iterator[tuple[int, memoryview]]


class Archive:
    """Reads the archive in `pieces`, of which each has to follow the one before."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._bytes = _Bytes(pieces)

    def members(self) -> Iterator[Member]:
        """Yield the members, to the end of the archive and of the pieces."""
        records: dict[bytes, bytes] = {}
        while (block := self._bytes.exactly(pax.BLOCK)) != _END:
            flag, entry = pax.parse_header(block, records)
            if flag == b"x":
                if entry.size > pax.LARGEST_HEADER or records:
                    raise StreamError("its tar has a header that is too long")
                records = pax.parse_records(self._bytes.exactly(entry.size))
                self._skip(entry.size)
                continue
            member = self._member(entry)
            yield member
            for _ in member.data:
                raise StreamError(f"its tar has data where none belongs: {entry.shown}")
            self._skip(entry.size)
            records = {}
        if records or self._bytes.exactly(pax.BLOCK) != _END or self._bytes.some(1):
            raise StreamError("its tar does not end where it should")

    def _skip(self, size: int) -> None:
        """Read the zeros that fill a block up after `size` bytes."""
        if any(self._bytes.exactly(-size % pax.BLOCK)):
            raise StreamError("its tar has data where none belongs")

    def _member(self, entry: pax.Entry) -> Member:
        records = entry.records
        if not any(key.startswith(b"GNU.sparse.") for key in records):
            return Member(entry, entry.size, self._data(entry, [(0, entry.size)]))
        version = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
        name, size = records.get(b"GNU.sparse.name"), records.get(b"GNU.sparse.realsize")
        if version != (b"1", b"0") or not (name and size) or entry.type is not pax.FileType.REGULAR:
            raise StreamError("its tar has holes in a form that is not known")
        real = pax.number(size, "a size")
        extents = self._map(entry, real)
        return Member(dataclasses.replace(entry, path=name), real, self._data(entry, extents))

    def _map(self, entry: pax.Entry, size: int) -> Iterable[tuple[int, int]]:
        """Return the extents of a file with holes, in order; the map precedes the data."""
        numbers = array.array("Q")
        rest, taken, missing = b"", 0, 1
        while missing > 0:
            if taken >= min(entry.size, pax.LARGEST_MAP):
                raise self._bad_map(entry)
            *lines, rest = (rest + self._bytes.exactly(pax.BLOCK)).split(b"\n")
            taken += pax.BLOCK
            for line in lines:
                numbers.append(pax.number(line, "a place in a file with holes"))
                missing = 2 * numbers[0] + 1 - len(numbers)
        if missing or any(rest):
            raise self._bad_map(entry)
        end, total = 0, 0
        for start, length in zip(numbers[1::2], numbers[2::2], strict=True):
            if start < end or start + length > size:
                raise self._bad_map(entry)
            end = start + length
            total += length
        if total + taken != entry.size:
            raise self._bad_map(entry)
        return zip(numbers[1::2], numbers[2::2], strict=True)

    @staticmethod
    def _bad_map(entry: pax.Entry) -> StreamError:
        return StreamError(f"its tar has a map of holes that cannot be: {entry.shown}")

    def _data(
        self, entry: pax.Entry, extents: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, memoryview]]:
        for start, length in extents:
            at, end = start, start + length
            while at < end:
                part = self._bytes.some(min(end - at, _STEP))
                if not part:
                    raise StreamError(f"its tar is cut off in {entry.shown}")
                yield at, part
                at += len(part)
