"""What there is: volumes, snapshots and group snapshots, and their records on disk."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Self

from pycsi.model.request import Access, Capability, Request

_PLAIN = (str, int, float, dict, type(None))


def _plain(record: Any) -> dict[str, Any]:
    """Return a dataclass as JSON takes it: like `dataclasses.asdict`, but nothing is copied."""
    return {
        name: value if isinstance(value := getattr(record, name), _PLAIN) else _plain_value(value)
        for name in record.__dataclass_fields__
    }


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    return _plain(value) if hasattr(value, "__dataclass_fields__") else value


class VolumeType(enum.StrEnum):
    """What a volume is made of (StorageClass parameter `type`)."""

    DIRECTORY = "directory"
    IMAGE = "image"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A controller publication: to which node, with which capability, read-only or not."""

    node: str
    capability: Capability
    readonly: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            node=data["node"],
            capability=Capability.from_json(data["capability"]),
            readonly=data["readonly"],
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume, as its record says.

    `capacity` is in bytes. `reason` says why the type was chosen. `filesystem` is the one on an
    image, None for directories and raw block. `project` is the project id of a directory whose
    limit is a project quota. `handle` is the orchestrator's id of an inline volume, None for all
    others, and `targets` are the paths that it was ever to be mounted at. `settings` are the
    mutable parameters as they are now. `created` is in seconds since the epoch.
    """

    id: str
    name: str
    pool: str
    pool_uuid: str
    type: VolumeType
    reason: str
    access: Access
    filesystem: str | None
    capacity: int
    enforced: bool
    thick: bool
    mkfs_options: tuple[str, ...]
    request: Request
    settings: Mapping[str, str]
    created: float
    project: int | None = None
    handle: str | None = None
    targets: tuple[str, ...] = ()
    attachment: Attachment | None = None

    @property
    def held(self) -> int:
        """How many bytes of the pool are promised to this."""
        return self.capacity

    @property
    def context(self) -> dict[str, str]:
        """The volume context: the same for ever, and not needed to find the volume."""
        return {
            "pool": self.pool,
            "poolUUID": self.pool_uuid,
            "type": self.type.value,
            "reason": self.reason,
        }

    def to_json(self) -> dict[str, Any]:
        plain = _plain(self)
        if not self.targets:
            del plain["targets"]  # so that an older version can read what has none
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        fields = dict(data)
        attachment = fields.pop("attachment")
        return cls(
            type=VolumeType(fields.pop("type")),
            access=Access(fields.pop("access")),
            mkfs_options=tuple(fields.pop("mkfs_options")),
            targets=tuple(fields.pop("targets", ())),
            request=Request.from_json(fields.pop("request")),
            attachment=None if attachment is None else Attachment.from_json(attachment),
            **fields,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot, as its record says.

    `volume` is its source, as that was then: what the data is made of. `held` is how many bytes of
    the pool the snapshot can keep occupied at most; it never changes, for a snapshot does not.
    `group` is the id of the group snapshot that it belongs to. `created` is the moment of the
    snapshot, in seconds since the epoch.
    """

    id: str
    name: str
    volume: Volume
    parameters: Mapping[str, str]
    created: float
    held: int = 0
    group: str | None = None

    @property
    def size(self) -> int:
        """What a volume needs, in bytes, to be restored from this."""
        return self.volume.capacity

    @property
    def filesystem(self) -> str | None:
        """The filesystem on the image that this is of."""
        return self.volume.filesystem

    def to_json(self) -> dict[str, Any]:
        return _plain(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        fields = dict(data)
        return cls(volume=Volume.from_json(fields.pop("volume")), **fields)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group snapshot: `members` are the ids of its snapshots, with the UUID of each one's pool.

    `sources` are the volumes, in the order of the request.
    """

    id: str
    name: str
    sources: tuple[str, ...]
    members: Mapping[str, str]
    parameters: Mapping[str, str]
    created: float

    def to_json(self) -> dict[str, Any]:
        return _plain(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        fields = dict(data)
        return cls(sources=tuple(fields.pop("sources")), **fields)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a volume holds: bytes, and inodes where its filesystem counts them."""

    total: int
    used: int | None = None
    available: int | None = None
    inodes: int | None = None
    inodes_used: int | None = None
    inodes_free: int | None = None
