"""A pool without a free byte: its volumes can be used, if only to delete files from them."""

import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, fill, run
from driver import (
    GIB,
    MIB,
    Driver,
    Mode,
    block_capability,
    mount_capability,
    refused,
)

from pycsi.linux import loop
from pycsi.proto import csi_pb2 as csi

REFUSED = grpc.StatusCode.FAILED_PRECONDITION

ONE_TARGET = Mode.SINGLE_NODE_SINGLE_WRITER


def fill_up(pool: Path) -> None:
    """Leave no free block: btrfs keeps some for its metadata, which small files take."""
    fill(pool.parent / "others")
    for number in range(200_000):
        try:
            (pool.parent / f"small-{number}").write_bytes(bytes(1500))
        except OSError:
            break
    run("sync", "--file-system", pool)


def volumes(
    driver: Driver, kind: str, mode: "csi.VolumeCapability.AccessMode.Mode"
) -> list[tuple[str, csi.VolumeCapability]]:
    """Make a volume of each kind that a pool can have."""
    image, block = mount_capability("ext4", mode), block_capability(mode)
    plain = mount_capability(mode=mode)
    free = {"type": "directory"} | ({} if kind == "btrfs" else {"quota": "none"})
    made = [
        (driver.create("raw", capability=block, allocation="thick"), block),
        (driver.create("dir", capability=plain, parameters=free), plain),
        (driver.create("image", capability=image, type="image", allocation="thick"), image),
    ]
    return [(volume.volume_id, capability) for volume, capability in made]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("ext4", ONE_TARGET),
        ("xfs", ONE_TARGET),
        ("btrfs", ONE_TARGET),
        ("btrfs", Mode.SINGLE_NODE_MULTI_WRITER),
    ],
)
def test_life_on_a_full_pool(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    kind: str,
    mode: "csi.VolumeCapability.AccessMode.Mode",
) -> None:
    """Every call of a volume's life is answered, and repeated, without a free block."""
    pool = filesystem(kind, GIB if kind == "btrfs" else 512 * MIB)
    driver = serve(pool)
    made = volumes(driver, kind, mode)
    fill_up(pool)
    for volume_id, wanted in made:
        staging, target = tmp_path / f"staging-{volume_id}", tmp_path / f"target-{volume_id}"
        for _ in range(2):
            for _ in range(2):
                driver.stage(volume_id, staging, wanted)
            for _ in range(2):
                driver.publish(volume_id, staging, target, wanted)
            assert driver.stats(volume_id, target).usage
            with refused(REFUSED, "in use"):
                driver.delete(volume_id)
            with refused(REFUSED, "published"):
                driver.unstage(volume_id, staging)
            if mode == ONE_TARGET:
                with refused(REFUSED, "one target"):
                    driver.publish(volume_id, staging, tmp_path / "second", wanted)
            driver.restart()
            for _ in range(2):
                driver.unpublish(volume_id, target)
                assert not target.exists()
            with refused(REFUSED, "in use"):
                driver.delete(volume_id)
            for _ in range(2):
                driver.unstage(volume_id, staging)
            assert loop.find(pool / "volumes" / volume_id / "disk.img") == []
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            driver.expand(volume_id, 2 * GIB)
    for volume_id, _ in made:
        driver.delete(volume_id)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_record_that_finds_no_room(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], kind: str
) -> None:
    """The answer says which pool is full and what makes room, and nothing has changed."""
    pool = filesystem(kind, 512 * MIB)
    driver = serve(f"small={pool}", options=("--enable-attach",))
    volume_id = driver.create("v", quota="none").volume_id
    fill_up(pool)
    record = pool / "volumes" / volume_id / "volume.json"
    before = record.read_bytes()
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "pool small", "free", "pycsi trash empty"):
        driver.modify(volume_id, onDelete="retain")
    assert record.read_bytes() == before
    (pool.parent / "others").unlink(missing_ok=True)
    driver.delete(volume_id)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_attached_and_detached_on_a_full_pool(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], kind: str
) -> None:
    """Neither attaching nor detaching needs a free block; what is detached stays so."""
    pool = filesystem(kind, GIB if kind == "btrfs" else 512 * MIB)
    driver = serve(pool, options=("--enable-attach", "--max-volumes-per-node=2"))
    old, new, third = (
        driver.create(name, type="image").volume_id for name in ("old", "new", "third")
    )

    def attach(volume_id: str) -> None:
        driver.controller.ControllerPublishVolume(
            csi.ControllerPublishVolumeRequest(
                volume_id=volume_id, node_id="node-1", volume_capability=mount_capability()
            )
        )

    attach(old)
    fill_up(pool)
    for _ in range(2):
        attach(new)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "max-volumes-per-node"):
        attach(third)
    for volume_id in (old, new):
        with refused(REFUSED, "attached"):
            driver.delete(volume_id)
        for _ in range(2):
            driver.controller.ControllerUnpublishVolume(
                csi.ControllerUnpublishVolumeRequest(volume_id=volume_id)
            )
    driver.restart(signal.SIGKILL)
    for volume_id in (old, new, third):
        driver.delete(volume_id)
