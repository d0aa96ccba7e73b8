"""The manifest of an export: what is in it, and what a volume made from it has to be."""

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from typing import Any, Self

from pycsi.linux import mkfs
from pycsi.linux.record import fields_of
from pycsi.model.size import BLOCK, LARGEST
from pycsi.transfer.format import StreamError

LARGEST_MANIFEST = 256 * 1024
_LONGEST = 4096
_LONGEST_NAME = 256


class VolumeKind(enum.StrEnum):
    """What an export holds: an image with a filesystem, a raw block volume, or a directory."""

    IMAGE = "image"
    BLOCK = "block"
    DIRECTORY = "directory"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is told of an export before its data.

    `size` is the volume's capacity in bytes. `point` names the content: two exports with the same
    one are of the same snapshot; it is "" for a volume, which may change. `base` is the point that
    an increment builds on, "" for a full export. `created` is the point in time, in seconds since
    the epoch.
    """

    kind: VolumeKind
    size: int
    filesystem: str
    thick: bool
    mkfs_options: tuple[str, ...]
    parameters: Mapping[str, str]
    volume: str
    snapshot: str
    pool: str
    created: float
    point: str
    base: str
    base_snapshot: str
    program: str

    def encoded(self) -> bytes:
        """Return the manifest as JSON."""
        return json.dumps(fields_of(self), indent=1, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the manifest in these bytes; `StreamError` names what is wrong with it."""
        try:
            given = json.loads(data)
        except (ValueError, RecursionError):
            raise StreamError("its manifest is no JSON") from None
        if not isinstance(given, dict):
            raise StreamError("its manifest is no JSON object")
        names = [field.name for field in dataclasses.fields(cls)]
        fields: dict[str, Any] = {name: given.get(name) for name in names}
        for name, fits in _CHECKS.items():
            if not fits(fields[name]):
                raise StreamError(
                    f"its manifest has a {name} that cannot be: {_brief(given, name)}"
                )
        kind = VolumeKind(fields["kind"])
        if (kind is VolumeKind.IMAGE) != bool(fields["filesystem"]):
            raise StreamError(
                f"its manifest contradicts itself: {kind} with "
                f"{fields['filesystem'] or 'no filesystem'}"
            )
        fields["kind"] = kind
        fields["mkfs_options"] = tuple(fields["mkfs_options"])
        return cls(**fields)


def _brief(given: Mapping[str, Any], name: str) -> str:
    return repr(given[name])[:80] if name in given else "it is missing"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value.encode(errors="replace")) <= _LONGEST


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAME and value.isprintable()


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < LARGEST


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST and value % BLOCK == 0


def _is_list(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _LONGEST and all(map(_is_text, value))


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and len(value) <= _LONGEST and all(map(_is_text, value.values()))


_CHECKS = {
    "kind": lambda value: value in list(VolumeKind),
    "size": _is_size,
    "filesystem": lambda value: value in {"", *mkfs.KINDS} if isinstance(value, str) else False,
    "thick": lambda value: isinstance(value, bool),
    "mkfs_options": _is_list,
    "parameters": _is_map,
    "created": _is_time,
    **dict.fromkeys(
        ("volume", "snapshot", "pool", "point", "base", "base_snapshot", "program"), _is_name
    ),
}
"""For each field, whether a value can be meant; made for the first volume, all are needed."""
