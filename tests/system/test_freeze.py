"""A frozen filesystem thaws whatever happens to the driver."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, run
from driver import GIB, MIB, Driver, mount_capability, refused

from pycsi.linux.descriptor import DIRECTORY, opened
from pycsi.linux.freeze import freeze, thaw
from pycsi.proto import csi_pb2 as csi


def writable_within(target: Path, seconds: float) -> bool:
    """Tell whether a file can be made and written in time: a frozen filesystem lets nobody begin.

    It is not synchronised: how long that takes says how busy the disk is.
    """
    begin = f"open({str(target / 'probe')!r}, 'w').write('x')"
    writer = subprocess.Popen([sys.executable, "-S", "-c", begin])
    try:
        return writer.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        writer.kill()
        return False


def fill(path: Path) -> None:
    """Write to `path` until not one more block goes in."""
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        for size in (MIB, 4096):
            try:
                while os.write(fd, bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
        with contextlib.suppress(OSError):
            os.fsync(fd)


def is_frozen(target: Path) -> bool:
    """Tell whether the filesystem is frozen, without waiting for it."""
    with opened(target, DIRECTORY) as fd:
        try:
            if freeze(fd):
                thaw(fd)
                return False
        except OSError as error:  # the full disk below has broken it: it is not frozen
            assert error.errno == errno.EIO  # noqa: PT017
            return False
    return True


def begin_snapshot(
    driver: Driver, volume_id: str, target: Path, size: int
) -> "grpc.Future[csi.CreateSnapshotResponse]":
    """Write `size` bytes to the volume, and have its snapshot taken."""
    (target / "file").write_bytes(os.urandom(size))
    os.sync()
    taking: grpc.Future[csi.CreateSnapshotResponse] = driver.controller.CreateSnapshot.future(
        csi.CreateSnapshotRequest(name="s", source_volume_id=volume_id)
    )
    return taking


def wait_for_copy(pool: Path, taking: "grpc.Future[csi.CreateSnapshotResponse]") -> None:
    """Wait until a copy has begun: from then on the volume's filesystem is frozen.

    To ask by freezing it would keep the driver from doing so, if that comes just then.
    """
    deadline = time.monotonic() + 30
    while not any(image.stat().st_blocks for image in (pool / "tmp").rglob("disk.img")):
        assert time.monotonic() < deadline
        assert not taking.done()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_killed_between_freeze_and_thaw(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """After SIGKILL the next start thaws: the filesystem is writable within a second of serving.

    The pool cannot share blocks and the image is large, so there is time to kill the driver.
    """
    pool = filesystem("ext4", 3 * GIB)
    driver = serve(f"default={pool},freeze-limit=60s")
    capability = mount_capability(kind)
    volume_id = driver.create("v", GIB, capability=capability, type="image").volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, capability)
    driver.publish(volume_id, staging, target, capability)
    marker = pool / "frozen" / volume_id
    taking = begin_snapshot(driver, volume_id, target, 700 * MIB)
    wait_for_copy(pool, taking)
    driver.stop(signal.SIGKILL)
    assert marker.exists()
    assert is_frozen(target)
    driver.start()
    assert writable_within(target, 1)
    assert not marker.exists()
    assert driver.snapshots() == []
    driver.reaped()
    assert list((pool / "tmp").iterdir()) == []
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)
    assert driver.snapshot("s", volume_id).ready_to_use


def test_marker_without_a_freeze(driver: Driver, root: None, tmp_path: Path, pool: Path) -> None:
    """A marker is not believed: after a reboot nothing is frozen, and nothing may be mounted."""
    volume_id = driver.create("v", type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        for name in (volume_id, "gone@node-1"):
            (pool / "frozen" / name).touch()
        driver.restart(signal.SIGKILL)
        assert list((pool / "frozen").iterdir()) == []
        assert writable_within(target, 1)
    (pool / "frozen" / volume_id).touch()
    driver.restart()
    assert list((pool / "frozen").iterdir()) == []


def test_frozen_by_somebody_else(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Another one's freeze is neither used nor ended, not by a start either."""
    pool = filesystem("xfs", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        run("fsfreeze", "--freeze", target)
        try:
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "frozen by somebody else"):
                driver.snapshot("s", volume_id)
            assert is_frozen(target)
            driver.restart()
            assert is_frozen(target)
        finally:
            run("fsfreeze", "--unfreeze", target)
        assert driver.snapshot("s", volume_id).ready_to_use


def test_read_only_filesystem(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A volume that is mounted read-only has its snapshot too."""
    driver = serve(filesystem("xfs", GIB))
    volume_id = driver.create("v", type="image").volume_id
    capability = mount_capability(flags=["ro"])
    with driver.published(volume_id, tmp_path, capability):
        assert driver.snapshot("s", volume_id).ready_to_use


def test_full_pool(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A snapshot for which there is no room on the disk leaves nothing, and nothing frozen."""
    pool = filesystem("ext4", GIB)
    driver = serve(f"default={pool},overcommit=10")
    volume_id = driver.create("v", 512 * MIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        (target / "file").write_bytes(os.urandom(300 * MIB))
        os.sync()
        (pool.parent / "ballast").write_bytes(bytes(450 * MIB))
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            driver.snapshot("s", volume_id)
        assert writable_within(target, 5)
        (pool.parent / "ballast").unlink()
        assert driver.snapshots() == []
        assert driver.snapshot("s", volume_id).ready_to_use
    for folder in ("tmp", "frozen"):
        assert list((pool / folder).iterdir()) == []


def test_pool_that_fills_up_meanwhile(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """An error while the filesystem is frozen is told as what it is."""
    pool = filesystem("ext4", 2 * GIB)
    driver = serve(f"default={pool},freeze-limit=60s,overcommit=10")
    volume_id = driver.create("v", GIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        taking = begin_snapshot(driver, volume_id, target, 700 * MIB)
        wait_for_copy(pool, taking)
        facts = os.statvfs(pool)
        with opened(pool.parent / "ballast", os.O_WRONLY | os.O_CREAT) as fd:
            os.posix_fallocate(fd, 0, facts.f_bavail * facts.f_frsize - 200 * MIB)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "No space left"):
            taking.result()
        assert writable_within(target, 5)
        (pool.parent / "ballast").unlink()
    for folder in ("snapshots", "frozen", "tmp"):
        assert list((pool / folder).iterdir()) == []


def test_thawed_by_somebody_else(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A freeze that did not last is noticed: the copy is of no point in time."""
    pool = filesystem("ext4", 3 * GIB)
    driver = serve(f"default={pool},freeze-limit=60s")
    volume_id = driver.create("v", GIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target, opened(target, DIRECTORY) as fd:
        taking = begin_snapshot(driver, volume_id, target, 500 * MIB)
        deadline = time.monotonic() + 30
        while not thaw(fd):
            assert time.monotonic() < deadline
            assert not taking.done()
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "thawed by somebody else"):
            taking.result()
        assert driver.snapshots() == []
        assert not list((pool / "frozen").iterdir())


def test_something_over_the_staged_path(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """It is the volume's filesystem that is frozen and thawed, whatever lies over a path of it."""
    pool, other = filesystem("xfs", GIB), filesystem("ext4", 100 * MIB)
    driver = serve(pool)
    volume_id = driver.create("v", type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        staging = tmp_path / f"staging-{volume_id}"
        run("mount", "--bind", other, staging)
        try:
            driver.snapshot("s", volume_id)
            (pool / "frozen" / volume_id).touch()
            run("fsfreeze", "--freeze", target)
            driver.restart(signal.SIGKILL)
            assert writable_within(target, 1)
            assert not list((pool / "frozen").iterdir())
            run("mount", "--bind", other, target)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "mounted over it"):
                driver.snapshot("t", volume_id)
            run("umount", target)
        finally:
            run("umount", staging)


@pytest.mark.parametrize("kind", ["ext4", "btrfs", "xfs"])
def test_start_on_a_full_disk(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """The driver starts, and thaws, although not one block is left."""
    pool = filesystem(kind, 400 * MIB)
    driver = serve(f"default={pool},overcommit=10")
    volume_id = driver.create("v", 64 * MIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        (pool / "frozen" / volume_id).touch()
        run("fsfreeze", "--freeze", target)
        driver.stop(signal.SIGKILL)
        fill(pool.parent / "ballast")
        driver.start()
        assert not is_frozen(target)
        assert not list((pool / "frozen").iterdir())
        (pool.parent / "ballast").unlink()
        os.sync()
