"""A volume from the orchestrator's side: its id, and the RPCs for it."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from pycsi.cli.demo.client import Client
from pycsi.cli.demo.scratch import DemoPool
from pycsi.model.records import Usage
from pycsi.model.size import show
from pycsi.proto import csi_pb2 as csi

EPHEMERAL = "csi.storage.k8s.io/ephemeral"

_MOMENT = 0.1
"""Seconds between two looks at the available capacity, in which background freeing shows."""

_CHANGES = 50
"""Maximum number of such looks, since other users of the disk may never pause."""

_MODE = csi.VolumeCapability.AccessMode.SINGLE_NODE_MULTI_WRITER


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The volume that a stage shows. `size` and `larger` are in bytes, before and after expansion.

    `filesystem` is that of an image. `enforced`: the size is enforced as a limit. `online`: the
    volume is expanded while it is published, otherwise while it is not.
    """

    name: str
    made_of: str
    pool: DemoPool
    size: int
    larger: int
    parameters: Mapping[str, str]
    filesystem: str | None = None
    block: bool = False
    enforced: bool = True
    online: bool = True

    @property
    def capability(self) -> csi.VolumeCapability:
        mode = csi.VolumeCapability.AccessMode(mode=_MODE)
        if self.block:
            block = csi.VolumeCapability.BlockVolume()
            return csi.VolumeCapability(block=block, access_mode=mode)
        mounted = csi.VolumeCapability.MountVolume(fs_type=self.filesystem or "")
        return csi.VolumeCapability(mount=mounted, access_mode=mode)


class Volume:
    """A volume that is staged and published below `folder`; `source` is its content source."""

    def __init__(
        self,
        client: Client,
        plan: Plan,
        folder: Path,
        source: csi.VolumeContentSource | None = None,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.id = ""
        self.client = client
        self._source = source
        self._staging = folder / "staging"
        self._staging.mkdir(parents=True)

    # Controller

    def _create_request(self, size: int) -> csi.CreateVolumeRequest:
        return csi.CreateVolumeRequest(
            name=self.plan.name,
            capacity_range=csi.CapacityRange(required_bytes=size),
            volume_capabilities=[self.plan.capability],
            parameters=self.plan.parameters,
            volume_content_source=self._source,
        )

    def create(self, detail: str = "") -> str:
        request = self._create_request(self.plan.size)
        detail = detail or f"{self.plan.name}, {show(self.plan.size)}"
        response: csi.CreateVolumeResponse = self.client.call("CreateVolume", request, detail)
        self.id = response.volume.volume_id
        return self.id

    def create_with_other_size(self) -> str:
        """Request a larger volume by the same name; return the reason for the refusal."""
        request = self._create_request(self.plan.larger)
        detail = f"{self.plan.name}, {show(self.plan.larger)}"
        return self.client.refused("CreateVolume", request, "ALREADY_EXISTS", detail)

    def expand(self) -> int:
        request = csi.ControllerExpandVolumeRequest(
            volume_id=self.id, capacity_range=csi.CapacityRange(required_bytes=self.plan.larger)
        )
        response: csi.ControllerExpandVolumeResponse = self.client.call(
            "ControllerExpandVolume", request, f"to {show(self.plan.larger)}"
        )
        return response.capacity_bytes

    def modify(self, **mutable: str) -> None:
        """Change mutable parameters of the volume."""
        request = csi.ControllerModifyVolumeRequest(volume_id=self.id, mutable_parameters=mutable)
        detail = ", ".join(f"{key}: {value}" for key, value in mutable.items())
        self.client.call("ControllerModifyVolume", request, detail)

    def delete(self) -> None:
        request = csi.DeleteVolumeRequest(volume_id=self.id)
        self.client.call("DeleteVolume", request, self.plan.name)

    def refuse_deleted(self) -> None:
        """Request the deleted volume, which must be NOT_FOUND."""
        request = csi.ControllerGetVolumeRequest(volume_id=self.id)
        self.client.refused("ControllerGetVolume", request, "NOT_FOUND", self.plan.name)

    def another(self, name: str, source: csi.VolumeContentSource | None = None) -> "Volume":
        """Return a volume like this one, with another name, which is yet to be created."""
        name = f"{self.plan.name}-{name}"
        plan = dataclasses.replace(self.plan, name=name)
        return Volume(self.client, plan, self.folder.with_name(name), source)

    def restored(self, name: str, snapshot: csi.Snapshot) -> "Volume":
        """Create and return a volume from a snapshot."""
        source = csi.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.snapshot_id)
        made = self.another(name, csi.VolumeContentSource(snapshot=source))
        made.create(f"{name}, from {snapshot.snapshot_id.partition('@')[0]}")
        return made

    def cloned(self, name: str) -> "Volume":
        """Create and return a clone of this volume."""
        source = csi.VolumeContentSource.VolumeSource(volume_id=self.id)
        made = self.another(name, csi.VolumeContentSource(volume=source))
        made.create(f"{name}, from {self.plan.name}")
        return made

    def capacity(self) -> int:
        """Return the pool's available capacity in bytes for volumes of this kind (GetCapacity)."""
        request = csi.GetCapacityRequest(
            parameters=self.plan.parameters, volume_capabilities=[self.plan.capability]
        )
        response: csi.GetCapacityResponse = self.client.call(
            "GetCapacity", request, f"pool {self.plan.pool.name}"
        )
        return response.available_capacity

    def settled_capacity(self) -> int:
        """Return the available capacity in bytes once it is stable.

        The kernel frees deleted data in the background, so the capacity may still be growing.
        """
        known = self.capacity()
        for _ in range(_CHANGES):
            time.sleep(_MOMENT)
            before, known = known, self.capacity()
            if known == before:
                break
        return known

    # Node

    def stage(self) -> None:
        request = csi.NodeStageVolumeRequest(
            volume_id=self.id,
            staging_target_path=str(self._staging),
            volume_capability=self.plan.capability,
        )
        self.client.call("NodeStageVolume", request)

    def unstage(self) -> None:
        request = csi.NodeUnstageVolumeRequest(
            volume_id=self.id, staging_target_path=str(self._staging)
        )
        self.client.call("NodeUnstageVolume", request)

    def use(self) -> Path:
        """Stage the volume and publish it for one pod; return the target path."""
        self.stage()
        return self.publish("pod-1")

    def withdraw(self, target: Path) -> None:
        """Unpublish the volume from its last target path, and unstage it."""
        self.unpublish(target)
        self.unstage()

    def publish(self, name: str, *, readonly: bool = False) -> Path:
        """Publish the volume for the pod `name`; return the target path."""
        target = self.folder / f"target-{name}"
        request = csi.NodePublishVolumeRequest(
            volume_id=self.id,
            staging_target_path=str(self._staging),
            target_path=str(target),
            volume_capability=self.plan.capability,
            readonly=readonly,
        )
        detail = f"for {name}{', read-only' if readonly else ''}"
        self.client.call("NodePublishVolume", request, detail)
        return target

    def publish_inline(self, handle: str, size: str) -> Path:
        """Publish an inline volume, which is neither created nor staged before.

        `handle` is its id, and `size` its size, such as `32Mi`. Return the target path.
        """
        self.id = handle
        target = self.folder / "target-pod"
        request = csi.NodePublishVolumeRequest(
            volume_id=handle,
            target_path=str(target),
            volume_capability=self.plan.capability,
            volume_context={EPHEMERAL: "true", "size": size, **self.plan.parameters},
        )
        self.client.call("NodePublishVolume", request, f"inline, size: {size}")
        return target

    def unpublish(self, target: Path) -> None:
        request = csi.NodeUnpublishVolumeRequest(volume_id=self.id, target_path=str(target))
        self.client.call("NodeUnpublishVolume", request, target.name.replace("target-", "for "))

    def grow(self, target: Path) -> int:
        """Call NodeExpandVolume for the target path; return the capacity in bytes."""
        request = csi.NodeExpandVolumeRequest(volume_id=self.id, volume_path=str(target))
        response: csi.NodeExpandVolumeResponse = self.client.call("NodeExpandVolume", request)
        return response.capacity_bytes

    def stats(self, target: Path) -> Usage:
        request = csi.NodeGetVolumeStatsRequest(volume_id=self.id, volume_path=str(target))
        response: csi.NodeGetVolumeStatsResponse = self.client.call("NodeGetVolumeStats", request)
        bytes_ = next(item for item in response.usage if item.unit == csi.VolumeUsage.BYTES)
        return Usage(total=bytes_.total, used=bytes_.used, available=bytes_.available)
