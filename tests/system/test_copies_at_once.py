"""Copies of one volume that are asked for at the same time: all are made, and each is whole."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver, block_capability, from_snapshot, from_volume, mount_capability

from pycsi.proto import csi_pb2 as csi

AT_ONCE = 8
KINDS = {
    "directory": {"type": "directory", "quota": "none"},
    "ext4": {"type": "image"},
    "xfs": {"type": "image"},
    "thick": {"type": "image", "allocation": "thick"},
    "block": {"type": "image"},
}
SIZE = {"xfs": 300 * MIB}


def capability_of(kind: str) -> csi.VolumeCapability:
    if kind == "block":
        return block_capability()
    return mount_capability(kind if kind in {"ext4", "xfs"} else "")


def together(calls: Sequence[Callable[[], object]]) -> list[grpc.StatusCode]:
    def code_of(call: Callable[[], object]) -> grpc.StatusCode:
        try:
            call()
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(code_of, calls))


class Source:
    """A volume with content, and the copies of it."""

    def __init__(self, driver: Driver, kind: str, folder: Path) -> None:
        self.driver, self.kind, self.folder = driver, kind, folder
        self.id = self.make("source")
        with driver.published(self.id, folder, capability_of(kind)) as target:
            content = os.urandom(4 * MIB)
            with self.file(target).open("r+b" if kind == "block" else "wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            self.digest = hashlib.sha256(content).digest()

    def make(self, name: str, source: csi.VolumeContentSource | None = None) -> str:
        made = self.driver.create(
            name,
            SIZE.get(self.kind, 32 * MIB),
            capability=capability_of(self.kind),
            parameters=KINDS[self.kind],
            source=source,
        )
        return made.volume_id

    def file(self, target: Path) -> Path:
        return target if self.kind == "block" else target / "file"

    def check(self, volume_id: str) -> None:
        """Stage and publish a copy, and compare what is in it."""
        with (
            self.driver.published(volume_id, self.folder, capability_of(self.kind)) as target,
            self.file(target).open("rb") as file,
        ):
            assert hashlib.sha256(file.read(4 * MIB)).digest() == self.digest

    def copies(self) -> list[Callable[[], object]]:
        """Return calls that clone and snapshot the volume."""
        clones = [
            lambda number=number: self.make(f"clone-{number}", from_volume(self.id))
            for number in range(AT_ONCE)
        ]
        taken = [
            lambda number=number: self.driver.snapshot(f"snapshot-{number}", self.id)
            for number in range(AT_ONCE // 2)
        ]
        return [*clones, *taken]

    def check_all(self) -> None:
        for number in range(AT_ONCE):
            self.check(f"clone-{number}@node-1")
        self.make("restored", from_snapshot("snapshot-0@node-1"))
        self.check("restored@node-1")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ground", ["plain", "xfs"])
def test_idle(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    pool: Path,
    tmp_path: Path,
    kind: str,
    ground: str,
) -> None:
    """Eight clones and four snapshots of an idle volume succeed at once, on any pool."""
    source = Source(serve(filesystem("xfs", 6 * GIB) if ground == "xfs" else pool), kind, tmp_path)
    assert set(together(source.copies())) == {grpc.StatusCode.OK}
    source.check_all()


@pytest.mark.parametrize("kind", KINDS)
def test_in_use(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """So they do of one in use where blocks are shared: a freeze takes milliseconds."""
    source = Source(serve(filesystem("xfs", 6 * GIB)), kind, tmp_path)
    with source.driver.published(source.id, tmp_path, capability_of(kind)):
        assert set(together(source.copies())) == {grpc.StatusCode.OK}
        assert not list((source.driver.folders[0] / "frozen").iterdir())
    source.check_all()


def test_who_changes_it_is_kept_out(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path, root: None
) -> None:
    """Whoever stages or deletes the volume meanwhile is told to come back, or comes first."""
    source = Source(serve(pool), "ext4", tmp_path)
    staging = tmp_path / "staging"
    driver = source.driver
    codes = together(
        [
            *source.copies(),
            lambda: driver.stage(source.id, staging),
            lambda: driver.expand(source.id, 32 * MIB),
        ]
    )
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.ABORTED}
    driver.unstage(source.id, staging)
    assert set(together(source.copies())) == {grpc.StatusCode.OK}
    source.check_all()
