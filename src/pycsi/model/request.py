"""Parsed requests of an orchestrator: capabilities, capacity range, content source."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Self


class Access(enum.StrEnum):
    """How a volume is presented: a mounted filesystem or a raw block device."""

    MOUNT = "mount"
    BLOCK = "block"


class Mode(enum.StrEnum):
    """The access modes of the CSI specification (VolumeCapability.AccessMode).

    A volume's data lies on one node, so the multi-node modes are for a driver that serves the only
    node. Each tells whether the volume may be published on several nodes, only for reading, and at
    only one target path.
    """

    SINGLE_NODE_WRITER = "SINGLE_NODE_WRITER"
    SINGLE_NODE_READER_ONLY = "SINGLE_NODE_READER_ONLY"
    SINGLE_NODE_SINGLE_WRITER = "SINGLE_NODE_SINGLE_WRITER"
    SINGLE_NODE_MULTI_WRITER = "SINGLE_NODE_MULTI_WRITER"
    MULTI_NODE_READER_ONLY = "MULTI_NODE_READER_ONLY"
    MULTI_NODE_SINGLE_WRITER = "MULTI_NODE_SINGLE_WRITER"
    MULTI_NODE_MULTI_WRITER = "MULTI_NODE_MULTI_WRITER"

    many_nodes: bool
    readonly: bool
    one_target: bool

    def __init__(self, name: str) -> None:
        self.many_nodes = name.startswith("MULTI_NODE_")
        self.readonly = name.endswith("_READER_ONLY")
        self.one_target = not self.many_nodes and name != "SINGLE_NODE_MULTI_WRITER"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """A volume capability. `mount_flags` may be sensitive, and are never logged or shown.

    `filesystem` is the fs_type; None if the request leaves the choice to the driver.
    """

    access: Access
    mode: Mode
    filesystem: str | None = None
    mount_flags: tuple[str, ...] = ()

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
    """At least `required` and at most `limit` bytes; None for a bound that was not given."""

    required: int | None = None
    limit: int | None = None

    def holds(self, size: int) -> bool:
        """Tell whether `size` bytes lie in the range."""
        return (self.required or 0) <= size and (self.limit is None or size <= self.limit)


class SourceKind(enum.StrEnum):
    """The kinds of content source."""

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
class RecordedRequest:
    """The part of a CreateVolume request that is recorded with the volume.

    A retry is compared with it field by field. `mutable` are the mutable_parameters, which take
    precedence over `parameters`.
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
class VolumeRequest:
    """A CreateVolume request: the volume's name, the part kept in its record, and the topologies.

    `topologies` are the accepted topologies (TopologyRequirement), each by its segments. An empty
    tuple accepts any; None: the request has no requirement. `secrets` are never shown or recorded.
    """

    name: str
    request: RecordedRequest
    topologies: tuple[Mapping[str, str], ...] | None = None
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeRequest:
    """A NodeStageVolume or NodePublishVolume request.

    `path` is the staging path or the target path. `arguments` is a digest of the arguments that a
    retry must repeat. `inline`: the volume is described by `context`, and created when published.
    `staging_path` is where a volume to be published is staged; "" if it is not. `secrets` are never
    shown.
    """

    volume_id: str
    path: str
    capability: Capability
    context: Mapping[str, str]
    arguments: str
    readonly: bool = False
    inline: bool = False
    staging_path: str = ""
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
