"""Compression of single frames by zstd, of which each is a complete zstd frame."""

import functools
from typing import Any

from pycsi.transfer.format import StreamError

_LEVEL = 3


class UncompressedError(Exception):
    """The package for zstd is missing."""


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UncompressedError("the Python package zstandard is not installed") from None
    return zstandard


@functools.cache
def _compressor() -> Any:
    return _zstandard().ZstdCompressor(level=_LEVEL, write_content_size=True)


def check_available() -> None:
    """Raise `UncompressedError` if nothing can be compressed here."""
    _compressor()


def compressed(data: bytes | memoryview) -> bytes:
    """Return the compressed bytes; `UncompressedError` without the package."""
    made: bytes = _compressor().compress(data)
    return made


def decompressed(data: bytes, size: int) -> bytes:
    """Return the `size` bytes that were compressed; never takes more memory than these."""
    try:
        package = _zstandard()
    except UncompressedError as error:
        raise StreamError(f"it is compressed, and {error}; install that") from None
    try:
        # Both are looked at: a bomb may declare a small size, or none.
        if package.frame_content_size(data) != size:
            raise StreamError("a frame holds another number of bytes than it says")
        made: bytes = package.ZstdDecompressor(max_window_size=2**27).decompress(
            data, max_output_size=size
        )
    except package.ZstdError:
        raise StreamError("a frame cannot be decompressed") from None
    if len(made) != size:
        raise StreamError("a frame holds another number of bytes than it says")
    return made
