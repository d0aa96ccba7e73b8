"""Making, copying, expanding and deleting volumes with the calls of the Controller service."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycsi.cli.errors import CommandError, MistakesError
from pycsi.cli.standalone.client import Client
from pycsi.cli.standalone.mounts import Mounts
from pycsi.model.encryption import LUKS2
from pycsi.pool.layout import Layout
from pycsi.pool.trash import Fate, entries
from pycsi.proto import csi_pb2 as csi

_PATIENCE = 60.0
"""Seconds that a deletion waits until the space is free, if the driver ends with the command."""


def capability(*, block: bool, fs_type: str = "", flags: Sequence[str] = ()) -> Any:
    """Return the capability of a volume that may be used at several places of this node."""
    kind = csi.VolumeCapability
    mode = kind.AccessMode(mode=kind.AccessMode.SINGLE_NODE_MULTI_WRITER)
    if block:
        return kind(block=kind.BlockVolume(), access_mode=mode)
    return kind(mount=kind.MountVolume(fs_type=fs_type, mount_flags=flags), access_mode=mode)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewVolume:
    """A volume to be made: `size` in bytes, or None for the usual one; a raw one if `block`.

    It is encrypted if there are `secrets`.
    """

    name: str
    size: int | None
    parameters: Mapping[str, str]
    block: bool = False
    fs_type: str = ""
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


def create(client: Client, wanted: NewVolume, source: Any = None) -> str:
    """Create a volume, or find the one that an equal command has created; return its id."""
    if wanted.block and wanted.fs_type:
        raise MistakesError("a raw block volume has no filesystem; leave --fs-type out")
    encrypted = {"encryption": LUKS2} if wanted.secrets else {}
    request = csi.CreateVolumeRequest(
        name=wanted.name,
        volume_capabilities=[capability(block=wanted.block, fs_type=wanted.fs_type)],
        parameters={**wanted.parameters, **encrypted},
        volume_content_source=source,
        secrets=wanted.secrets,
    )
    if wanted.size is not None:
        request.capacity_range.required_bytes = wanted.size
    volume_id: str = client.call("CreateVolume", request).volume.volume_id
    return volume_id


def clone(client: Client, volume: str, wanted: NewVolume) -> str:
    """Create a volume with the content of another one, of its kind; return its id."""
    volume_id = client.id_of(volume)
    found = client.call(
        "ControllerGetVolume", csi.ControllerGetVolumeRequest(volume_id=volume_id)
    ).volume
    kind = csi.VolumeContentSource
    source = kind(volume=kind.VolumeSource(volume_id=volume_id))
    size, block = wanted.size or found.capacity_bytes, is_block(client, volume_id)
    return create(client, dataclasses.replace(wanted, size=size, block=block), source)


def restore(client: Client, snapshot: str, wanted: NewVolume) -> str:
    """Create a volume with the content of a snapshot; return its id."""
    snapshot_id = client.id_of(snapshot)
    found = client.call("GetSnapshot", csi.GetSnapshotRequest(snapshot_id=snapshot_id)).snapshot
    kind = csi.VolumeContentSource
    source = kind(snapshot=kind.SnapshotSource(snapshot_id=snapshot_id))
    size = wanted.size or found.size_bytes
    return create(client, dataclasses.replace(wanted, size=size), source)


def snapshot(client: Client, volume: str, name: str, parameters: Mapping[str, str]) -> str:
    """Take a snapshot of a volume, in use or not; return its id."""
    request = csi.CreateSnapshotRequest(
        name=name, source_volume_id=client.id_of(volume), parameters=parameters
    )
    snapshot_id: str = client.call("CreateSnapshot", request).snapshot.snapshot_id
    return snapshot_id


def expand(client: Client, mounts: Mounts, volume: str, size: int) -> int:
    """Make a volume larger, also while it is mounted; return its size in bytes."""
    volume_id = client.id_of(volume)
    request = csi.ControllerExpandVolumeRequest(
        volume_id=volume_id, capacity_range=csi.CapacityRange(required_bytes=size)
    )
    answer = client.call("ControllerExpandVolume", request)
    staging = mounts.staging(volume_id)
    if answer.node_expansion_required and mounts.of_volume(volume_id):
        client.call(
            "NodeExpandVolume",
            csi.NodeExpandVolumeRequest(
                volume_id=volume_id,
                volume_path=str(mounts.of_volume(volume_id)[0].target),
                staging_target_path=str(staging),
            ),
        )
    capacity: int = answer.capacity_bytes
    return capacity


def delete(client: Client, mounts: Mounts, volume_id: str) -> None:
    """Delete a volume, unless it is mounted; what is not there is deleted already."""
    if there := mounts.of_volume(volume_id):
        raise CommandError(
            f"{volume_id} is mounted at {there[0].target}; first: pycsi unmount {volume_id}"
        )
    client.call("DeleteVolume", csi.DeleteVolumeRequest(volume_id=volume_id))
    _settle(client, volume_id)


def delete_snapshot(client: Client, _: Mounts, snapshot_id: str) -> None:
    """Delete a snapshot; what is not there is deleted already."""
    client.call("DeleteSnapshot", csi.DeleteSnapshotRequest(snapshot_id=snapshot_id))
    _settle(client, snapshot_id)


def _settle(client: Client, object_id: str) -> None:
    """Wait until the space is free, if the driver would end before that."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and any(
        entry.id == object_id and entry.fate is Fate.GONE
        for config in client.pools
        for entry in entries(Layout(Path(config.path)))
    ):
        time.sleep(0.02)


def is_block(client: Client, volume_id: str) -> bool:
    """Tell whether a volume is a raw block volume."""
    request = csi.ValidateVolumeCapabilitiesRequest(
        volume_id=volume_id, volume_capabilities=[capability(block=True)]
    )
    answer = client.call("ValidateVolumeCapabilities", request)
    return bool(answer.confirmed.volume_capabilities)
