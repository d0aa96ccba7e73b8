"""POSIX ACLs (acl(5)): the kernel's form, an extended attribute, and the text that tar keeps.

The attribute's form is that of <linux/posix_acl_xattr.h>. In the text users and groups are numbers.
"""

import struct
from collections.abc import Mapping

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_CURRENT = 2
_NOBODY = 0xFFFFFFFF
_BITS = (4, 2, 1)

_TAGS: Mapping[int, tuple[str, bool]] = {
    0x01: ("user", False),
    0x02: ("user", True),
    0x04: ("group", False),
    0x08: ("group", True),
    0x10: ("mask", False),
    0x20: ("other", False),
}
"""For each tag its word, and whether an id belongs to it."""

_NUMBERS = {words: tag for tag, words in _TAGS.items()}


def to_text(value: bytes) -> str:
    """Return the text of an attribute's value; `ValueError` if it is none of this version."""
    if len(value) % _ENTRY.size != _VERSION.size or _VERSION.unpack_from(value)[0] != _CURRENT:
        raise ValueError("an ACL of an unknown form")
    parts = []
    for tag, bits, number in _ENTRY.iter_unpack(value[_VERSION.size :]):
        if tag not in _TAGS or bits > 7:  # noqa: PLR2004
            raise ValueError("an ACL of an unknown form")
        word, named = _TAGS[tag]
        allowed = "".join(
            letter if bits & bit else "-" for letter, bit in zip("rwx", _BITS, strict=True)
        )
        parts.append(f"{word}:{number if named else ''}:{allowed}")
    return ",".join(parts)


def from_text(text: str) -> bytes:
    """Return the attribute's value for a text; `ValueError` if it is no ACL."""
    value = _VERSION.pack(_CURRENT)
    for part in text.split(","):
        word, name, allowed = part.split(":")
        tag = _NUMBERS.get((word, bool(name)))
        letters = [letter for letter, bit in zip(allowed, "rwx", strict=True) if letter != bit]
        number = int(name) if name.isascii() and name.isdigit() else _NOBODY
        if tag is None or set(letters) - {"-"} or number > _NOBODY or (name and number == _NOBODY):
            raise ValueError(f"{part!r} is no entry of an ACL")
        bits = sum(bit for letter, bit in zip(allowed, _BITS, strict=True) if letter != "-")
        value += _ENTRY.pack(tag, bits, number)
    return value
