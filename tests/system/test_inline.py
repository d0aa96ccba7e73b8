"""Inline ephemeral volumes: created when they are published, deleted when they are unpublished."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import FilesystemFactory, run
from driver import GIB, MIB, Driver, block_capability, mount_capability, refused
from rpc.conftest import wait_for

from pycsi.proto import csi_pb2 as csi

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


@pytest.fixture
def quiet_pool(filesystem: FilesystemFactory) -> Path:
    """Return a pool on a disk of its own, whose room nobody else changes."""
    return filesystem("ext4", GIB)


@pytest.fixture
def quiet(quiet_pool: Path, serve: Callable[..., Driver]) -> Driver:
    """Return a driver on that."""
    return serve(quiet_pool)


def test_life(quiet: Driver, tmp_path: Path, quiet_pool: Path) -> None:
    """The volume has the pod's size, is not listed, and leaves nothing."""
    inline, pool = quiet, quiet_pool
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


@pytest.mark.usefixtures("root")
def test_node_whose_name_is_no_topology_value(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path
) -> None:
    """On a node with an odd name, of which ids hold a digest, an inline volume is found again."""
    driver = serve(pool, options=("--node-id", "rack 7/node:1"))
    target = tmp_path / "target"
    for _ in range(2):
        driver.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    assert driver.stats(HANDLE, target).usage
    driver.unpublish(HANDLE, target)
    assert list((pool / "volumes").iterdir()) == []


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


# Orphans: the pod went, and nobody unpublished its volume


def at_pod(folder: Path, uid: str = "0a1b") -> Path:
    """Return where the kubelet would have an inline volume of a pod, whose directories exist."""
    place = folder / "pods" / uid / "volumes" / "kubernetes.io~csi" / "scratch"
    place.mkdir(parents=True)
    return place / "mount"


def lose_pod(folder: Path, uid: str = "0a1b") -> None:
    run("umount", folder / "pods" / uid / "volumes/kubernetes.io~csi/scratch/mount")
    shutil.rmtree(folder / "pods" / uid)


def held(pool: Path) -> list[str]:
    return [path.name for path in (pool / "volumes").iterdir()]


def gone(pool: Path) -> bool:
    deadline = time.monotonic() + 30
    while held(pool) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not held(pool)


def rows(pool: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(pycsi(pool, "get", "volumes", "-o", "json"))
    return listed


def pycsi(pool: Path, *words: str) -> str:
    return run(sys.executable, "-m", "pycsi", *words, f"--pool=default={pool}")


@pytest.mark.parametrize("notes", ["kept", "lost"])
def test_orphan_is_deleted_at_the_next_start(
    quiet: Driver, tmp_path: Path, quiet_pool: Path, notes: str
) -> None:
    """Where a pod's directory went while the node was down its volume goes, also without notes."""
    inline, pool = quiet, quiet_pool
    at_pod(tmp_path, "other")
    before = inline.capacity().available_capacity
    inline.publish(HANDLE, None, at_pod(tmp_path), context=POD | {"size": "32Mi"})
    inline.stop(signal.SIGKILL)
    lose_pod(tmp_path)
    if notes == "lost":  # as by a power cut: they are not synchronised
        (record,) = pool.glob("volumes/*/node.json")
        record.write_text('{"schema":2,"staged":{},"published":{}}')
    (row,) = rows(pool)
    assert row["inline"]
    assert row["condition"].startswith("Orphaned: ")
    inline.start()
    assert gone(pool)
    wait_for(lambda: "shop/web-0" in inline.log)
    assert inline.capacity().available_capacity == before


def test_orphan_is_deleted_while_the_driver_runs(
    inline: Driver, tmp_path: Path, pool: Path
) -> None:
    """It is looked for now and then: the kubelet removes a pod's directory when it comes to it."""
    at_pod(tmp_path, "other")
    inline.publish(HANDLE, None, at_pod(tmp_path), context=POD | {"size": "32Mi"})
    lose_pod(tmp_path)
    assert gone(pool)


@pytest.mark.parametrize("what", ["pod", "pods", "empty", "mounted"])
def test_no_orphan_is_only_supposed(inline: Driver, tmp_path: Path, pool: Path, what: str) -> None:
    """Where the pod's directory, or its mount, may be there still, its volume stays."""
    inline.publish(HANDLE, None, at_pod(tmp_path), context=POD | {"size": "32Mi"})
    target = tmp_path / "pods/0a1b/volumes/kubernetes.io~csi/scratch/mount"
    at_pod(tmp_path, "other")
    inline.stop(signal.SIGKILL)
    elsewhere = tmp_path / "elsewhere"
    match what:
        case "pod":  # the kubelet has only undone the mount
            run("umount", target)
            shutil.rmtree(target.parent)
        case "pods":  # its disk is not mounted yet
            run("umount", target)
            (tmp_path / "pods").rename(elsewhere)
        case "empty":
            run("umount", target)
            (tmp_path / "pods").rename(elsewhere)
            (tmp_path / "pods").mkdir()
        case "mounted":  # by another name
            elsewhere.mkdir()
            run("mount", "--bind", target, elsewhere)
            lose_pod(tmp_path)
    inline.start()
    (volume_id,) = held(pool)
    inline.restart()  # a stopping driver waits for the look that its start began
    assert held(pool) == [volume_id]
    if what == "mounted":
        with pytest.raises(AssertionError, match="in use"):
            pycsi(pool, "delete-inline", "--yes", volume_id)
        run("umount", elsewhere)
    assert pycsi(pool, "delete-inline", "--yes", volume_id).strip() == volume_id
    assert held(pool) == []


def test_unpublish_after_the_mount_was_lost(inline: Driver, tmp_path: Path, pool: Path) -> None:
    """A repeated NodeUnpublishVolume deletes what a reboot has unmounted."""
    target = at_pod(tmp_path)
    inline.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    inline.stop(signal.SIGKILL)
    run("umount", target)
    inline.start()
    inline.unpublish(HANDLE, target)
    assert held(pool) == []


def test_delete_volume_refuses_what_is_inline(inline: Driver, tmp_path: Path, pool: Path) -> None:
    """DeleteVolume does not answer OK for what it leaves, by whichever id."""
    target = tmp_path / "target"
    inline.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    (volume_id,) = held(pool)
    for name in (volume_id, HANDLE):
        with refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            "inline",
            "shop/web-0",
            str(target),
            "delete-inline",
        ):
            inline.delete(name)
    with pytest.raises(AssertionError, match="in use"):
        pycsi(pool, "delete-inline", "--yes", HANDLE)
    inline.unpublish(HANDLE, target)
    inline.delete(volume_id)
    inline.delete(HANDLE)


def test_deleted_by_hand_while_the_driver_runs(
    quiet: Driver, tmp_path: Path, quiet_pool: Path
) -> None:
    """The driver forgets what `pycsi delete-inline` has deleted, and can make it anew."""
    inline, pool = quiet, quiet_pool
    before = inline.capacity().available_capacity
    target = at_pod(tmp_path)
    inline.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    run("umount", target)
    table = pycsi(pool, "get", "volumes")
    assert "INLINE" in table
    assert " yes " in table
    pycsi(pool, "delete-inline", "--yes", HANDLE)
    inline.controller.GetCapacity(csi.GetCapacityRequest())  # who asks for room is not kept waiting
    assert inline.capacity().available_capacity == before
    inline.publish(HANDLE, None, target, context=POD | {"size": "32Mi"})
    inline.unpublish(HANDLE, target)
    assert held(pool) == []


def test_delete_inline_is_for_inline_volumes(inline: Driver, pool: Path) -> None:
    """Neither a persistent volume nor one that is not there is deleted by that command."""
    volume_id = inline.create("kept", type="directory", quota="none").volume_id
    for name, word in (
        (volume_id, "no inline volume"),
        ("ephemeral-1@node-1", "pycsi get volumes"),
    ):
        with pytest.raises(AssertionError, match=word):
            pycsi(pool, "delete-inline", "--yes", name)
    assert held(pool) == [volume_id]
