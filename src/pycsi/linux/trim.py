"""Discarding the free blocks of a mounted filesystem: FITRIM of <linux/fs.h>, as fstrim(8) does."""

import fcntl
import struct

FITRIM = 0xC0185879

_RANGE = struct.Struct("=QQQ")
"""`struct fstrim_range`: start, len, minlen."""

_LAST = 2**64 - 1


def trim(fd: int, start: int, length: int | None = None) -> int:
    """Discard the free blocks in `length` bytes from `start` on; return how many bytes.

    Without `length` the range ends with the filesystem, on a directory of which `fd` is open.
    Blocks that were discarded since the mount may be left out, or counted again. `OSError` with
    EOPNOTSUPP: the device cannot discard; with EINVAL also: the filesystem ends before `start`.
    """
    length = _LAST - start if length is None else length
    asked = bytearray(_RANGE.pack(start, length, 0))
    fcntl.ioctl(fd, FITRIM, asked)
    _, trimmed, _ = _RANGE.unpack(asked)
    return int(trimmed)
