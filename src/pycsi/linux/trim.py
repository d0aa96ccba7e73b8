"""Discarding what a mounted filesystem does not use: FITRIM of <linux/fs.h>, as fstrim(8) does."""

import fcntl
import struct

FITRIM = 0xC0185879

_RANGE = struct.Struct("=QQQ")
"""`struct fstrim_range`: start, len, minlen."""

_LAST = 2**64 - 1


def trim(fd: int, start: int, length: int | None = None) -> int:
    """Discard what is free in `length` bytes, or all bytes, from `start` on; return how many.

    `fd` is open on a directory of the filesystem. What a filesystem has discarded since it was
    mounted it may leave out, or count again. `OSError` with EOPNOTSUPP: its device cannot discard;
    with EINVAL also where the filesystem is not larger than `start`.
    """
    length = _LAST - start if length is None else length
    asked = bytearray(_RANGE.pack(start, length, 0))
    fcntl.ioctl(fd, FITRIM, asked)
    _, trimmed, _ = _RANGE.unpack(asked)
    return int(trimmed)
