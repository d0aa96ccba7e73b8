"""What the driver talks about: requests, volumes and their sizes, and the records on disk."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Self

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

BLOCK = 4 * KIB
"""Every size is a whole number of these; a page, and the block of all three filesystems."""

LARGEST = 2**63 - BLOCK
"""No size is larger: the protocol's are signed 64-bit numbers."""

DEFAULT_SIZE = GIB
"""The size of a volume for which none was asked."""


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


class Access(enum.StrEnum):
    """How a volume is presented: a mounted filesystem or a raw block device."""

    MOUNT = "mount"
    BLOCK = "block"


class Mode(enum.StrEnum):
    """The access modes; the names are the specification's.

    Those of many nodes are for where one node is all there is: data lies on one.
    """

    SINGLE_NODE_WRITER = "SINGLE_NODE_WRITER"
    SINGLE_NODE_READER_ONLY = "SINGLE_NODE_READER_ONLY"
    SINGLE_NODE_SINGLE_WRITER = "SINGLE_NODE_SINGLE_WRITER"
    SINGLE_NODE_MULTI_WRITER = "SINGLE_NODE_MULTI_WRITER"
    MULTI_NODE_READER_ONLY = "MULTI_NODE_READER_ONLY"
    MULTI_NODE_SINGLE_WRITER = "MULTI_NODE_SINGLE_WRITER"
    MULTI_NODE_MULTI_WRITER = "MULTI_NODE_MULTI_WRITER"

    @property
    def many_nodes(self) -> bool:
        """Whether a volume may be published on several nodes."""
        return self.value.startswith("MULTI_NODE_")

    @property
    def readonly(self) -> bool:
        """Whether nobody may write to the volume."""
        return self in {Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY}

    @property
    def one_target(self) -> bool:
        """Whether a volume may be published at one target path only."""
        return not self.many_nodes and self is not Mode.SINGLE_NODE_MULTI_WRITER


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """A volume capability. `mount_flags` may be sensitive and are never logged or shown."""

    access: Access
    mode: Mode
    filesystem: str | None = None
    mount_flags: tuple[str, ...] = ()

    @property
    def readonly(self) -> bool:
        return self.mode.readonly

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            access=Access(data["access"]),
            mode=Mode(data["mode"]),
            filesystem=data["filesystem"],
            mount_flags=tuple(data["mount_flags"]),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CapacityRange:
    """At least `required` and at most `limit` bytes; None where the request did not say."""

    required: int | None = None
    limit: int | None = None

    def holds(self, size: int) -> bool:
        return (self.required or 0) <= size and (self.limit is None or size <= self.limit)


class SourceKind(enum.StrEnum):
    """From what a volume can be filled."""

    SNAPSHOT = "snapshot"
    VOLUME = "volume"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The snapshot or volume that a volume is filled from (VolumeContentSource)."""

    kind: SourceKind
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(kind=SourceKind(data["kind"]), id=data["id"])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What CreateVolume was asked for, kept so that a retry can be compared field by field.

    `mutable` are the mutable_parameters, which win over `parameters`.
    """

    capabilities: tuple[Capability, ...]
    capacity: CapacityRange | None = None
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mutable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: Source | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        source = data["source"]
        return cls(
            capabilities=tuple(Capability.from_json(item) for item in data["capabilities"]),
            capacity=None if data["capacity"] is None else CapacityRange(**data["capacity"]),
            parameters=dict(data["parameters"]),
            mutable=dict(data["mutable"]),
            source=None if source is None else Source.from_json(source),
        )


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


def round_up(size: int) -> int:
    """Return the least whole number of blocks that holds `size` bytes."""
    return -(-size // BLOCK) * BLOCK


def round_down(size: int) -> int:
    """Return the largest whole number of blocks within `size` bytes, never negative."""
    return max(0, size // BLOCK * BLOCK)


def show(size: int) -> str:
    """Return a size for people, such as `1.5 GiB`."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value) < KIB:
            return f"{value:.4g} {unit}"
        value /= KIB
    return f"{value:.4g} TiB"
