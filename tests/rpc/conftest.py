"""Drivers that the tests of a module share, and what only RPC tests send and look at."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import backing_files
from driver import AS_ROOT, MIB, Driver, mount_capability

from pycsi.linux import kernel
from pycsi.proto import csi_pb2 as csi

OK = grpc.StatusCode.OK
TOPOLOGY = "topology.pycsi.storage/node"


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves a mount or a loop device below the temporary directory."""
    ours = str(tmp_path_factory.getbasetemp())
    yield
    left = [item.target for item in kernel.mountinfo() if item.target.startswith(ours)]
    assert not left, f"mounts are left: {left}"
    files = [file for file in backing_files() if file.startswith(ours)]
    assert not files, f"loop devices are left: {files}"


def _serve(factory: pytest.TempPathFactory, *options: str) -> Driver:
    folder = factory.mktemp("shared")
    (folder / "pool").mkdir()
    return Driver(folder / "driver", [f"default={folder / 'pool'}"], options)


def limited_pool(name: str, folder: Path, size: int) -> str:
    """Return the option of a pool that can promise `size` bytes, whatever else fills the disk."""
    facts = os.statvfs(folder)
    assert facts.f_bavail * facts.f_frsize > 2 * size
    return f"{name}={folder},overcommit={(size + 2048) / (facts.f_blocks * facts.f_frsize)}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Return a driver for tests that do not disturb each other."""
    with _serve(tmp_path_factory) as driver:
        yield driver


@pytest.fixture(scope="module")
def attaching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Return a driver that attaches, at most three volumes."""
    options = ("--enable-attach", "--max-volumes-per-node=3")
    with _serve(tmp_path_factory, *options) as driver:
        yield driver


@pytest.fixture
def two_pools(tmp_path: Path, serve: Callable[..., Driver]) -> Driver:
    """Return a driver on two pools, `default` and `other`, that can promise 256 MiB each."""
    names = ("default", "other")
    for name in names:
        (tmp_path / name).mkdir()
    return serve(*(limited_pool(name, tmp_path / name, 256 * MIB) for name in names))


@pytest.fixture
def limited(pool: Path, serve: Callable[..., Driver]) -> Callable[..., Driver]:
    """Return a function that starts a driver whose pool can promise `size` bytes."""

    def start(size: int, *options: str) -> Driver:
        return serve(",".join((limited_pool("default", pool, size), *options)))

    return start


@pytest.fixture
def slow_mkfs(tmp_path: Path) -> "SlowPrograms":
    """Return a PATH on which mkfs.ext4 waits until it is told to go on."""
    return SlowPrograms(tmp_path / "bin", "mkfs.ext4")


class SlowPrograms:
    """A directory in front of PATH whose `program` waits, then runs the real one."""

    def __init__(self, folder: Path, program: str) -> None:
        folder.mkdir()
        self.folder = folder
        self._go = folder / "go"
        script = folder / program
        script.write_text(
            "#!/bin/sh\n"
            f'echo $$ > "{folder}/pid"\n'
            f'until [ -e "{self._go}" ] || [ ! -d "{folder}" ]; do sleep 0.02; done\n'
            f'PATH="${{PATH#{folder}:}}"\n'
            f'exec {program} "$@"\n'
        )
        script.chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.folder}:{os.environ['PATH']}"

    @property
    def started(self) -> bool:
        pid = self.folder / "pid"
        return pid.exists() and pid.read_text().endswith("\n")

    @property
    def pid(self) -> int:
        return int((self.folder / "pid").read_text())

    def go(self) -> None:
        self._go.touch()


def pool_of(driver: Driver, number: int = 0) -> Path:
    """Return where a pool of the driver lies."""
    return driver.folders[number]


def on_disk(driver: Driver) -> set[str]:
    """Return what lies in the pool besides its own records, when the trash has been emptied."""
    driver.reaped()
    pool = pool_of(driver)
    return {
        f"{folder}/{entry.name}"
        for folder in ("volumes", "snapshots", "groups", "frozen", "tmp", "trash")
        for entry in (pool / folder).iterdir()
    }


def request(name: str, **fields: Any) -> csi.CreateVolumeRequest:
    """Return a request for a small directory, or what `fields` make of it."""
    given: dict[str, Any] = {
        "name": name,
        "capacity_range": csi.CapacityRange(required_bytes=4 * MIB),
        "volume_capabilities": [mount_capability()],
        "parameters": {"quota": "none"},
    }
    return csi.CreateVolumeRequest(**given | fields)


def on_node(*nodes: str) -> csi.TopologyRequirement:
    """Return a requirement that the volume lies on one of the nodes."""
    return csi.TopologyRequirement(
        requisite=[csi.Topology(segments={TOPOLOGY: node}) for node in nodes]
    )


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    """Return how an RPC ends; a refusal must have a message of at most 1 KiB."""
    try:
        call()
    except grpc.RpcError as error:
        failure: Any = error
        assert 0 < len(failure.details().encode()) <= 1024
        return failure.code()  # type: ignore[no-any-return]
    return OK


@contextlib.contextmanager
def unchanged(driver: Driver) -> Iterator[None]:
    """Expect that nothing is made or lost, on disk and in the listing."""
    disk, listed = on_disk(driver), driver.volume_ids()
    yield
    assert on_disk(driver) == disk
    assert driver.volume_ids() == listed


def pycsi(
    *arguments: str | Path | bytes, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command `pycsi serve` to its end, without any variable but those given."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        [*AS_ROOT, sys.executable, "-m", "pycsi", "serve", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=kept | (variables or {}),
        timeout=30,
        check=False,
    )


def wait_for(done: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something is so, at most for so many seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def rpc_types(controller: Any) -> set[str]:
    """Return the names of the capabilities that a controller advertises."""
    answer = controller.ControllerGetCapabilities(csi.ControllerGetCapabilitiesRequest())
    kind = csi.ControllerServiceCapability.RPC.Type
    return {kind.Name(item.rpc.type) for item in answer.capabilities}
