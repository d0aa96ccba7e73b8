"""The headers of a tar archive in the pax format (POSIX.1-2001, pax(1)), as GNU tar reads them.

Holes are kept as GNU tar's sparse format 1.0, extended attributes and ACLs under the keys of star
and GNU tar: SCHILY.xattr.* and SCHILY.acl.*. Names are bytes, as the kernel has them.
"""

import dataclasses
import enum
import stat
from collections.abc import Iterator, Mapping

from pycsi.transfer.format import StreamError

BLOCK = 512
LARGEST_HEADER = 4 * 1024 * 1024
"""The most bytes that all extended attributes and names of a file may have."""

LARGEST_MAP = 64 * 1024 * 1024
"""The most bytes that the map of a file with holes may have: millions of holes."""

LONGEST_PATH = 32 * 1024

TYPE = b"PYCSI.type"
"""The key of what tar does not know: that a FIFO is a `SOCKET`, or an empty file is `REMOVED`."""

SOCKET = b"socket"
REMOVED = b"removed"
"""In an increment: there is nothing of that name any more."""

XATTR = b"SCHILY.xattr."
ACL_ACCESS = b"SCHILY.acl.access"
ACL_DEFAULT = b"SCHILY.acl.default"

_NANO = 10**9
_SHORT = 100
_SHOWN = 120
_OCTAL = 8
_MAGIC = b"ustar\x0000"


class FileType(enum.Enum):
    """The types of entry, by their type flags."""

    REGULAR = b"0"
    LINK = b"1"
    SYMLINK = b"2"
    CHARACTER = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


OF_MODE: Mapping[int, FileType] = {
    stat.S_IFREG: FileType.REGULAR,
    stat.S_IFLNK: FileType.SYMLINK,
    stat.S_IFCHR: FileType.CHARACTER,
    stat.S_IFBLK: FileType.BLOCK,
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFIFO: FileType.FIFO,
    stat.S_IFSOCK: FileType.FIFO,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of an archive, of whatever type.

    `size` is the number of bytes that follow the header, and `records` are the pax records: all of
    them, by their keys. Times are in nanoseconds. A hard `link` names an earlier entry.
    """

    path: bytes
    type: FileType
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    records: Mapping[bytes, bytes] = dataclasses.field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The path for a message: without control characters, and not too long."""
        return repr(self.path) if len(self.path) <= _SHOWN else f"{self.path[:_SHOWN]!r}..."


# Writing


def header(entry: Entry, shown: bytes | None = None) -> bytes:
    """Return the blocks that precede the data of an entry.

    `shown` is the name for programs that know no holes.
    """
    path = entry.path if shown is None else shown
    records = {**entry.records, b"mtime": _time(entry.mtime)}
    names = {b"path": path, b"linkpath": entry.link}
    records |= {
        key: text for key, text in names.items() if len(text) > _SHORT or not text.isascii()
    }
    if not all(map(_is_utf8, (path, entry.link))):
        records = {b"hdrcharset": b"BINARY", **records}
    for key, number in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if number >= _OCTAL**7:
            records[key] = b"%d" % number
    if entry.size >= _OCTAL**11:
        records[b"size"] = b"%d" % entry.size
    body = b"".join(_record(key, value) for key, value in records.items())
    if len(body) > LARGEST_HEADER:
        raise StreamError(f"{entry.shown} has more extended attributes than an export can hold")
    before = _ustar(b"x", b"PaxHeader", Entry(path=b"", type=FileType.REGULAR), len(body))
    return before + padded(body) + _ustar(entry.type.value, path, entry, entry.size)


def padded(data: bytes) -> bytes:
    """Return data with zeros up to a whole block."""
    return data + bytes(-len(data) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """Return a pax record: its own length, a key and a value."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _time(nanoseconds: int) -> bytes:
    sign, whole = (b"-", -nanoseconds) if nanoseconds < 0 else (b"", nanoseconds)
    return b"%s%d.%09d" % (sign, *divmod(whole, _NANO))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _ustar(flag: bytes, path: bytes, entry: Entry, size: int) -> bytes:
    def octal(number: int, digits: int) -> bytes:
        return b"%0*o\0" % (digits, number if 0 <= number < _OCTAL**digits else 0)

    parts = (
        _short(path).ljust(_SHORT, b"\0"),
        octal(stat.S_IMODE(entry.mode), 7),
        octal(entry.uid, 7),
        octal(entry.gid, 7),
        octal(size, 11),
        octal(entry.mtime // _NANO, 11),
        b" " * 8,
        flag,
        _short(entry.link).ljust(_SHORT, b"\0"),
        _MAGIC,
        bytes(64),
        octal(entry.device[0], 7),
        octal(entry.device[1], 7),
    )
    block = padded(b"".join(parts))
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _short(path: bytes) -> bytes:
    """Return a name that fits; the whole one is in a record then."""
    return path[:_SHORT].rstrip(b"/") if len(path) > _SHORT else path


# Reading


def parse_records(body: bytes) -> dict[bytes, bytes]:
    """Return the pax records in the data of an `x` entry; `StreamError` if they are malformed."""
    return dict(_records(body))


def _records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        length = number(body[at:space], "the length of a record") if space > at else 0
        record = body[space + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if at + length > len(body) or not record.endswith(b"\n") or not (equals and key):
            raise StreamError("its tar has a record that cannot be read")
        yield key, value[:-1]
        at += length


def parse_header(block: bytes, records: Mapping[bytes, bytes]) -> tuple[bytes, Entry]:
    """Return the type flag and the entry of a header; `records` are those that precede it.

    The type of an `x` header is that of a file. `StreamError` if it is none.
    """
    total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    if block[257:265] != _MAGIC or _octal(block[148:156]) != total:
        raise StreamError("its tar has a header that cannot be read")
    flag = block[156:157]
    try:
        kind = FileType.REGULAR if flag == b"x" else FileType(flag)
    except ValueError:
        raise StreamError(f"its tar has an entry of the unknown type {flag!r}") from None
    entry = Entry(
        path=records.get(b"path", block[:100].rstrip(b"\0")),
        type=kind,
        mode=_octal(block[100:108]),
        uid=_number(records, b"uid", block[108:116]),
        gid=_number(records, b"gid", block[116:124]),
        size=_number(records, b"size", block[124:136]),
        mtime=_parse_time(records[b"mtime"]) if b"mtime" in records else 0,
        link=records.get(b"linkpath", block[157:257].rstrip(b"\0")),
        device=(_octal(block[329:337]), _octal(block[337:345])),
        records=records,
    )
    return flag, entry


def _number(records: Mapping[bytes, bytes], key: bytes, field: bytes) -> int:
    return number(records[key], key.decode()) if key in records else _octal(field)


def _octal(field: bytes) -> int:
    text = field.rstrip(b" \0")
    if not text or text.strip(b"01234567"):
        raise StreamError("its tar has a header that cannot be read")
    return int(text, _OCTAL)


def number(text: bytes, what: str) -> int:
    """Return a decimal number of at most 63 bits; `StreamError` names `what` it should be."""
    value = int(text) if text.isdigit() and len(text) < 20 else -1  # noqa: PLR2004
    if not 0 <= value < 2**63:
        raise StreamError(f"its tar has {text[:30]!r} for {what}")
    return value


def _parse_time(text: bytes) -> int:
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    seconds = number(whole, "a time")
    nano = number(fraction[:9].ljust(9, b"0"), "a time")
    if seconds >= 2**40:
        raise StreamError(f"its tar has {text[:30]!r} for a time")
    return (seconds * _NANO + nano) * (-1 if text.startswith(b"-") else 1)
