"""Directories limited by project quota on XFS and ext4, on a kernel that has it.

`make test-vm` runs these in a virtual machine. Unprivileged writers are used: the kernel does not
hold a process with CAP_SYS_RESOURCE to an ext4 quota.
"""

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trees
from conftest import FilesystemFactory
from driver import GIB, MIB, NODE, Driver, from_snapshot, from_volume, refused
from exports import bring, export, to
from terminal import piped
from vm.conftest import limiting_pool

from pycsi.linux import quota
from pycsi.linux.libc import system_call
from pycsi.proto import csi_pb2 as csi

REFUSALS = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


Q_XQUOTAON = 0x5801
Q_XQUOTAOFF = 0x5802


def enforce(pool: Path, command: int) -> None:
    """Switch the enforcement of project limits on or off, as quotaon and quotaoff do."""
    control = system_call(443, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)
    fd = os.open(pool, os.O_RDONLY)
    try:
        flags = ctypes.c_uint(quota.FS_QUOTA_PDQ_ENFD)
        control(fd, command << 8 | quota.PRJQUOTA, 0, ctypes.byref(flags), path=pool)
    finally:
        os.close(fd)


def write_as_nobody(target: Path, size: int) -> tuple[int, str]:
    """Write `size` bytes as an unprivileged user; return what went in, and what was said."""
    target.parent.chmod(0o777)
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=64k", f"count={size >> 16}"]
    done = subprocess.run(
        [*command, "conv=fsync"], user=65534, group=65534, extra_groups=[],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert target.exists(), f"dd has ended with {done.returncode}: {done.stderr}"
    return target.stat().st_size, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory that an unprivileged user can pass through."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o711)
    return tmp_path


def test_directory_is_limited(pool: Path, serve: Callable[..., Driver], place: Path) -> None:
    """Writes past the limit fail, statvfs shows the limit, and a raised limit counts at once."""
    driver = serve(pool)
    volume = driver.create("data", 64 * MIB)
    assert volume.volume_context["type"] == "directory"
    assert "project quota" in volume.volume_context["reason"]
    data = pool / "volumes" / volume.volume_id / "data"
    project = quota.project_of(data)
    assert project
    assert quota.usage(data, project).limit == 64 * MIB
    with driver.published(volume.volume_id, place) as target:
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize == 64 * MIB
        written, said = write_as_nobody(target / "fill", 128 * MIB)
        assert any(reason in said for reason in REFUSALS)
        assert 60 * MIB < written <= 64 * MIB
        usage = driver.stats(volume.volume_id, target).usage
        assert usage[0].total == 64 * MIB
        assert 60 * MIB < usage[0].used <= 64 * MIB
        assert usage[1].unit == csi.VolumeUsage.INODES
        assert not driver.expand(volume.volume_id, 128 * MIB).node_expansion_required
        assert driver.node_expand(volume.volume_id, target) == 128 * MIB
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize == 128 * MIB
        written, said = write_as_nobody(target / "more", 128 * MIB)
        assert any(reason in said for reason in REFUSALS)
        assert 56 * MIB < written <= 64 * MIB
    driver.delete(volume.volume_id)
    driver.reaped()
    assert quota.usage(pool, project).limit == 0


def test_adopted_directory_is_limited(
    pool: Path, serve: Callable[..., Driver], place: Path
) -> None:
    """The whole tree counts for a project of the driver, and when undone for its old one again."""
    driver = serve(pool)
    folder = pool.parent / "drive" / "old"
    folder.mkdir(parents=True)
    quota.set_project(folder, 4711)
    quota.set_limit(pool.parent, 4711, 32 * MIB)
    (folder / "deep").mkdir()
    (folder / "file").write_bytes(os.urandom(4 * MIB))
    (folder / "deep/file").write_bytes(os.urandom(4 * MIB))
    words = ["adopt", f"--from={folder}", "--layout=bare", "--yes", f"--node-id={NODE}"]
    words += [f"--pool=default={pool}"]
    refused = piped(*words, "--size=2Mi")
    assert "it holds 8" in refused.stderr
    assert quota.project_of(folder) == 4711
    assert piped(*words, "--size=64Mi").returncode == 0
    data = pool / "volumes" / f"old@{NODE}" / "data"
    project = quota.project_of(data)
    assert project not in {0, 4711}
    counted = quota.usage(pool, project)
    assert (counted.limit, quota.usage(pool, 4711).used) == (64 * MIB, 0)
    assert counted.used >= 8 * MIB
    with driver.published(f"old@{NODE}", place) as target:
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize == 64 * MIB
        target.chmod(0o777)
        written, said = write_as_nobody(target / "deep/fill", 128 * MIB)
        assert any(reason in said for reason in REFUSALS)
        assert 40 * MIB < written <= 60 * MIB
        (target / "deep/fill").unlink()
    assert piped("adopt", "--undo", f"old@{NODE}", f"--pool=default={pool}").returncode == 0
    assert quota.project_of(folder) == quota.project_of(folder / "deep") == 4711
    assert quota.usage(pool, project).limit == quota.usage(pool, project).used == 0
    assert quota.usage(pool, 4711).used >= 8 * MIB


def test_project_ids_are_never_given_twice(
    pool: Path, serve: Callable[..., Driver], place: Path
) -> None:
    """Ids differ over deletions, restarts and two pools on one filesystem."""
    second = pool.parent / "second"
    second.mkdir()
    driver = serve(pool, f"second={second}")
    seen: list[int] = []
    for number in range(6):
        name = "second" if number % 2 else "default"
        volume = driver.create(f"v{number}", MIB, pool=name)
        data = (second if number % 2 else pool) / "volumes" / volume.volume_id / "data"
        seen.append(quota.project_of(data))
        driver.delete(volume.volume_id)
        if number == 3:
            driver.restart(9)
    assert len(set(seen)) == len(seen)
    assert 0 not in seen


def test_another_limit_is_set_right_when_staging(
    pool: Path, serve: Callable[..., Driver], place: Path
) -> None:
    """Somebody changed the limit behind the driver's back: staging sets the volume's own."""
    driver = serve(pool)
    volume = driver.create("data", 64 * MIB)
    data = pool / "volumes" / volume.volume_id / "data"
    quota.set_limit(data, quota.project_of(data), 32 * MIB)
    condition = driver.condition(volume.volume_id)
    assert condition.abnormal
    assert "its limit is 32 MiB" in condition.message
    with driver.published(volume.volume_id, place) as target:
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize == 64 * MIB
    driver.delete(volume.volume_id)


def test_copies_are_limited_for_themselves(
    pool: Path, serve: Callable[..., Driver], place: Path
) -> None:
    """A snapshot counts for nobody; a volume restored from it, or cloned, has its own limit."""
    driver = serve(pool)
    volume = driver.create("data", 64 * MIB)
    data = pool / "volumes" / volume.volume_id / "data"
    with driver.published(volume.volume_id, place) as target:
        write_as_nobody(target / "fill", 32 * MIB)
        os.link(target / "fill", target / "link")
        snapshot = driver.snapshot("s", volume.volume_id)
        used = quota.usage(data, quota.project_of(data)).used
        assert 32 * MIB <= used < 34 * MIB
    held = pool / "snapshots" / snapshot.snapshot_id / "data"
    assert quota.project_of(held) == 0
    sources = {"r": from_snapshot(snapshot.snapshot_id), "c": from_volume(volume.volume_id)}
    for name, source in sources.items():
        copy = driver.create(name, 128 * MIB, source=source)
        own = pool / "volumes" / copy.volume_id / "data"
        project = quota.project_of(own)
        assert project not in {0, quota.project_of(data)}
        assert quota.usage(own, project).limit == 128 * MIB
        assert 32 * MIB <= quota.usage(own, project).used < 34 * MIB
        with driver.published(copy.volume_id, place) as target:
            assert (target / "link").samefile(target / "fill")
            written, said = write_as_nobody(target / "more", 128 * MIB)
            assert any(reason in said for reason in REFUSALS)
            assert 90 * MIB < written <= 96 * MIB
        driver.delete(copy.volume_id)
    driver.delete_snapshot(snapshot.snapshot_id)
    driver.delete(volume.volume_id)


def test_unlimited_source_that_holds_too_much(
    pool: Path, serve: Callable[..., Driver], place: Path
) -> None:
    """A copy with a limit is not made where it would begin beyond it."""
    driver = serve(pool)
    volume = driver.create("data", 16 * MIB, quota="none")
    with driver.published(volume.volume_id, place) as target:
        write_as_nobody(target / "fill", 32 * MIB)
    source = from_volume(volume.volume_id)
    with pytest.raises(grpc.RpcError) as refusal:
        driver.create("c", 16 * MIB, source=source)
    error: Any = refusal.value
    assert error.code() in {grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert driver.create("d", 64 * MIB, source=source).capacity_bytes == 64 * MIB
    assert set(driver.volume_ids()) == {"d@node-1", volume.volume_id}


def test_without_limits_nothing_is_enforced_and_it_says_so(
    pool: Path, serve: Callable[..., Driver], place: Path
) -> None:
    """A volume with quota none has no project limit of its own."""
    driver = serve(pool)
    volume = driver.create("data", 64 * MIB, quota="none")
    with driver.published(volume.volume_id, place) as target:
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize > GIB
    driver.delete(volume.volume_id)


def test_a_mounted_ext4_image_grows(pool: Path, serve: Callable[..., Driver], place: Path) -> None:
    """With CAP_SYS_RESOURCE a mounted ext4 grows online."""
    driver = serve(pool)
    volume = driver.create("data", 64 * MIB, type="image")
    with driver.published(volume.volume_id, place) as target:
        driver.expand(volume.volume_id, 128 * MIB)
        assert driver.node_expand(volume.volume_id, target, 128 * MIB) == 128 * MIB
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize > 110 * MIB
    driver.delete(volume.volume_id)


def test_limits_that_are_not_enforced(
    pool: Path, serve: Callable[..., Driver], place: Path
) -> None:
    """Enforcement is switched off below the driver, and on again: it says so, and promises less."""
    driver = serve(pool)
    volume_id = driver.create("data", 64 * MIB).volume_id
    enforce(pool, Q_XQUOTAOFF)
    try:
        condition = driver.condition(volume_id)
        assert condition.abnormal
        assert "not enforced" in condition.message
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "not enforced"):
            driver.create("more", 64 * MIB, type="directory")
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "not enforced"):
            driver.expand(volume_id, 128 * MIB)
        assert driver.capacity(type="directory").available_capacity == 0
        assert driver.create("image", 64 * MIB).volume_context["type"] == "image"
        with driver.published(volume_id, place) as target:
            assert driver.stats(volume_id, target).usage[0].total > 64 * MIB
    finally:
        enforce(pool, Q_XQUOTAON)
    assert not driver.condition(volume_id).abnormal
    driver.delete(driver.create("more", 64 * MIB, type="directory").volume_id)
    driver.delete(volume_id)
    driver.delete("image@node-1")


def test_import_is_limited(pool: Path, serve: Callable[..., Driver], tmp_path: Path) -> None:
    """A directory that is imported has its files counted, and never more than its limit."""
    driver = serve(pool)
    made = driver.create("v", 64 * MIB)
    trees.make(pool / "volumes" / made.volume_id / "data", privileged=True)
    export(driver, "v", tmp_path / "file")
    again = bring(driver, tmp_path / "file", "w", "--privileged-nodes")
    data = pool / "volumes" / again / "data"
    assert trees.describe(data) == trees.describe(pool / "volumes" / made.volume_id / "data")
    counted = quota.usage(data, quota.project_of(data))
    assert counted.limit == 64 * MIB
    assert counted.used > 3 * MIB
    free = driver.create("free", 8 * MIB, parameters={"type": "directory", "quota": "none"})
    (pool / "volumes" / free.volume_id / "data" / "large").write_bytes(os.urandom(32 * MIB))
    export(driver, "free", tmp_path / "large")
    done = piped("import", tmp_path / "large", "x", *to(driver), "-p", "quota=required")
    assert (done.returncode, "size" in done.stderr) == (1, True)
    assert list((pool / "tmp").iterdir()) == []


@pytest.mark.parametrize("kinds", [("xfs", "ext4"), ("ext4", "btrfs"), ("btrfs", "xfs")])
def test_moved_directory_is_limited(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], place: Path, kinds: tuple[str, str]
) -> None:
    """In another pool, by whatever limits directories there, and again in its first one."""
    pools = {
        name: filesystem(kind, 2 * GIB) if kind == "btrfs" else limiting_pool(filesystem, kind)
        for name, kind in zip(("one", "two"), kinds, strict=True)
    }
    driver = serve(*(f"{name}={path}" for name, path in pools.items()))
    made = driver.create("v", 64 * MIB, parameters={"pool": "one", "type": "directory"})
    assert made.volume_context["type"] == "directory"
    (pools["one"] / "volumes" / made.volume_id / "data" / "file").write_bytes(os.urandom(8 * MIB))
    for pool in ("two", "one"):
        words = ["move", made.volume_id, "--to-pool", pool, f"--endpoint={driver.socket}"]
        done = piped(*words)
        assert done.returncode == 0, done.stderr
        with driver.published(made.volume_id, place) as target:
            assert (target / "file").stat().st_size == 8 * MIB
            used = driver.stats(made.volume_id, target).usage[0]
            assert (used.total, used.used >= 8 * MIB) == (64 * MIB, True)
            written, said = write_as_nobody(target / "fill", 128 * MIB)
            assert any(reason in said for reason in REFUSALS)
            assert 40 * MIB < written <= 56 * MIB
            (target / "fill").unlink()
