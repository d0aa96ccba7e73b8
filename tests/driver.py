"""A real driver process for tests, and the requests that most tests send."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc

MIB = 1024 * 1024
GIB = 1024 * MIB
NODE = "node-1"

Mode = csi.VolumeCapability.AccessMode


def mount_capability(
    fs_type: str = "",
    mode: csi.VolumeCapability.AccessMode.Mode = Mode.SINGLE_NODE_MULTI_WRITER,
    flags: Sequence[str] = (),
) -> csi.VolumeCapability:
    return csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(fs_type=fs_type, mount_flags=flags),
        access_mode=Mode(mode=mode),
    )


def block_capability(
    mode: csi.VolumeCapability.AccessMode.Mode = Mode.SINGLE_NODE_MULTI_WRITER,
) -> csi.VolumeCapability:
    return csi.VolumeCapability(
        block=csi.VolumeCapability.BlockVolume(), access_mode=Mode(mode=mode)
    )


def from_snapshot(snapshot_id: str) -> csi.VolumeContentSource:
    kind = csi.VolumeContentSource
    return kind(snapshot=kind.SnapshotSource(snapshot_id=snapshot_id))


def from_volume(volume_id: str) -> csi.VolumeContentSource:
    kind = csi.VolumeContentSource
    return kind(volume=kind.VolumeSource(volume_id=volume_id))


@contextlib.contextmanager
def refused(code: grpc.StatusCode, *words: str) -> Iterator[None]:
    """Expect an RPC to fail with `code` and a message that holds all `words`."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error: Any = caught.value
    assert error.code() is code, f"{error.code()}: {error.details()}"
    assert error.details(), "a status message must not be empty"
    for word in words:
        assert word in error.details()


AS_ROOT = () if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--mount")
"""The command prefix that lets a driver mount: none for root, else a user namespace."""


@dataclasses.dataclass
class Driver:
    """A process that runs `pycsi serve`, and requests to it; `with` starts and stops the process.

    `folder` has its socket and log; `pools` are values of `--pool`, `options` are further options.
    `environment` is added to that of this process, and `wrapper` is put before the command.
    """

    folder: Path
    pools: Sequence[str]
    options: Sequence[str] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    wrapper: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "csi.sock"

    @property
    def log_file(self) -> Path:
        return self.folder / "driver.log"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start the process without waiting until it is ready."""
        self.folder.mkdir(exist_ok=True)
        command = [
            *AS_ROOT,
            *self.wrapper,
            sys.executable,
            "-m",
            "pycsi",
            "serve",
            "--endpoint",
            f"unix://{self.socket}",
        ]
        command += ["--node-id", NODE, *(f"--pool={pool}" for pool in self.pools), *self.options]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=log, env=os.environ | self.environment
            )
        self.channel = grpc.insecure_channel(
            f"unix://{self.socket}",
            options=[
                ("grpc.default_authority", "localhost"),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 100),
            ],
        )
        self.identity = csi_pb2_grpc.IdentityStub(self.channel)  # type: ignore[no-untyped-call]
        self.controller = csi_pb2_grpc.ControllerStub(self.channel)  # type: ignore[no-untyped-call]
        self.node = csi_pb2_grpc.NodeStub(self.channel)  # type: ignore[no-untyped-call]
        self.group = csi_pb2_grpc.GroupControllerStub(self.channel)  # type: ignore[no-untyped-call]
        self.metadata = csi_pb2_grpc.SnapshotMetadataStub(self.channel)  # type: ignore[no-untyped-call]

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            with contextlib.suppress(grpc.RpcError):
                if self.identity.Probe(
                    csi.ProbeRequest(), wait_for_ready=True, timeout=5
                ).ready.value:
                    return
            time.sleep(0.02)
        pytest.fail(f"the driver did not become ready:\n{self.log}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process with the signal `number`, and return its exit status."""
        assert self.process is not None
        self.channel.close()
        self.process.send_signal(number)
        return self.process.wait(60)

    @property
    def folders(self) -> list[Path]:
        """The directories of the pools."""
        return [Path(pool.partition("=")[2].partition(",")[0]) for pool in self.pools]

    def reaped(self) -> None:
        """Wait until the driver has freed all deleted volumes and snapshots in the background."""
        deadline = time.monotonic() + 30
        # Looks twice, since an entry renamed during a listing may appear under neither name.
        while left := self._unreaped() or self._unreaped():
            assert time.monotonic() < deadline, f"not reaped: {left}"
            time.sleep(0.01)

    def _unreaped(self) -> list[Path]:
        return [
            entry
            for folder in self.folders
            for entry in (folder / "trash").glob("*")
            if ".kept." not in entry.name or entry.name.startswith(".")
        ]

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    # Requests

    def create(
        self,
        name: str,
        size: int | None = 64 * MIB,
        *,
        limit: int = 0,
        capability: csi.VolumeCapability | None = None,
        parameters: dict[str, str] | None = None,
        source: csi.VolumeContentSource | None = None,
        secrets: Mapping[str, str] | None = None,
        **more: str,
    ) -> csi.Volume:
        request = csi.CreateVolumeRequest(
            name=name,
            secrets=secrets,
            volume_capabilities=[capability or mount_capability()],
            parameters={**(parameters or {}), **more},
            volume_content_source=source,
        )
        if size is not None:
            request.capacity_range.CopyFrom(
                csi.CapacityRange(required_bytes=size, limit_bytes=limit)
            )
        volume: csi.Volume = self.controller.CreateVolume(request).volume
        return volume

    def snapshot(self, name: str, volume_id: str, **parameters: str) -> csi.Snapshot:
        snapshot: csi.Snapshot = self.controller.CreateSnapshot(
            csi.CreateSnapshotRequest(name=name, source_volume_id=volume_id, parameters=parameters)
        ).snapshot
        return snapshot

    def delete_snapshot(self, snapshot_id: str) -> None:
        self.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=snapshot_id))

    def snapshots(self, source_volume_id: str = "", snapshot_id: str = "") -> list[csi.Snapshot]:
        response = self.controller.ListSnapshots(
            csi.ListSnapshotsRequest(source_volume_id=source_volume_id, snapshot_id=snapshot_id)
        )
        return [entry.snapshot for entry in response.entries]

    def snapshot_group(self, name: str, *volume_ids: str) -> csi.VolumeGroupSnapshot:
        group: csi.VolumeGroupSnapshot = self.group.CreateVolumeGroupSnapshot(
            csi.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=volume_ids)
        ).group_snapshot
        return group

    def members(self, group_id: str) -> list[csi.Snapshot]:
        """Return the listed snapshots that belong to this group."""
        return [item for item in self.snapshots() if item.group_snapshot_id == group_id]

    def delete_group(self, group_id: str, *members: str) -> None:
        self.group.DeleteVolumeGroupSnapshot(
            csi.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group_id, snapshot_ids=members)
        )

    def allocated(self, snapshot_id: str, start: int = 0, most: int = 0) -> list[tuple[int, int]]:
        """Return the offset and length, in bytes, of each range of a snapshot that holds data."""
        request = csi.GetMetadataAllocatedRequest(
            snapshot_id=snapshot_id, starting_offset=start, max_results=most
        )
        return [
            (block.byte_offset, block.size_bytes)
            for message in self.metadata.GetMetadataAllocated(request)
            for block in message.block_metadata
        ]

    def delta(self, base: str, target: str, start: int = 0, most: int = 0) -> list[tuple[int, int]]:
        """Return the offset and length, in bytes, of each range in which two snapshots differ."""
        request = csi.GetMetadataDeltaRequest(
            base_snapshot_id=base,
            target_snapshot_id=target,
            starting_offset=start,
            max_results=most,
        )
        return [
            (block.byte_offset, block.size_bytes)
            for message in self.metadata.GetMetadataDelta(request)
            for block in message.block_metadata
        ]

    def modify(self, volume_id: str, **mutable: str) -> None:
        self.controller.ControllerModifyVolume(
            csi.ControllerModifyVolumeRequest(volume_id=volume_id, mutable_parameters=mutable)
        )

    def condition(self, volume_id: str) -> csi.VolumeCondition:
        response = self.controller.ControllerGetVolume(
            csi.ControllerGetVolumeRequest(volume_id=volume_id)
        )
        condition: csi.VolumeCondition = response.status.volume_condition
        return condition

    def health(self, volume_id: str) -> csi.VolumeHealth:
        """Return a volume's health as the controller tells it."""
        response = self.controller.ControllerGetVolumeHealth(
            csi.ControllerGetVolumeHealthRequest(volume_id=volume_id)
        )
        health: csi.VolumeHealth = response.volume_health
        return health

    def node_health(
        self, volume_id: str, staging: Path | str = "", target: Path | str = ""
    ) -> csi.VolumeHealth:
        """Return a volume's health as the node tells it."""
        response = self.node.NodeGetVolumeHealth(
            csi.NodeGetVolumeHealthRequest(
                volume_id=volume_id,
                staging_target_path=str(staging),
                volume_publish_path=str(target),
            )
        )
        health: csi.VolumeHealth = response.volume_health
        return health

    def unwell(self) -> list[csi.VolumeHealth]:
        """Return the health of the volumes that are not well."""
        response = self.controller.ControllerListVolumeHealth(
            csi.ControllerListVolumeHealthRequest()
        )
        return list(response.entries)

    def storage_health(self) -> list[csi.NodeGetStorageHealthResponse.StorageBackendHealth]:
        """Return what is wrong with the pools."""
        response = self.node.NodeGetStorageHealth(csi.NodeGetStorageHealthRequest())
        return list(response.backend_health)

    def delete(self, volume_id: str) -> None:
        self.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume_id))

    def stage(
        self,
        volume_id: str,
        path: Path,
        capability: csi.VolumeCapability | None = None,
        context: dict[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        path.mkdir(exist_ok=True)
        self.node.NodeStageVolume(
            csi.NodeStageVolumeRequest(
                secrets=secrets,
                volume_id=volume_id,
                staging_target_path=str(path),
                volume_capability=capability or mount_capability(),
                volume_context=context or {},
            )
        )

    def unstage(self, volume_id: str, path: Path) -> None:
        self.node.NodeUnstageVolume(
            csi.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(path))
        )

    def publish(
        self,
        volume_id: str,
        staging: Path | None,
        target: Path,
        capability: csi.VolumeCapability | None = None,
        *,
        readonly: bool = False,
        context: dict[str, str] | None = None,
    ) -> None:
        self.node.NodePublishVolume(
            csi.NodePublishVolumeRequest(
                volume_id=volume_id,
                staging_target_path=str(staging) if staging else "",
                target_path=str(target),
                volume_capability=capability or mount_capability(),
                readonly=readonly,
                volume_context=context or {},
            )
        )

    def unpublish(self, volume_id: str, target: Path) -> None:
        self.node.NodeUnpublishVolume(
            csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        )

    def expand(
        self, volume_id: str, size: int, limit: int = 0
    ) -> csi.ControllerExpandVolumeResponse:
        response: csi.ControllerExpandVolumeResponse = self.controller.ControllerExpandVolume(
            csi.ControllerExpandVolumeRequest(
                volume_id=volume_id,
                capacity_range=csi.CapacityRange(required_bytes=size, limit_bytes=limit),
            )
        )
        return response

    def node_expand(self, volume_id: str, path: Path, size: int = 0) -> int:
        request = csi.NodeExpandVolumeRequest(volume_id=volume_id, volume_path=str(path))
        if size:
            request.capacity_range.required_bytes = size
        capacity: int = self.node.NodeExpandVolume(request).capacity_bytes
        return capacity

    def stats(self, volume_id: str, path: Path) -> csi.NodeGetVolumeStatsResponse:
        response: csi.NodeGetVolumeStatsResponse = self.node.NodeGetVolumeStats(
            csi.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(path))
        )
        return response

    def volume_ids(self) -> list[str]:
        response = self.controller.ListVolumes(csi.ListVolumesRequest())
        return [entry.volume.volume_id for entry in response.entries]

    def capacity(self, **parameters: str) -> csi.GetCapacityResponse:
        """Return the reply to GetCapacity once deleted volumes and snapshots are freed."""
        self.reaped()
        response: csi.GetCapacityResponse = self.controller.GetCapacity(
            csi.GetCapacityRequest(parameters=parameters)
        )
        return response

    @contextlib.contextmanager
    def published(
        self,
        volume_id: str,
        folder: Path,
        capability: csi.VolumeCapability | None = None,
        *,
        readonly: bool = False,
        secrets: Mapping[str, str] | None = None,
    ) -> Iterator[Path]:
        """Stage and publish a volume below `folder`; undo both at the end."""
        staging, target = folder / f"staging-{volume_id}", folder / f"target-{volume_id}"
        self.stage(volume_id, staging, capability, secrets=secrets)
        self.publish(volume_id, staging, target, capability, readonly=readonly)
        try:
            yield target
        finally:
            self.unpublish(volume_id, target)
            self.unstage(volume_id, staging)


DriverFactory = Callable[..., Driver]
