"""The form of an export: a preface, then frames, whose digests form a chain."""

import dataclasses
import enum
import hashlib
import struct
from typing import Self

MAGIC = b"\x89PYCSI\r\n"
"""The first bytes: no text has them, and a transfer that changes the ends of lines spoils them."""

VERSION = 1

LARGEST_FRAME = 4 * 1024 * 1024
"""The most bytes that a frame holds, compressed or not."""

_PREFACE = struct.Struct(">8sII")
_HEADER = struct.Struct(">4sIQQQ")
_DIGEST = 32

PREFACE_SIZE = _PREFACE.size
HEADER_SIZE = _HEADER.size + _DIGEST


class StreamError(Exception):
    """A stream is no export, is damaged, or does not fit; the message says where and how."""


class FrameKind(enum.Enum):
    """The kinds of frame."""

    MANIFEST = b"MANI"
    DATA = b"DATA"
    HOLE = b"HOLE"
    END = b"DONE"


class Codec(enum.IntEnum):
    """How the bytes of a frame are stored."""

    PLAIN = 0
    ZSTD = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What precedes the stored bytes of a frame.

    `offset` is the place of its bytes in what is exported, `size` their number, and `stored` how
    many bytes of the stream follow.
    """

    kind: FrameKind
    codec: Codec
    offset: int
    size: int
    stored: int

    def packed(self) -> bytes:
        """Return the header's bytes, without the digest that follows them."""
        return _HEADER.pack(self.kind.value, self.codec, self.offset, self.size, self.stored)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the header in these bytes; `ValueError` for what none has."""
        kind, codec, offset, size, stored = _HEADER.unpack_from(data)
        return cls(FrameKind(kind), Codec(codec), offset, size, stored)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A place between two frames of an export, at which its writer can go on.

    `length` is how many bytes of the stream precede it, `digest` that of the last frame, `frames`
    their number, and `done` where the last range ended.
    """

    length: int
    digest: bytes
    frames: int
    done: int


def preface() -> bytes:
    """Return the first bytes of an export of this version."""
    return _PREFACE.pack(MAGIC, VERSION, 0)


def check_preface(data: bytes) -> None:
    """Raise `StreamError` unless these bytes begin an export that this version can read."""
    if len(data) < PREFACE_SIZE or not data.startswith(MAGIC):
        raise StreamError("it is no export of pycsi: it does not begin as one")
    _, version, _ = _PREFACE.unpack(data)
    if version != VERSION:
        raise StreamError(
            f"it has version {version} of the format, and this pycsi reads version {VERSION}; use "
            "a newer pycsi, or look for damage"
        )


def first_link(data: bytes) -> bytes:
    """Return what the digest of the first frame follows: the digest of the preface."""
    return hashlib.sha256(data).digest()


def link(before: bytes, header: bytes, stored: bytes | memoryview) -> bytes:
    """Return the digest of a frame that comes after the one with the digest `before`."""
    digest = hashlib.sha256(before)
    digest.update(header)
    digest.update(stored)
    return digest.digest()
