"""Domain to protobuf: how volumes and snapshots look to an orchestrator."""

import itertools
from collections.abc import Iterator
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from pycsi import request as read
from pycsi.health import Condition
from pycsi.model import Group, Snapshot, Source, SourceKind, Volume
from pycsi.proto import csi_pb2 as csi

T = TypeVar("T")

_LONGEST_PAGE = 3000
"""Entries, of at most 1 KiB each: most clients take no message of more than 4 MiB."""


def page(items: Iterator[T], size: int) -> tuple[list[T], bool]:
    """Take the first `size` of some items, or for 0 as many as one reply can have.

    Tell whether there are more.
    """
    shown = list(itertools.islice(items, min(size or _LONGEST_PAGE, _LONGEST_PAGE)))
    return shown, next(items, None) is not None


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
