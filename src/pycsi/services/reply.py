"""Replies: conversion of volumes, snapshots and measurements to protobuf messages."""

from collections.abc import Iterable, Mapping
from typing import NewType, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import Int64Value

from pycsi import __version__
from pycsi.model.health import Fault, Status
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Group, Snapshot, Usage, Volume, VolumeType
from pycsi.model.request import Access, Capability, Source, SourceKind
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import transfers_pb2 as transfers
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.provisioning import Offer

Page = TypeVar(
    "Page",
    csi.ListVolumesResponse,
    csi.ListSnapshotsResponse,
    csi.ControllerListVolumeHealthResponse,
)

Encoded = NewType("Encoded", bytes)
"""An encoded reply, ready to be sent."""

LARGEST_REPLY = 4 * 1024 * 1024 - 1024
"""Most bytes of entries in one reply: gRPC clients accept messages of up to 4 MiB by default."""

_VOLUME_STATUS = {
    Status.DEGRADED: csi.DEGRADED,
    Status.INACCESSIBLE: csi.INACCESSIBLE,
    Status.DATA_LOSS: csi.DATA_LOSS,
}
_STORAGE_STATUS = {
    Status.DEGRADED: csi.STORAGE_DEGRADED,
    Status.INACCESSIBLE: csi.STORAGE_UNREACHABLE,
    Status.DATA_LOSS: csi.STORAGE_UNREACHABLE,
}


def plugin_info(driver_name: str, manifest: Mapping[str, str]) -> csi.GetPluginInfoResponse:
    """Return the driver's name and version, and what `manifest` says about the process."""
    return csi.GetPluginInfoResponse(
        name=driver_name, vendor_version=__version__, manifest=manifest
    )


def plugin_capabilities(found: DriverCapabilities) -> csi.GetPluginCapabilitiesResponse:
    """Return the capabilities of the plugin."""
    kind = csi.PluginCapability
    services = [kind(service=kind.Service(type=item)) for item in found.plugin]
    expansions = [
        kind(volume_expansion=kind.VolumeExpansion(type=item)) for item in found.expansion
    ]
    return csi.GetPluginCapabilitiesResponse(capabilities=[*services, *expansions])


def controller_capabilities(found: DriverCapabilities) -> csi.ControllerGetCapabilitiesResponse:
    """Return the capabilities of the Controller service."""
    kind = csi.ControllerServiceCapability
    rpcs = [kind.RPC(type=item) for item in found.controller]
    return csi.ControllerGetCapabilitiesResponse(capabilities=[kind(rpc=rpc) for rpc in rpcs])


def group_controller_capabilities() -> csi.GroupControllerGetCapabilitiesResponse:
    """Return the capabilities of the GroupController service."""
    kind = csi.GroupControllerServiceCapability
    rpc = kind.RPC(type=kind.RPC.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT)
    return csi.GroupControllerGetCapabilitiesResponse(capabilities=[kind(rpc=rpc)])


def page(kind: type[Page], entries: Iterable[tuple[str, bytes]], size: int) -> Page:
    """Return the page that `encoded_page` makes, as a message."""
    return kind.FromString(encoded_page(kind, entries, size))


def encoded_page(kind: type[Page], entries: Iterable[tuple[str, bytes]], size: int) -> Encoded:
    """Return a reply with the first `size` entries; 0 means as many as fit into one message.

    Each entry is an id and a reply that holds this entry alone, encoded. Concatenated, such replies
    are the encoding of one reply with all the entries (Protocol Buffers encoding, "Last One Wins").
    """
    shown: list[bytes] = []
    last, room = "", LARGEST_REPLY
    for object_id, entry in entries:
        room -= len(entry)
        if shown and (len(shown) == size or room < 0):
            break
        shown.append(entry)
        last = object_id
    else:
        last = ""
    shown.append(kind(next_token=read.token(last)).SerializeToString())
    return Encoded(b"".join(shown))


def volume(found: Volume, node: NodeInfo) -> csi.Volume:
    """Return a volume on `node`, with its capacity in bytes, topology and content source."""
    return csi.Volume(
        volume_id=found.id,
        capacity_bytes=found.capacity,
        volume_context=found.context,
        accessible_topology=[csi.Topology(segments=node.segments)],
        content_source=None if found.request.source is None else _source(found.request.source),
    )


def description(found: Volume, node: NodeInfo) -> transfers.Description:
    """Return a volume on `node`, and what another one has to be to hold its data."""
    return transfers.Description(
        volume=volume(found, node),
        request=csi.CreateVolumeRequest(
            name=found.name,
            capacity_range=csi.CapacityRange(required_bytes=found.capacity),
            volume_capabilities=map(_capability, found.request.capabilities),
            parameters=found.request.parameters,
            mutable_parameters=found.settings,
        ),
        content=transfers.Content(
            directory=found.type is VolumeType.DIRECTORY,
            fs_type=found.filesystem or "",
            capacity_bytes=found.capacity,
            thick=found.thick,
            mkfs_options=found.mkfs_options,
        ),
    )


def _capability(found: Capability) -> csi.VolumeCapability:
    """Return a capability as a request has it: the inverse of `request.capability`."""
    kind = csi.VolumeCapability
    mode = kind.AccessMode(mode=found.mode.value)
    if found.access is Access.BLOCK:
        return kind(block=kind.BlockVolume(), access_mode=mode)
    mount = kind.MountVolume(fs_type=found.filesystem or "", mount_flags=found.mount_flags)
    return kind(mount=mount, access_mode=mode)


def _source(source: Source) -> csi.VolumeContentSource:
    kind = csi.VolumeContentSource
    if source.kind is SourceKind.SNAPSHOT:
        return kind(snapshot=kind.SnapshotSource(snapshot_id=source.id))
    return kind(volume=kind.VolumeSource(volume_id=source.id))


def _moment(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(int(seconds * 1_000_000_000))
    return moment


def short(message: str) -> str:
    """Return a message cut to the 128 bytes of a string (CSI specification, "Size Limits")."""
    return message.encode()[: read.LONGEST_STRING].decode(errors="ignore")


def capacity(offer: Offer) -> csi.GetCapacityResponse:
    """Return the available capacity and the sizes that a new volume can have, in bytes."""
    return csi.GetCapacityResponse(
        available_capacity=offer.available,
        maximum_volume_size=Int64Value(value=offer.largest),
        minimum_volume_size=Int64Value(value=offer.minimum),
    )


def usage(found: Usage) -> list[csi.VolumeUsage]:
    """Return a volume's usage in bytes, and in inodes where its filesystem counts them."""
    measured = [
        csi.VolumeUsage(
            unit=csi.VolumeUsage.BYTES,
            total=found.total,
            used=found.used,
            available=found.available,
        )
    ]
    if found.inodes:
        measured.append(
            csi.VolumeUsage(
                unit=csi.VolumeUsage.INODES,
                total=found.inodes,
                used=found.inodes_used,
                available=found.inodes_free,
            )
        )
    return measured


def condition(faults: tuple[Fault, ...] | None) -> csi.VolumeCondition:
    """Return a volume's condition, which has one message: that of the worst fault.

    Without a fault it has a message too, for the specification requires one in any case. None
    stands for a volume that could not be examined.
    """
    if faults is None:
        return csi.VolumeCondition(message="not examined: an operation is under way")
    if not faults:
        return csi.VolumeCondition(message="healthy")
    return csi.VolumeCondition(abnormal=True, message=faults[0].message)


def health(volume_id: str, faults: Iterable[Fault]) -> csi.VolumeHealth:
    """Return what is wrong with a volume; no faults mean that it is well."""
    kind = csi.VolumeHealth
    return kind(
        volume_id=volume_id,
        health_statuses=[
            kind.VolumeHealthEntry(
                status=_VOLUME_STATUS[fault.status], reason=fault.reason, message=fault.message
            )
            for fault in faults
        ],
    )


def storage_health(
    faults: Iterable[Fault],
) -> list[csi.NodeGetStorageHealthResponse.StorageBackendHealth]:
    """Return what is wrong with the pools."""
    return [
        csi.NodeGetStorageHealthResponse.StorageBackendHealth(
            status=_STORAGE_STATUS[fault.status], reason=fault.reason, message=fault.message
        )
        for fault in faults
    ]


def snapshot(found: Snapshot, node: NodeInfo | None) -> csi.Snapshot:
    """Return a snapshot on `node`, with its topology; None: without, as before CSI 1.13.

    It is always ready to use: it has a record only once its data is whole.
    """
    return csi.Snapshot(
        snapshot_id=found.id,
        source_volume_id=found.volume.id,
        creation_time=_moment(found.created),
        size_bytes=found.size,
        ready_to_use=True,
        group_snapshot_id=found.group or "",
        accessible_topology=[csi.Topology(segments=node.segments)] if node else None,
    )


def group(found: Group, members: list[Snapshot], node: NodeInfo | None) -> csi.VolumeGroupSnapshot:
    """Return a group snapshot with its member snapshots; `node` as in `snapshot`."""
    return csi.VolumeGroupSnapshot(
        group_snapshot_id=found.id,
        snapshots=[snapshot(member, node) for member in members],
        creation_time=_moment(found.created),
        ready_to_use=True,
    )
