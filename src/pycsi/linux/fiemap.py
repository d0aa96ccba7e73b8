"""Extent maps: which parts of a file have blocks, and where on the disk (FS_IOC_FIEMAP)."""

import dataclasses
import fcntl
import struct
from collections.abc import Iterator

FIEMAP_EXTENT_LAST = 0x1
FIEMAP_EXTENT_UNKNOWN = 0x2
FIEMAP_EXTENT_DELALLOC = 0x4
FIEMAP_EXTENT_ENCODED = 0x8
FIEMAP_EXTENT_NOT_ALIGNED = 0x100
FIEMAP_EXTENT_UNWRITTEN = 0x800
FIEMAP_EXTENT_SHARED = 0x2000
FIEMAP_FLAG_SYNC = 0x1
FS_IOC_FIEMAP = 0xC020660B

_BATCH = 512
_EXTENT = struct.Struct("=QQQ16xI12x")
_NOWHERE = (
    FIEMAP_EXTENT_UNKNOWN
    | FIEMAP_EXTENT_DELALLOC
    | FIEMAP_EXTENT_ENCODED
    | FIEMAP_EXTENT_NOT_ALIGNED
)
_REQUEST = struct.Struct("=QQIIII")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A part of a file that has blocks.

    `start` and `end` are its offsets in the file, `physical` its offset on the disk, in bytes.
    """

    start: int
    end: int
    physical: int
    flags: int

    @property
    def written(self) -> bool:
        """Whether the extent holds data; an unwritten extent reads as zeros."""
        return not self.flags & FIEMAP_EXTENT_UNWRITTEN

    @property
    def shared(self) -> bool:
        """Whether another file shares the blocks, as far as the filesystem reports it."""
        return bool(self.flags & FIEMAP_EXTENT_SHARED)

    @property
    def located(self) -> bool:
        """Whether byte n of the extent is at `physical` + n; not so in a compressed extent."""
        return not self.flags & _NOWHERE


def unshared(fd: int) -> int:
    """Return how many bytes of the open file `fd` have blocks that no other file shares."""
    return sum(extent.end - extent.start for extent in extents(fd, sync=False) if not extent.shared)


def extents(fd: int, start: int = 0, *, sync: bool = True) -> Iterator[Extent]:
    """Yield the extents of the open file `fd` that end after the offset `start`, in order.

    With `sync`, the kernel first writes the file's dirty pages to the disk. Memory use does not
    depend on the number of extents.
    """
    flags = FIEMAP_FLAG_SYNC if sync else 0
    while True:
        buffer = bytearray(_REQUEST.size + _BATCH * _EXTENT.size)
        _REQUEST.pack_into(buffer, 0, start, 2**64 - 1 - start, flags, 0, _BATCH, 0)
        fcntl.ioctl(fd, FS_IOC_FIEMAP, buffer, True)
        mapped = _REQUEST.unpack_from(buffer)[3]
        for number in range(mapped):
            at, physical, length, marks = _EXTENT.unpack_from(
                buffer, _REQUEST.size + number * _EXTENT.size
            )
            yield Extent(start=at, end=at + length, physical=physical, flags=marks)
            if marks & FIEMAP_EXTENT_LAST:
                return
            start = at + length
        if not mapped:
            return
        flags = 0
