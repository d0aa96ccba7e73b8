"""Volumes, snapshots and group snapshots, and the form of their records on disk."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Self

from pycsi.linux import luks
from pycsi.linux.record import fields_of
from pycsi.model.ids import node_of
from pycsi.model.request import Access, Capability, RecordedRequest


class VolumeType(enum.StrEnum):
    """How a volume is stored: as a directory or as an image (StorageClass parameter `type`)."""

    DIRECTORY = "directory"
    IMAGE = "image"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A publication by ControllerPublishVolume: the node, the capability, and whether read-only."""

    node: str
    capability: Capability
    readonly: bool

    def to_json(self) -> dict[str, Any]:
        return fields_of(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            node=data["node"],
            capability=Capability.from_json(data["capability"]),
            readonly=data["readonly"],
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """The record of a volume.

    `capacity` is in bytes. `reason` says why the type was chosen. `filesystem` is that of an image,
    None for directories and raw block volumes. `enforced`: the capacity is enforced as a limit.
    `thick`: all blocks are allocated in advance. `project` is the project id of a directory limited
    by project quota. `handle` is the orchestrator's id of an inline volume, None for all others;
    `targets` are all target paths at which an inline volume was ever to be published. `settings`
    are the current mutable parameters. `created` is in seconds since the epoch. `origin` is the
    context that it was created with, if it was moved to another pool since. `encryption` is "luks2"
    for an encrypted image, None for all others.
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
    request: RecordedRequest
    settings: Mapping[str, str]
    created: float
    project: int | None = None
    handle: str | None = None
    targets: tuple[str, ...] = ()
    attachment: Attachment | None = None
    origin: Mapping[str, str] | None = None
    encryption: str | None = None

    @property
    def header(self) -> int:
        """The bytes that an encrypted image has before its data; 0 for others."""
        return luks.HEADER if self.encryption else 0

    @property
    def held(self) -> int:
        """The bytes of the pool that are promised to this volume: those of its image, if any."""
        return self.capacity + self.header

    def is_same(self, other: "Volume") -> bool:
        """Tell whether it is the volume `other`, and no earlier or later one of the same name."""
        mine = self.id, self.pool_uuid, self.created
        return mine == (other.id, other.pool_uuid, other.created)

    @property
    def context(self) -> dict[str, str]:
        """The volume context. It never changes, and is not needed to find the volume."""
        if self.origin:
            return dict(self.origin)
        return {
            "pool": self.pool,
            "poolUUID": self.pool_uuid,
            "type": self.type.value,
            "reason": self.reason,
        }

    def to_json(self) -> dict[str, Any]:
        # The attachment has a record of its own, which goes without a free block on the disk.
        plain = fields_of(self) | {"attachment": None}
        if not self.targets:
            del plain["targets"]  # older versions do not know the key
        for key in ("origin", "encryption"):
            if not plain[key]:
                del plain[key]
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
            request=RecordedRequest.from_json(fields.pop("request")),
            attachment=None if attachment is None else Attachment.from_json(attachment),
            **fields,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The record of a snapshot.

    `volume` is the source volume's record at the time of the snapshot. `held` is the most bytes of
    the pool that the snapshot can occupy; it never changes, since a snapshot does not. `group` is
    the id of the group snapshot to which this one belongs. `created` is the point in time of the
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
        """The least capacity in bytes of a volume restored from this snapshot."""
        return self.volume.capacity

    @property
    def filesystem(self) -> str | None:
        """The filesystem on the source volume's image; None as in `Volume`."""
        return self.volume.filesystem

    def to_json(self) -> dict[str, Any]:
        return fields_of(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        fields = dict(data)
        return cls(volume=Volume.from_json(fields.pop("volume")), **fields)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The record of a group snapshot, or of this node's part of one over several nodes.

    `members` maps the ids of its snapshots to the UUIDs of their pools. `sources` are the ids of
    the source volumes, in the order of the request. `created` is in seconds since the epoch.

    A part has only this node's `members`, but all `sources`. `attempt` tells the takes of a group
    over several nodes apart, and is None for a group on one node. A part that is `prepared` is
    durable, but does not exist for anybody until it is committed.
    """

    id: str
    name: str
    sources: tuple[str, ...]
    members: Mapping[str, str]
    parameters: Mapping[str, str]
    created: float
    attempt: str | None = None
    prepared: bool = False

    @property
    def at_coordinator(self) -> bool:
        """Whether this node coordinates the group: its record decides whether the group exists."""
        return node_of(self.id) == node_of(next(iter(self.members)))

    def to_json(self) -> dict[str, Any]:
        plain = fields_of(self)
        if self.attempt is None:
            del plain["attempt"], plain["prepared"]  # older versions do not know the keys
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        fields = dict(data)
        return cls(sources=tuple(fields.pop("sources")), **fields)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """A volume's usage in bytes, and in inodes where its filesystem counts them."""

    total: int
    used: int | None = None
    available: int | None = None
    inodes: int | None = None
    inodes_used: int | None = None
    inodes_free: int | None = None
