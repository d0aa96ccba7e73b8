"""Snapshots from the orchestrator's side: of one volume, of several, and their changed blocks."""

from collections.abc import Iterable

from pycsi.cli.demo.client import Client
from pycsi.cli.demo.volume import Volume
from pycsi.proto import csi_pb2 as csi

Range = tuple[int, int]
"""A range of bytes: start, and end, which is not included."""


class Snapshots:
    """Makes the RPCs for snapshots and group snapshots."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def take(self, name: str, volume: Volume, detail: str = "") -> csi.Snapshot:
        """Take the snapshot `name` of a volume, or return it if it exists."""
        request = csi.CreateSnapshotRequest(name=name, source_volume_id=volume.id)
        response: csi.CreateSnapshotResponse = self._client.call(
            "CreateSnapshot", request, detail or f"{name}, of {volume.plan.name}"
        )
        return response.snapshot

    def take_other(self, name: str, volume: Volume) -> str:
        """Request a snapshot by the name of another volume's; return the reason for the refusal."""
        request = csi.CreateSnapshotRequest(name=name, source_volume_id=volume.id)
        detail = f"{name}, of {volume.plan.name}"
        return self._client.refused("CreateSnapshot", request, "ALREADY_EXISTS", detail)

    def delete(self, snapshot: csi.Snapshot) -> None:
        request = csi.DeleteSnapshotRequest(snapshot_id=snapshot.snapshot_id)
        self._client.call("DeleteSnapshot", request, _name(snapshot.snapshot_id))

    def delete_member(self, snapshot: csi.Snapshot) -> str:
        """Request the deletion of a group's member alone; return the reason for the refusal."""
        request = csi.DeleteSnapshotRequest(snapshot_id=snapshot.snapshot_id)
        return self._client.refused(
            "DeleteSnapshot", request, "INVALID_ARGUMENT", "a member of the group"
        )

    def listed(self) -> list[csi.Snapshot]:
        """Return all snapshots (ListSnapshots)."""
        response: csi.ListSnapshotsResponse = self._client.call(
            "ListSnapshots", csi.ListSnapshotsRequest()
        )
        return [entry.snapshot for entry in response.entries]

    # Groups

    def take_group(self, name: str, volumes: Iterable[Volume]) -> csi.VolumeGroupSnapshot:
        """Take a group snapshot of volumes, at one point in time."""
        ids = [volume.id for volume in volumes]
        request = csi.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=ids)
        response: csi.CreateVolumeGroupSnapshotResponse = self._client.call(
            "CreateVolumeGroupSnapshot", request, f"{name}, of {len(ids)} volumes"
        )
        return response.group_snapshot

    def delete_group(self, group: csi.VolumeGroupSnapshot) -> None:
        request = csi.DeleteVolumeGroupSnapshotRequest(
            group_snapshot_id=group.group_snapshot_id,
            snapshot_ids=[member.snapshot_id for member in group.snapshots],
        )
        self._client.call("DeleteVolumeGroupSnapshot", request, _name(group.group_snapshot_id))

    # Blocks

    def allocated(self, snapshot: csi.Snapshot) -> list[Range]:
        """Return the ranges of a snapshot that hold data (GetMetadataAllocated)."""
        request = csi.GetMetadataAllocatedRequest(snapshot_id=snapshot.snapshot_id)
        messages: list[csi.GetMetadataAllocatedResponse] = self._client.call(
            "GetMetadataAllocated", request, _name(snapshot.snapshot_id)
        )
        return _ranges(item for message in messages for item in message.block_metadata)

    def changed(self, base: csi.Snapshot, target: csi.Snapshot) -> list[Range]:
        """Return the ranges in which `target` differs from `base` (GetMetadataDelta)."""
        request = csi.GetMetadataDeltaRequest(
            base_snapshot_id=base.snapshot_id, target_snapshot_id=target.snapshot_id
        )
        messages: list[csi.GetMetadataDeltaResponse] = self._client.call(
            "GetMetadataDelta",
            request,
            f"{_name(base.snapshot_id)} to {_name(target.snapshot_id)}",
        )
        return _ranges(item for message in messages for item in message.block_metadata)


def _name(object_id: str) -> str:
    return object_id.partition("@")[0]


def _ranges(blocks: Iterable[csi.BlockMetadata]) -> list[Range]:
    return [(item.byte_offset, item.byte_offset + item.size_bytes) for item in blocks]
