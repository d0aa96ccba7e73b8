"""Requests: validation of protobuf messages, and conversion to the driver's own types.

For malformed input every function raises `InvalidArgument` that names the field. The limits are
those of the CSI specification's "Size Limits" and of the fields' own descriptions.
"""

import collections
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from google.protobuf.message import Message

from pycsi.linux import mkfs
from pycsi.model.errors import Aborted, FailedPrecondition, InvalidArgument
from pycsi.model.ids import node_of
from pycsi.model.parameters import ORCHESTRATOR
from pycsi.model.records import VolumeType
from pycsi.model.request import (
    Access,
    Capability,
    CapacityRange,
    Mode,
    NodeRequest,
    RecordedRequest,
    Source,
    SourceKind,
    VolumeRequest,
)
from pycsi.model.size import BLOCK, LARGEST
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import transfers_pb2 as transfers
from pycsi.volumes.importing import Content

LONGEST_STRING = 128
LONGEST_MAP = 4096
_FORBIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_AFTER = ">"
_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_ENCODER = json.JSONEncoder(sort_keys=True)
_MODES = {csi.VolumeCapability.AccessMode.Mode.Value(mode): mode for mode in Mode}


class UnsupportedCapability(InvalidArgument):
    """A well-formed capability that no volume can have in the mode in which the driver runs."""


def require(request: Message, *fields: str) -> None:
    """Raise `InvalidArgument` if one of `fields` is unset or empty."""
    for field in fields:
        value = getattr(request, field)
        if not (request.HasField(field) if isinstance(value, Message) else value):
            raise InvalidArgument(f"{field} is missing")


def name(text: str) -> str:
    """Check and return a name: 1 to 128 bytes of UTF-8 without control characters."""
    if not text:
        raise InvalidArgument("name is missing")
    if len(text.encode()) > LONGEST_STRING:
        raise InvalidArgument(f"name has {len(text.encode())} bytes; {LONGEST_STRING} are allowed")
    if found := _FORBIDDEN.search(text):
        raise InvalidArgument(f"name holds the control character U+{ord(found[0]):04X}; remove it")
    return text


def string_map(value: Mapping[str, str], field: str) -> dict[str, str]:
    """Return the map `field` as a dict; its keys and values may have 4 KiB in all."""
    if not value:
        return {}
    read = {key: value[key] for key in value}  # dict() is slower on a protobuf map
    size = len("".join((*read, *read.values())).encode())
    if size > LONGEST_MAP:
        raise InvalidArgument(f"{field} holds {size} bytes; {LONGEST_MAP} are allowed")
    return read


def capability(
    message: csi.VolumeCapability,
    served: Collection[Mode],
    field: str = "volume_capability",
    refusal: type[InvalidArgument | FailedPrecondition] = UnsupportedCapability,
) -> Capability:
    """Return one volume capability.

    `served` are the access modes that the driver supports in its mode. Another access mode, or a
    volume_mount_group, raises `refusal`.
    """
    access = message.WhichOneof("access_type")
    if access is None:
        raise InvalidArgument(f"{field}: access_type is missing; set mount or block")
    if not message.HasField("access_mode") or not message.access_mode.mode:
        raise InvalidArgument(f"{field}: access_mode is missing")
    mount = message.mount
    flags = tuple(mount.mount_flags)
    text = "".join(flags)
    if len(text.encode()) > LONGEST_MAP:
        raise InvalidArgument(f"{field}: mount_flags hold over {LONGEST_MAP} bytes")
    if "\0" in text:
        raise InvalidArgument(f"{field}: a mount flag holds a NUL byte")
    mode = _MODES.get(message.access_mode.mode)
    if mode is None or mode not in served:
        raise refusal(f"{field}: access mode {_not_served(message.access_mode.mode, served)}")
    if mount.volume_mount_group:
        raise refusal(
            f"{field}: volume_mount_group is not supported; let fsGroup change the volume's group"
        )
    return Capability(
        access=Access(access),
        mode=mode,
        filesystem=mount.fs_type or None,
        mount_flags=flags,
    )


def _not_served(mode: int, served: Collection[Mode]) -> str:
    """Return the name of an access mode, and why it is not served."""
    reason = ": data lies on one node, and only mode single-node has no other"
    known = f"{_MODES[mode]}{reason}" if mode in _MODES else str(mode)
    return f"{known}; use one of {', '.join(item for item in Mode if item in served)}"


def capabilities(
    messages: Iterable[csi.VolumeCapability], served: Collection[Mode]
) -> tuple[Capability, ...]:
    """Return the volume capabilities of a list that may be empty; errors as in `capability`."""
    return tuple(
        capability(message, served, f"volume_capabilities[{number}]")
        for number, message in enumerate(messages)
    )


def capacity_range(message: csi.CapacityRange) -> CapacityRange:
    """Return a capacity range in bytes.

    At least one bound must be set, none may be negative, and the limit may not be below the
    required size.
    """
    least, limit = message.required_bytes, message.limit_bytes
    if least < 0 or limit < 0:
        raise InvalidArgument(
            f"capacity_range: {min(least, limit)} bytes is negative; use a positive size"
        )
    if not least and not limit:
        raise InvalidArgument("capacity_range: set required_bytes, limit_bytes or both")
    if limit and limit < least:
        raise InvalidArgument(
            f"capacity_range: limit_bytes {limit} is below required_bytes {least}; raise the limit"
        )
    return CapacityRange(required=least or None, limit=limit or None)


def create_volume(request: csi.CreateVolumeRequest, served: Collection[Mode]) -> VolumeRequest:
    """Return the checked content of a CreateVolume request."""
    checked = name(request.name)
    require(request, "volume_capabilities")
    ranged = request.HasField("capacity_range")
    filled = request.HasField("volume_content_source")
    placed = request.HasField("accessibility_requirements")
    return VolumeRequest(
        name=checked,
        request=RecordedRequest(
            capabilities=capabilities(request.volume_capabilities, served),
            capacity=capacity_range(request.capacity_range) if ranged else None,
            parameters=string_map(request.parameters, "parameters"),
            mutable=string_map(request.mutable_parameters, "mutable_parameters"),
            source=source(request.volume_content_source) if filled else None,
        ),
        topologies=topologies(request.accessibility_requirements) if placed else None,
        secrets=request.secrets,
    )


def content(message: transfers.Content) -> Content:
    """Return what the data of another volume is, as of which one is to be made."""
    size = message.capacity_bytes
    if not 0 < size <= LARGEST or size % BLOCK:
        raise InvalidArgument(f"content: {size} bytes is no size of a volume")
    if message.fs_type not in {"", *mkfs.KINDS} or (message.directory and message.fs_type):
        raise InvalidArgument(f"content: fs_type cannot be {message.fs_type!r}")
    return Content(
        type=VolumeType.DIRECTORY if message.directory else VolumeType.IMAGE,
        filesystem=message.fs_type or None,
        capacity=size,
        thick=message.thick,
        mkfs_options=tuple(message.mkfs_options),
    )


def topologies(requirement: csi.TopologyRequirement) -> tuple[Mapping[str, str], ...]:
    """Return the accepted topologies, each by its segments: see `VolumeRequest`."""
    accepted = requirement.requisite or requirement.preferred
    return tuple(dict(topology.segments) for topology in accepted)


def source(message: csi.VolumeContentSource) -> Source:
    """Return the snapshot or volume that a new volume is filled from."""
    kind = message.WhichOneof("type")
    if kind is None:
        raise InvalidArgument("volume_content_source: set snapshot or volume")
    object_id = message.snapshot.snapshot_id if kind == "snapshot" else message.volume.volume_id
    if not object_id:
        raise InvalidArgument(f"volume_content_source.{kind}.{kind}_id is missing")
    return Source(kind=SourceKind(kind), id=object_id)


def group_sources(volume_ids: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of a group's source volumes, of which none may be empty or repeated."""
    for number, volume_id in enumerate(volume_ids):
        if not volume_id:
            raise InvalidArgument(f"source_volume_ids[{number}] is missing")
    for volume_id, count in collections.Counter(volume_ids).items():
        if count > 1:
            raise InvalidArgument(f"source_volume_ids: {volume_id} is there more than once")
    return tuple(volume_ids)


def stage(request: csi.NodeStageVolumeRequest, served: Collection[Mode]) -> NodeRequest:
    """Return the checked content of a NodeStageVolume request."""
    require(request, "volume_id", "staging_target_path", "volume_capability")
    return NodeRequest(
        volume_id=request.volume_id,
        path=request.staging_target_path,
        capability=capability(request.volume_capability, served, refusal=FailedPrecondition),
        context=dict(request.volume_context),
        arguments=_digest(request),
        secrets=request.secrets,
    )


def publish(request: csi.NodePublishVolumeRequest, served: Collection[Mode]) -> NodeRequest:
    """Return the checked content of a NodePublishVolume request."""
    require(request, "volume_id", "target_path", "volume_capability")
    staged = os.path.normpath(request.staging_target_path)
    context = dict(request.volume_context)
    return NodeRequest(
        volume_id=request.volume_id,
        path=request.target_path,
        capability=capability(request.volume_capability, served, refusal=FailedPrecondition),
        context=context,
        arguments=_digest(request, readonly=request.readonly, staged=staged),
        readonly=request.readonly,
        inline=context.get(_EPHEMERAL) == "true",
        staging_path=request.staging_target_path,
    )


def _digest(
    request: csi.NodeStageVolumeRequest | csi.NodePublishVolumeRequest, **more: object
) -> str:
    """Return a digest of the arguments that a retry must repeat, and of `more`.

    These are all but secrets and orchestrator keys.
    """
    wanted = request.volume_capability
    published, context = request.publish_context, request.volume_context
    arguments = {
        "access": wanted.WhichOneof("access_type"),
        "mode": wanted.access_mode.mode,
        "filesystem": wanted.mount.fs_type,
        "flags": list(wanted.mount.mount_flags),
        "publish_context": {key: published[key] for key in published},
        "volume_context": {
            key: context[key] for key in context if not key.startswith(ORCHESTRATOR)
        },
        **more,
    }
    return hashlib.sha256(_ENCODER.encode(arguments).encode()).hexdigest()


def page(max_entries: int, starting_token: str) -> tuple[int, str]:
    """Return a page's number of entries (0: no limit) and the id after which it begins.

    The id is "" for the first page. A token is a position in the order of ids, so it stays valid
    when entries are deleted. A token that this driver did not issue raises `Aborted`.
    """
    if max_entries < 0:
        raise InvalidArgument(f"max_entries is {max_entries}; it must not be negative")
    after = starting_token.removeprefix(_AFTER)
    if starting_token and (after == starting_token or node_of(after) is None):
        raise Aborted("starting_token is not one that this driver gave; start the listing again")
    return max_entries, after


def token(last_id: str) -> str:
    """Return the token of the page that begins after `last_id`; "" if `last_id` is ""."""
    return _AFTER + last_id if last_id else ""
