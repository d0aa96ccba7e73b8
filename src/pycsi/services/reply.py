"""Domain to protobuf: how volumes and snapshots look to an orchestrator."""

from collections.abc import Iterable
from typing import NewType, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import Int64Value

from pycsi.model.records import Group, Snapshot, Usage, Volume
from pycsi.model.request import Source, SourceKind
from pycsi.model.topology import NodeInfo
from pycsi.proto import csi_pb2 as csi
from pycsi.services import request as read
from pycsi.volumes.health import Condition
from pycsi.volumes.provisioning import Offer

Page = TypeVar("Page", csi.ListVolumesResponse, csi.ListSnapshotsResponse)

Encoded = NewType("Encoded", bytes)
"""A reply as it is sent."""

_LARGEST = 4 * 1024 * 1024 - 1024
"""Bytes of entries in a reply: most clients take no message of more than 4 MiB."""


def page(kind: type[Page], entries: Iterable[tuple[str, bytes]], size: int) -> Page:
    """Return what `encoded_page` does, as a message."""
    return kind.FromString(encoded_page(kind, entries, size))


def encoded_page(kind: type[Page], entries: Iterable[tuple[str, bytes]], size: int) -> Encoded:
    """Return a reply with the first `size` of some entries, or for 0 as many as it can have.

    Each comes with its id, encoded as a reply that has no other: what such encodings give one after
    the other is the encoding of a reply that has them all.
    """
    shown: list[bytes] = []
    last, room = "", _LARGEST
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


def topology(node: NodeInfo) -> csi.Topology:
    """Return where a node and its volumes are."""
    return csi.Topology(segments=node.segments)


def volume(found: Volume, node: NodeInfo) -> csi.Volume:
    """Return a volume of a node, also with what it was made from."""
    return csi.Volume(
        volume_id=found.id,
        capacity_bytes=found.capacity,
        volume_context=found.context,
        accessible_topology=[topology(node)],
        content_source=None if found.request.source is None else _source(found.request.source),
    )


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
    """Return a message cut to what a string may have."""
    return message.encode()[: read.LONGEST_STRING].decode(errors="ignore")


def capacity(offer: Offer) -> csi.GetCapacityResponse:
    """Return how large volumes can be."""
    return csi.GetCapacityResponse(
        available_capacity=offer.available,
        maximum_volume_size=Int64Value(value=offer.largest),
        minimum_volume_size=Int64Value(value=offer.minimum),
    )


def usage(found: Usage) -> list[csi.VolumeUsage]:
    """Return what a volume holds: bytes, and inodes where its filesystem counts them."""
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


def condition(found: Condition) -> csi.VolumeCondition:
    """Return a volume's condition."""
    return csi.VolumeCondition(abnormal=found.abnormal, message=short(found.message))


def snapshot(found: Snapshot) -> csi.Snapshot:
    """Return a snapshot. It is ready, for it exists."""
    return csi.Snapshot(
        snapshot_id=found.id,
        source_volume_id=found.volume.id,
        creation_time=_moment(found.created),
        size_bytes=found.size,
        ready_to_use=True,
        group_snapshot_id=found.group or "",
    )


def group(found: Group, members: list[Snapshot]) -> csi.VolumeGroupSnapshot:
    """Return a group snapshot with its members."""
    return csi.VolumeGroupSnapshot(
        group_snapshot_id=found.id,
        snapshots=[snapshot(member) for member in members],
        creation_time=_moment(found.created),
        ready_to_use=True,
    )
