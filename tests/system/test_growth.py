"""A filesystem that cannot grow to its volume's new size: usable, told of, and tried again."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, fill, needs, run
from driver import (
    GIB,
    MIB,
    Driver,
    from_snapshot,
    from_volume,
    mount_capability,
    refused,
)
from health import unwell

from pycsi.linux import program

EXT4 = mount_capability("ext4")
UNUSED_HEADER = b"E2UNDO02".ljust(16, b"\0") + bytes([1]) + bytes(2031)
"""What resize2fs leaves where it gives up before it has changed anything."""


def image_of(pool: Path, volume_id: str) -> Path:
    return pool / "volumes" / volume_id / "disk.img"


def size_of(path: Path) -> int:
    facts = os.statvfs(path)
    return facts.f_blocks * facts.f_frsize


def empty(filler: Path) -> None:
    """Delete a file that fills a disk, and wait until its blocks are free: XFS takes its time."""
    size = filler.stat().st_size
    filler.unlink()
    deadline = time.monotonic() + 30
    while os.statvfs(filler.parent).f_bavail * 4096 < size // 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def share_one_block(image: Path) -> None:
    """Let two files claim one block: that is left to a person."""
    block = run("debugfs", "-R", "blocks f1", image).strip().split()[0]
    run("debugfs", "-w", "-R", f"sif f2 block[0] {block}", image)


def fake(folder: Path, name: str, script: str) -> str:
    """Put a program of our own before the real one; return the PATH to find it with."""
    real = shutil.which(name)
    needs(name, met=real is not None)
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\nreal={real}\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def without_resource(serve: Callable[..., Driver], pool: str, **more: str) -> Driver:
    """Start a driver that has not the capability to grow a mounted ext4."""
    needs("setpriv", met=shutil.which("setpriv") is not None)
    wrapper = ("setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource")
    return serve(pool, wrapper=wrapper, **more)


def lag(driver: Driver, volume_id: str, folder: Path, size: int) -> None:
    """Expect the volume to be usable at `size` bytes, again and again, and to say so."""
    for _ in range(2):
        with driver.published(volume_id, folder, EXT4) as target:
            assert (target / "f1").read_text() == "kept"
            assert 0.5 * size < size_of(target) <= size
            [usage] = [item for item in driver.stats(volume_id, target).usage if item.unit == 1]
            assert usage.total == size_of(target)
            condition = driver.stats(volume_id, target).volume_condition
            assert condition.abnormal
            assert "could not grow" in condition.message
    unwell(driver, volume_id, "GrowthFailed", "could not grow")


def can_grow(image: Path, size: int, copy: Path) -> bool:
    """Try it with a copy: of many filesystems that resize2fs cannot grow it grows some."""
    shutil.copyfile(image, copy)
    os.truncate(copy, size)
    check = subprocess.run(["e2fsck", "-f", "-p", copy], capture_output=True, check=False)
    resize = subprocess.run(["resize2fs", copy], capture_output=True, check=False)
    copy.unlink()
    return check.returncode in {0, 1} and resize.returncode == 0


@pytest.mark.parametrize(
    ("small", "large", "options", "harm", "reason"),
    [
        (16 * MIB, 20 * GIB, "", None, "resize2fs"),
        (64 * MIB, 256 * MIB, "-O bigalloc", None, "resize2fs"),
        (64 * MIB, 256 * MIB, "-O ^extent,^64bit", share_one_block, "e2fsck"),
    ],
    ids=["much-larger", "bigalloc", "inconsistent"],
)
def test_ext4_that_cannot_grow(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    small: int,
    large: int,
    options: str,
    harm: Callable[[Path], None] | None,
    reason: str,
) -> None:
    """It is staged as it is; copies of its size can be made, larger ones say why not."""
    pool = filesystem("xfs", 2 * GIB)
    driver = without_resource(serve, f"default={pool},overcommit=100")
    parameters = {"type": "image", **({"mkfsOptions": options} if options else {})}
    for _ in range(10):
        volume_id = driver.create("v", small, capability=EXT4, parameters=parameters).volume_id
        with driver.published(volume_id, tmp_path, EXT4) as target:
            (target / "f1").write_text("kept")
            (target / "f2").write_text("other")
        if harm:
            harm(image_of(pool, volume_id))
        if not can_grow(image_of(pool, volume_id), large, tmp_path / "copy.img"):
            break
        driver.delete(volume_id)
    driver.expand(volume_id, large)
    lag(driver, volume_id, tmp_path, small)
    assert reason in driver.condition(volume_id).message
    with driver.published(volume_id, tmp_path, EXT4) as target:
        for _ in range(2):
            with refused(grpc.StatusCode.FAILED_PRECONDITION):
                driver.node_expand(volume_id, target)
    snapshot = driver.snapshot("s", volume_id).snapshot_id
    for name, source in (("c", from_volume(volume_id)), ("r", from_snapshot(snapshot))):
        copy = driver.create(name, large, capability=EXT4, source=source).volume_id
        lag(driver, copy, tmp_path, small)
        driver.delete(copy)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, reason, "could not grow"):
            driver.create(name, 2 * large, capability=EXT4, source=source)
    assert driver.volume_ids() == [volume_id]
    assert list((pool / "tmp").iterdir()) == []
    if harm:
        program.run("e2fsck", "-f", "-y", image_of(pool, volume_id), ok=(0, 1))
        with driver.published(volume_id, tmp_path, EXT4) as target:
            assert size_of(target) > small
        assert not driver.condition(volume_id).abnormal
    else:
        run("e2fsck", "-f", "-n", image_of(pool, volume_id))


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("resize2fs", '"$real" "$@"; exit 1'),  # all is changed, then it fails
        ("resize2fs", '"$real" "$@"; kill -9 $$'),
        ("resize2fs", "exit 127"),
        ("e2fsck", "exit 8"),
        ("e2fsck", "exit 32"),
    ],
)
def test_program_that_fails(
    serve: Callable[..., Driver], root: None, pool: Path, tmp_path: Path, name: str, script: str
) -> None:
    """Whatever it has changed is undone; when it works again the volume grows."""
    path = fake(tmp_path / "bin", name, script)
    driver = without_resource(serve, f"default={pool}", PATH=path)
    volume_id = driver.create("v", 64 * MIB, capability=EXT4, type="image").volume_id
    with driver.published(volume_id, tmp_path, EXT4) as target:
        (target / "f1").write_text("kept")
    driver.expand(volume_id, 256 * MIB)
    lag(driver, volume_id, tmp_path, 64 * MIB)
    fate = "was killed by signal 9" if "kill" in script else "failed with exit status"
    assert f"{name} {fate}" in driver.condition(volume_id).message
    run("e2fsck", "-f", "-n", image_of(pool, volume_id))
    (tmp_path / "bin" / name).unlink()
    driver.stop()
    driver = without_resource(serve, f"default={pool}")
    with driver.published(volume_id, tmp_path, EXT4) as target:
        assert size_of(target) > 200 * MIB
        assert (target / "f1").read_text() == "kept"
    assert not driver.condition(volume_id).abnormal


@pytest.mark.parametrize("left", [b"", b"E2UNDO02", UNUSED_HEADER, b"x" * 5000])
def test_undo_file_that_was_never_used(
    driver: Driver, root: None, pool: Path, tmp_path: Path, left: bytes
) -> None:
    """It is in nobody's way: nothing had been changed when it was left."""
    volume_id = driver.create("v", 64 * MIB, capability=EXT4, type="image").volume_id
    undo = pool / "volumes" / volume_id / "resize.undo"
    undo.write_bytes(left)
    with driver.published(volume_id, tmp_path, EXT4):
        pass
    assert not undo.exists()
    assert not driver.condition(volume_id).abnormal


def test_undo_that_fails(
    serve: Callable[..., Driver], root: None, pool: Path, tmp_path: Path
) -> None:
    """A filesystem that is half resized is not mounted; once it can be undone, it is."""
    resize = fake(tmp_path / "bin", "resize2fs", '"$real" "$@"; exit 1')
    fake(tmp_path / "bin", "e2undo", "echo cannot; exit 1")
    driver = without_resource(serve, f"default={pool}", PATH=resize)
    volume_id = driver.create("v", 64 * MIB, capability=EXT4, type="image").volume_id
    driver.expand(volume_id, 256 * MIB)
    for _ in range(2):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "e2undo"):
            driver.stage(volume_id, tmp_path / "staging", EXT4)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "e2undo"):
            driver.snapshot("s", volume_id)
    (tmp_path / "bin/e2undo").unlink()
    driver.restart()
    with driver.published(volume_id, tmp_path, EXT4) as target:
        assert size_of(target) < 64 * MIB
    run("e2fsck", "-f", "-n", image_of(pool, volume_id))


CHECKS = {
    "ext4": ("e2fsck", "-f", "-n"),
    "xfs": ("xfs_repair", "-n"),
    "btrfs": ("btrfs", "check"),
}


@pytest.mark.parametrize(
    ("fs_type", "left", "large"),
    [
        ("ext4", 0, GIB),
        ("ext4", 12 * MIB, 1024 * GIB),
        ("xfs", 0, GIB),
        ("xfs", 12 * MIB, 200 * GIB),
        ("btrfs", 0, GIB),
    ],
)
def test_growth_on_a_full_pool(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    fs_type: str,
    left: int,
    large: int,
) -> None:
    """The pool's disk is full by then: the data is there, and grows when there is room again."""
    pool = filesystem("xfs", 600 * MIB)
    driver = without_resource(serve, f"default={pool},overcommit=100000")
    wanted = mount_capability(fs_type)
    volume_id = driver.create("v", 300 * MIB, capability=wanted, type="image").volume_id
    with driver.published(volume_id, tmp_path, wanted) as target:
        (target / "f1").write_text("kept")
        before = size_of(target)
    driver.expand(volume_id, large)
    spare, filler = pool.parent / "spare", pool.parent / "filler"
    spare.write_bytes(bytes(left))
    fill(filler)
    spare.unlink()
    with driver.published(volume_id, tmp_path, wanted) as target:
        assert size_of(target) == before
        assert (target / "f1").read_text() == "kept"
        assert driver.stats(volume_id, target).volume_condition.abnormal
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                driver.node_expand(volume_id, target)
            # Where there is a little room the kernel is asked, and wants CAP_SYS_RESOURCE of ext4.
            assert caught.value.code() in {
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.FAILED_PRECONDITION,
            }
    empty(filler)
    run(*CHECKS[fs_type], image_of(pool, volume_id))
    if not left:
        with driver.published(volume_id, tmp_path, wanted) as target:
            assert size_of(target) > 0.8 * large
            assert (target / "f1").read_text() == "kept"
        assert not driver.condition(volume_id).abnormal
