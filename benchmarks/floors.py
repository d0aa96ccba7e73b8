"""The floors, the least that a driver's work can take: a bare gRPC server, system calls, mkfs."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from pycsi.linux import losetup, mount
from pycsi.linux.descriptor import opened
from pycsi.linux.libc import StrPath
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc

_RECORD = b"x" * 600
"""Data of the length of a volume's record."""

_IMAGE = 64 << 20


class _Identity(csi_pb2_grpc.IdentityServicer):
    def Probe(self, request: csi.ProbeRequest, context: grpc.ServicerContext) -> csi.ProbeResponse:
        return csi.ProbeResponse(ready=BoolValue(value=True))


class _Controller(csi_pb2_grpc.ControllerServicer):
    def __init__(self, folder: Path) -> None:
        self._floor = Floor(folder)

    def CreateVolume(
        self, request: csi.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi.CreateVolumeResponse:
        self._floor.make(request.name)
        return csi.CreateVolumeResponse(
            volume=csi.Volume(volume_id=request.name, volume_context=request.parameters)
        )


class _Node(csi_pb2_grpc.NodeServicer):
    def __init__(self, folder: Path) -> None:
        self._directory, self._image = _make_source(folder), _make_image(folder)

    def NodeStageVolume(
        self, request: csi.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeStageVolumeResponse:
        if request.volume_context["type"] == "image":
            _mount_image(self._image, request.staging_target_path)
        else:
            mount.bind(self._directory, request.staging_target_path)
        return csi.NodeStageVolumeResponse()

    def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodePublishVolumeResponse:
        os.mkdir(request.target_path)  # noqa: PTH102
        mount.bind(request.staging_target_path, request.target_path)
        return csi.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnpublishVolumeResponse:
        mount.umount2(request.target_path)
        os.rmdir(request.target_path)  # noqa: PTH106
        return csi.NodeUnpublishVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnstageVolumeResponse:
        mount.umount2(request.staging_target_path)
        return csi.NodeUnstageVolumeResponse()


@contextlib.contextmanager
def bare_server(disk: Path) -> Iterator[str]:
    """Run a gRPC server that checks and remembers nothing; yield its endpoint.

    It answers Probe at once, CreateVolume after making a directory on `disk` durably, and the RPCs
    that stage, publish, unpublish and unstage after the bare system calls. These always mount the
    same directory or the same image.
    """
    with tempfile.TemporaryDirectory(prefix="pycsi-bare-") as folder:
        endpoint = f"unix://{folder}/csi.sock"
        command = [sys.executable, __file__, endpoint, str(disk / "bare")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()
            try:
                yield endpoint
            finally:
                server.terminate()


def _serve(endpoint: str, folder: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(256))
    csi_pb2_grpc.add_IdentityServicer_to_server(_Identity(), server)  # type: ignore[no-untyped-call]
    csi_pb2_grpc.add_ControllerServicer_to_server(_Controller(folder), server)  # type: ignore[no-untyped-call]
    csi_pb2_grpc.add_NodeServicer_to_server(_Node(folder), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(endpoint)
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


class Floor:
    """Makes directories in `folder` durably, each with a record in it, and does nothing else."""

    def __init__(self, folder: Path) -> None:
        self._making, self._made = folder / "making", folder / "made"
        self._making.mkdir(parents=True)
        self._made.mkdir()

    def make(self, name: str) -> None:
        """Make one directory: mkdir, write, fsync, rename, and fsync of the parent."""
        building = f"{self._making}/{name}"
        os.mkdir(building)  # noqa: PTH102  (the bare call)
        with opened(f"{building}/record", os.O_WRONLY | os.O_CREAT) as fd:
            os.write(fd, _RECORD)
            os.fsync(fd)
        os.rename(building, f"{self._made}/{name}")  # noqa: PTH104
        with opened(self._made, os.O_DIRECTORY) as fd:
            os.fsync(fd)


def mkfs(folder: Path, size: int, count: int) -> list[float]:
    """Make `count` sparse files of `size` bytes, each with an ext4; return the seconds for each."""
    times = []
    folder.mkdir()
    for number in range(count):
        image = folder / f"{number}.img"
        begin = time.perf_counter()
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        times.append(time.perf_counter() - begin)
    shutil.rmtree(folder)
    return times


def _make_source(folder: Path) -> Path:
    """Make a directory to bind-mount."""
    source = folder / "source"
    source.mkdir()
    return source


def _make_image(folder: Path) -> Path:
    """Make an ext4 image to mount."""
    image = folder / "cycle.img"
    with image.open("wb") as file:
        file.truncate(_IMAGE)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    return image


def bind_cycle(folder: Path, disk: Path, count: int) -> list[float]:
    """Stage and publish a directory on `disk` by bind mounts, and undo both, `count` times.

    Return the seconds for each cycle, which includes making the target directory.
    """
    source = _make_source(disk)
    times = _cycle(folder, lambda staging: mount.bind(source, staging), count)
    source.rmdir()
    return times


def image_cycle(folder: Path, disk: Path, count: int) -> list[float]:
    """Do the same as `bind_cycle` with an ext4 image on `disk`, mounted through a loop device."""
    image = _make_image(disk)
    times = _cycle(folder, lambda staging: _mount_image(image, staging), count)
    image.unlink()
    return times


def _mount_image(image: Path, staging: StrPath) -> None:
    with losetup.attach(image, autoclear=True) as device:
        mount.mount("ext4", device.path, staging)


def _cycle(folder: Path, stage: Callable[[Path], None], count: int) -> list[float]:
    staging, target = folder / "staging", folder / "target"
    staging.mkdir(parents=True)
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        stage(staging)
        target.mkdir()
        mount.bind(staging, target)
        mount.umount2(target)
        target.rmdir()
        mount.umount2(staging)
        times.append(time.perf_counter() - begin)
    shutil.rmtree(folder)
    return times


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
