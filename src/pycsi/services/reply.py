"""Domain to protobuf: how volumes and snapshots look to an orchestrator."""

from collections.abc import Iterable
from typing import NewType, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from pycsi.model.records import Group, Snapshot, Volume
from pycsi.model.request import Source, SourceKind
from pycsi.proto import csi_pb2 as csi
from pycsi.services import request as read
from pycsi.volumes.health import Condition

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


def volume(found: Volume, topology: csi.Topology) -> csi.Volume:
    """Return a volume, also with what it was made from."""
    return csi.Volume(
        volume_id=found.id,
        capacity_bytes=found.capacity,
        volume_context=found.context,
        accessible_topology=[topology],
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
