"""Inline ephemeral volumes: created when they are published, deleted when they are unpublished."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver, block_capability, mount_capability, refused

HANDLE = "csi-" + "0123456789abcdef" * 4
POD = {
    "csi.storage.k8s.io/ephemeral": "true",
    "csi.storage.k8s.io/pod.name": "web-0",
    "csi.storage.k8s.io/pod.namespace": "shop",
}


@pytest.fixture
def inline(root: None, driver: Driver) -> Driver:
    """Return a driver for a test that mounts."""
    return driver


def test_life(inline: Driver, tmp_path: Path, pool: Path) -> None:
    """The volume has the pod's size, is not listed, and leaves nothing."""
    before = inline.capacity().available_capacity
    target = tmp_path / "target"
    for _ in range(2):
        inline.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    (target / "file").write_text("x")
    assert inline.volume_ids() == []
    assert inline.capacity().available_capacity == before - 32 * MIB
    assert 20 * MIB < inline.stats(HANDLE, target).usage[0].total <= 32 * MIB
    for _ in range(2):
        inline.unpublish(HANDLE, target)
    assert not target.exists()
    assert list((pool / "volumes").iterdir()) == []
    assert inline.capacity().available_capacity == before


def test_directory_with_a_limit(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """On a pool that limits directories an inline volume is a limited directory."""
    driver = serve(filesystem("btrfs", GIB))
    target = tmp_path / "target"
    driver.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    assert driver.stats(HANDLE, target).usage[0].total == 32 * MIB
    driver.unpublish(HANDLE, target)


def test_read_only(inline: Driver, tmp_path: Path) -> None:
    """A read-only inline volume refuses writes."""
    target = tmp_path / "target"
    inline.publish(HANDLE, None, target, readonly=True, context=POD | {"size": "32Mi"})
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "file").write_text("no")
    inline.unpublish(HANDLE, target)


def test_survives_a_restart(inline: Driver, tmp_path: Path, pool: Path) -> None:
    """A new driver process still deletes it."""
    target = tmp_path / "target"
    inline.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    inline.restart(9)
    inline.unpublish(HANDLE, target)
    assert list((pool / "volumes").iterdir()) == []


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ({"size": "no"}, "size"),
        ({"size": "-1"}, "size"),
        ({"size": "0"}, "size"),
        ({"size": "32Mi", "mkfsOptions": "-d /etc"}, "mkfsOptions"),
        ({"size": "32Mi", "quota": "none"}, "quota"),
        ({"size": "32Mi", "type": "tape"}, "type"),
        ({"size": "32Mi", "pool": "other"}, "other"),
    ],
)
def test_bad_attributes(
    driver: Driver, tmp_path: Path, pool: Path, attributes: dict[str, str], word: str
) -> None:
    """What a pod may not ask for is refused, and nothing is made."""
    target = tmp_path / "target"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, word):
        driver.publish(HANDLE, None, target, context=POD | attributes)
    assert not target.exists()
    assert list((pool / "volumes").iterdir()) == []


def test_a_failed_publish_leaves_no_volume(inline: Driver, tmp_path: Path, pool: Path) -> None:
    """Where the target cannot be mounted at, the volume made for it goes again."""
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "target_path"):
        inline.publish(HANDLE, None, tmp_path / "no/target", context=POD | {"size": "32Mi"})
    assert list((pool / "volumes").iterdir()) == []
    wanted = mount_capability("ext4", flags=["sesame=open"])
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        inline.publish(HANDLE, None, tmp_path / "t", wanted, context=POD | {"size": "32Mi"})
    assert list((pool / "volumes").iterdir()) == []
    assert not (tmp_path / "t").exists()


def test_never_confused_with_a_persistent_volume(
    inline: Driver, tmp_path: Path, pool: Path
) -> None:
    """A persistent volume survives whatever is said of it as an inline one, whatever its name."""
    staging, target = tmp_path / "staging", tmp_path / "target"
    volumes = [
        inline.create(name, type="directory", quota="none").volume_id
        for name in (HANDLE, "ephemeral-1", "csi-data")
    ]
    for volume_id in volumes:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "persistent"):
            inline.publish(volume_id, None, target, context=POD | {"size": "32Mi"})
        inline.stage(volume_id, staging)
        inline.publish(volume_id, staging, target)
        (target / "kept").write_text("kept")
        inline.unpublish(volume_id, target)
        inline.unstage(volume_id, staging)
    inline.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    inline.unpublish(HANDLE, target)
    for volume_id in volumes:
        assert (pool / "volumes" / volume_id / "data" / "kept").read_text() == "kept"


def test_mounted_where_we_do_not_see_it(inline: Driver, tmp_path: Path, pool: Path) -> None:
    """While another mount namespace keeps the volume, unpublishing says so; then it is deleted."""
    target = tmp_path / "target"
    inline.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    hidden = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"exec sleep 60 <{target}"]
    )
    try:
        while Path(f"/proc/{hidden.pid}/comm").read_text().strip() != "sleep":
            time.sleep(0.01)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "another mount namespace"):
            inline.unpublish(HANDLE, target)
    finally:
        hidden.kill()
        hidden.wait()
    inline.unpublish(HANDLE, target)
    assert list((pool / "volumes").iterdir()) == []


def test_block_is_refused(driver: Driver, tmp_path: Path, pool: Path) -> None:
    """An inline volume is a mounted one; as a block device it is refused, and nothing is made."""
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "block"):
        driver.publish(HANDLE, None, tmp_path / "t", block_capability(), context=POD)
    assert not (tmp_path / "t").exists()
    assert list((pool / "volumes").iterdir()) == []
