"""Stage and publish: the specification's tables, read-only, mount flags, restarts, bad paths."""

import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, run
from driver import GIB, MIB, Driver, Mode, block_capability, mount_capability, refused

from pycsi.linux import kernel
from pycsi.linux.kernel import Mount
from pycsi.proto import csi_pb2 as csi

KINDS = {
    "directory": ({"type": "directory", "quota": "none"}, mount_capability()),
    "image": ({"type": "image"}, mount_capability("ext4")),
    "block": ({}, block_capability()),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, root: None) -> str:
    """Return each kind of volume in turn."""
    return str(request.param)


@pytest.fixture
def volume_id(driver: Driver, kind: str) -> str:
    """Return a new volume of that kind."""
    parameters, capability = KINDS[kind]
    return driver.create("v", 32 * MIB, capability=capability, parameters=parameters).volume_id


def capability(kind: str, mode: csi.VolumeCapability.AccessMode.Mode) -> csi.VolumeCapability:
    return block_capability(mode) if kind == "block" else mount_capability("", mode)


def mounted(path: Path) -> list[Mount]:
    return [item for item in kernel.mountinfo() if item.target == str(path)]


@pytest.mark.parametrize(
    "row",
    [
        (Mode.SINGLE_NODE_MULTI_WRITER, None),
        (Mode.MULTI_NODE_MULTI_WRITER, None),
        (Mode.MULTI_NODE_SINGLE_WRITER, None),
        (Mode.MULTI_NODE_READER_ONLY, None),
        (Mode.SINGLE_NODE_SINGLE_WRITER, grpc.StatusCode.FAILED_PRECONDITION),
        (Mode.SINGLE_NODE_WRITER, grpc.StatusCode.FAILED_PRECONDITION),
        (Mode.SINGLE_NODE_READER_ONLY, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_second_publish(
    driver: Driver,
    tmp_path: Path,
    kind: str,
    volume_id: str,
    row: tuple[csi.VolumeCapability.AccessMode.Mode, grpc.StatusCode | None],
) -> None:
    """The same again is OK, other arguments are not, another target is as the table says."""
    mode, elsewhere = row
    wanted = capability(kind, mode)
    staging, other = tmp_path / f"staging-{volume_id}", tmp_path / "other"
    with driver.published(volume_id, tmp_path, wanted) as target:
        driver.stage(volume_id, staging, wanted)
        driver.publish(volume_id, staging, target, wanted)
        assert len(mounted(target)) == 1
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            driver.publish(volume_id, staging, target, wanted, readonly=True)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            driver.publish(volume_id, staging, target, wanted, context={"other": "context"})
        if elsewhere:
            with refused(elsewhere, str(target)):
                driver.publish(volume_id, staging, other, wanted)
            assert not other.exists()
        else:
            driver.publish(volume_id, staging, other, wanted)
            driver.unpublish(volume_id, other)
    assert not target.exists()
    driver.delete(volume_id)


def test_stage_with_other_arguments(driver: Driver, tmp_path: Path) -> None:
    """A second NodeStageVolume at one path must be like the first."""
    volume_id = driver.create("v", type="directory", quota="none").volume_id
    staging = tmp_path / "staging"
    driver.stage(volume_id, staging)
    for other in (
        mount_capability(mode=Mode.SINGLE_NODE_READER_ONLY),
        mount_capability(flags=["noatime"]),
        mount_capability("xfs"),
    ):
        with refused(grpc.StatusCode.ALREADY_EXISTS, str(staging)):
            driver.stage(volume_id, staging, other)
    driver.unstage(volume_id, staging)
    driver.unstage(volume_id, staging)


def test_in_use_is_not_deleted(driver: Driver, tmp_path: Path, kind: str, volume_id: str) -> None:
    """Staged or published volumes are not deleted, and published ones are not unstaged."""
    wanted = KINDS[kind][1]
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, wanted)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, str(staging)):
        driver.delete(volume_id)
    driver.publish(volume_id, staging, target, wanted)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target)):
        driver.unstage(volume_id, staging)
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        driver.delete(volume_id)
    assert driver.volume_ids() == [volume_id]
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)
    driver.delete(volume_id)


def test_publish_needs_staging(driver: Driver, tmp_path: Path, kind: str, volume_id: str) -> None:
    """Without a staged volume at the path that it names, NodePublishVolume is refused."""
    wanted = KINDS[kind][1]
    target = tmp_path / "target"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "staging_target_path"):
        driver.publish(volume_id, None, target, wanted)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not staged"):
        driver.publish(volume_id, tmp_path / "staging", target, wanted)
    assert not target.exists()


@pytest.mark.parametrize("how", ["flag", "mode", "option"])
@pytest.mark.parametrize("parameters", [{"type": "directory", "quota": "none"}, {"type": "image"}])
def test_read_only(
    driver: Driver, root: None, tmp_path: Path, how: str, parameters: dict[str, str]
) -> None:
    """A read-only publication refuses writes; other publications of the volume do not mind."""
    volume_id = driver.create("v", 32 * MIB, parameters=parameters).volume_id
    plain = mount_capability()
    wanted = {
        "flag": plain,
        "mode": mount_capability(mode=Mode.SINGLE_NODE_READER_ONLY),
        "option": mount_capability(flags=["ro"]),
    }[how]
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, plain)
    driver.publish(volume_id, staging, target, wanted, readonly=how == "flag")
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "file").write_text("no")
    (staging / "file").write_text("yes")
    assert (target / "file").read_text() == "yes"
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)


@pytest.mark.parametrize("parameters", [{"type": "directory", "quota": "none"}, {"type": "image"}])
def test_mount_flags_are_honoured(
    driver: Driver, root: None, tmp_path: Path, parameters: dict[str, str]
) -> None:
    """Flags of the mount are on the staged and on the published path."""
    wanted = mount_capability(flags=["noatime", "nodev,nosuid", "noexec"])
    volume_id = driver.create("v", 32 * MIB, capability=wanted, parameters=parameters).volume_id
    with driver.published(volume_id, tmp_path, wanted) as target:
        for path in (target, tmp_path / f"staging-{volume_id}"):
            assert {"noatime", "nodev", "nosuid", "noexec"} <= mounted(path)[0].options


def test_filesystem_options_are_honoured(driver: Driver, root: None, tmp_path: Path) -> None:
    """Options of the filesystem itself reach it; one that it does not know is refused."""
    volume_id = driver.create("v", 32 * MIB, type="image").volume_id
    wanted = mount_capability("ext4", flags=["commit=7"])
    with driver.published(volume_id, tmp_path, wanted) as target:
        assert "commit=7" in mounted(target)[0].super_options
    staging = tmp_path / "again"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "mount flag 1: ext4"):
        driver.stage(volume_id, staging, mount_capability("ext4", flags=["sesame=open"]))
    assert not mounted(staging)
    assert "sesame" not in driver.log
    driver.delete(volume_id)


def test_nothing_is_ever_formatted_when_staging(
    driver: Driver, root: None, tmp_path: Path, pool: Path
) -> None:
    """An image whose filesystem cannot be recognised is refused and left as it is."""
    volume_id = driver.create("v", 32 * MIB, type="image").volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    with image.open("r+b") as file:
        file.write(bytes(128 * 1024))
    before = image.read_bytes()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "no filesystem"):
        driver.stage(volume_id, tmp_path / "staging")
    assert image.read_bytes() == before


def test_restart_while_in_use(driver: Driver, tmp_path: Path, kind: str, volume_id: str) -> None:
    """A new driver process knows what is staged and published, and can undo it."""
    wanted = KINDS[kind][1]
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, wanted)
    driver.publish(volume_id, staging, target, wanted)
    driver.restart(9)
    driver.stage(volume_id, staging, wanted)
    driver.publish(volume_id, staging, target, wanted)
    assert len(mounted(target)) == 1
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        driver.delete(volume_id)
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)


def reboot(driver: Driver, kind: str, volume_id: str, staging: Path, target: Path) -> None:
    """Take away what a reboot takes away: the mounts, the device and the process."""
    driver.stop()
    run("umount", target)
    if kind == "block":
        listed = run("losetup", "-n", "-O", "NAME", "-j", driver.folder.parent / "pool/volumes"
                     / volume_id / "disk.img")  # fmt: skip
        for device in listed.split():
            run("losetup", "-d", device)
    else:
        run("umount", staging)
    driver.start()


def test_reboot(driver: Driver, tmp_path: Path, kind: str, volume_id: str) -> None:
    """All mounts and devices have gone: undoing is OK, and the volume can be used again."""
    wanted = KINDS[kind][1]
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, wanted)
    driver.publish(volume_id, staging, target, wanted)
    reboot(driver, kind, volume_id, staging, target)
    driver.unpublish(volume_id, target)
    assert not target.exists()
    driver.unstage(volume_id, staging)
    with driver.published(volume_id, tmp_path, wanted) as again:
        assert again.exists()
    driver.delete(volume_id)


def test_staged_elsewhere_after_a_reboot(
    driver: Driver, tmp_path: Path, kind: str, volume_id: str
) -> None:
    """Where a volume was staged before a reboot says nothing, though the directory is there."""
    wanted = KINDS[kind][1]
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, wanted)
    driver.publish(volume_id, staging, target, wanted)
    reboot(driver, kind, volume_id, staging, target)
    with driver.published(volume_id, tmp_path, wanted) as again:
        assert again.exists()
    driver.delete(volume_id)


def test_foreign_mounts_and_files_are_left_alone(
    driver: Driver, root: None, tmp_path: Path
) -> None:
    """What is not ours at a path is neither covered, unmounted nor removed."""
    volume_id = driver.create("v", type="directory", quota="none").volume_id
    staging, foreign, full = tmp_path / "staging", tmp_path / "foreign", tmp_path / "full"
    driver.stage(volume_id, staging)
    foreign.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", foreign)
    full.mkdir()
    (full / "precious").write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(full)
    for path in (foreign, full, link):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, path.name):
            driver.publish(volume_id, staging, path)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "something else"):
        driver.unpublish(volume_id, foreign)
    driver.unpublish(volume_id, full)
    driver.unpublish(volume_id, link)
    assert (full / "precious").read_text() == "precious"
    assert link.is_symlink()
    run("umount", foreign)
    driver.unstage(volume_id, staging)


def test_paths_in_a_pool_are_refused(driver: Driver, pool: Path, root: None) -> None:
    """The pool's own directories are not to be mounted over."""
    volume_id = driver.create("v", type="directory", quota="none").volume_id
    inside = pool / "volumes" / volume_id / "data"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "pool default"):
        driver.stage(volume_id, inside)
    assert not mounted(inside)


def test_stats(driver: Driver, tmp_path: Path, kind: str, volume_id: str) -> None:
    """Bytes and inodes of a mounted volume, the size of a device; NOT_FOUND where it is not."""
    wanted = KINDS[kind][1]
    with driver.published(volume_id, tmp_path, wanted) as target:
        usage = {item.unit: item for item in driver.stats(volume_id, target).usage}
        size = usage[csi.VolumeUsage.BYTES]
        if kind == "block":
            assert (size.total, size.used, size.available) == (32 * MIB, 0, 0)
        else:
            facts = os.statvfs(target)
            assert size.total == facts.f_blocks * facts.f_frsize
            assert usage[csi.VolumeUsage.INODES].total == facts.f_files
        for path in (tmp_path, target / "x", Path("/"), Path("some/path")):
            with refused(grpc.StatusCode.NOT_FOUND):
                driver.stats(volume_id, path)
            with refused(grpc.StatusCode.NOT_FOUND):
                driver.node_expand(volume_id, path)
    with refused(grpc.StatusCode.NOT_FOUND):
        driver.stats(volume_id, target)


def test_volume_of_a_replaced_pool_is_refused(driver: Driver, tmp_path: Path, root: None) -> None:
    """A context that names another pool is not served from this one."""
    volume = driver.create("v", type="directory", quota="none")
    context = dict(volume.volume_context)
    context["poolUUID"] = "11111111-2222-3333-4444-555555555555"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "poolUUID"[:4]):
        driver.stage(volume.volume_id, tmp_path / "staging", context=context)


def test_two_volumes_of_one_kind_side_by_side(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Two XFS and two btrfs images are mounted at the same time."""
    driver = serve(f"default={filesystem('xfs', 3 * GIB)}")
    for fs_type, size in (("xfs", 300 * MIB), ("btrfs", 256 * MIB)):
        wanted = mount_capability(fs_type)
        first = driver.create(f"{fs_type}-1", size, capability=wanted, type="image").volume_id
        second = driver.create(f"{fs_type}-2", size, capability=wanted, type="image").volume_id
        with (
            driver.published(first, tmp_path, wanted) as one,
            driver.published(second, tmp_path, wanted) as two,
        ):
            (one / "file").write_text("one")
            (two / "file").write_text("two")
            assert (one / "file").read_text() == "one"


def test_special_files_in_a_volume_do_not_hinder_deletion(
    driver: Driver, root: None, tmp_path: Path
) -> None:
    """Links, devices and deep trees in a directory are deleted, and nothing outside it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    volume_id = driver.create("v", type="directory", quota="none").volume_id
    with driver.published(volume_id, tmp_path) as target:
        (target / "link").symlink_to(outside)
        os.mknod(target / "device", stat.S_IFBLK | 0o600, os.makedev(7, 0))
        os.mkfifo(target / "pipe")
        deep = target
        for _ in range(300):
            deep /= "d"
            deep.mkdir()
        subprocess.run(["chattr", "+i", target / "pipe"], check=False, capture_output=True)
    driver.delete(volume_id)
    assert (outside / "file").read_text() == "kept"


@pytest.mark.parametrize("fs_type", ["ext4", "btrfs"])
def test_image_that_is_mounted_where_we_do_not_see_it(
    driver: Driver, root: None, tmp_path: Path, fs_type: str
) -> None:
    """A mount in another namespace keeps the image's one device; no second one is made."""
    wanted = mount_capability(fs_type)
    volume_id = driver.create("v", 128 * MIB, capability=wanted, type="image").volume_id
    staging = tmp_path / "staging"
    driver.stage(volume_id, staging, wanted)
    hidden = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"exec sleep 60 <{staging}"],
    )
    try:
        for _ in range(500):
            if Path(f"/proc/{hidden.pid}/comm").read_text().strip() == "sleep":
                break
            time.sleep(0.01)
        driver.unstage(volume_id, staging)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "another mount namespace"):
            driver.delete(volume_id)
        image = tmp_path / "pool/volumes" / volume_id / "disk.img"
        before = run("losetup", "-n", "-O", "NAME", "-j", image).split()
        assert len(before) == 1
        with driver.published(volume_id, tmp_path, wanted) as target:
            (target / "file").write_text("x")
            assert run("losetup", "-n", "-O", "NAME", "-j", image).split() == before
    finally:
        hidden.kill()
        hidden.wait()
    for _ in range(500):
        if not run("losetup", "-n", "-O", "NAME", "-j", image).split():
            break
        time.sleep(0.01)
    driver.delete(volume_id)
