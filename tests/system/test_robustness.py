"""What users, other programs and dying processes do to volumes, and must not achieve."""

import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, fill, mounted, run
from driver import (
    GIB,
    MIB,
    Driver,
    Mode,
    block_capability,
    from_volume,
    mount_capability,
    refused,
)

from pycsi.linux import btrfs, loop
from pycsi.proto import csi_pb2 as csi

DIRECTORY = {"type": "directory", "quota": "none"}


@pytest.mark.parametrize("where", ["volumes", "trash"])
def test_deletion_does_not_cross_mounts(
    driver: Driver, root: None, tmp_path: Path, pool: Path, where: str
) -> None:
    """What is mounted inside a volume is not deleted with it."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    if where == "volumes":
        volume_id = driver.create("v", parameters=DIRECTORY).volume_id
        inside = pool / "volumes" / volume_id / "data/sub"
    else:
        inside = pool / "trash/old/data/sub"
    inside.mkdir(parents=True)
    with mounted("--bind", precious, inside):
        if where == "volumes":
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "mounted"):
                driver.delete(volume_id)
        else:
            driver.restart()
    assert (precious / "file").read_text() == "kept"
    driver.restart()
    if where == "volumes":
        driver.delete(volume_id)
    assert not inside.exists()


def test_directories_as_deep_as_can_be(driver: Driver, root: None, tmp_path: Path) -> None:
    """A user's deepest tree neither hinders the deletion nor the next start."""
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    with driver.published(volume_id, tmp_path) as target:
        fd = os.open(target, os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("d", dir_fd=fd)
            inner = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
    driver.delete(volume_id)
    driver.restart()
    driver.reaped()


def test_subvolumes_that_users_made(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Subvolumes and read-only snapshots inside a btrfs volume are deleted with it."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    volume_id = driver.create("v").volume_id
    with driver.published(volume_id, tmp_path) as target:
        for place in (target / "a", target / "a/b", target / "c"):
            btrfs.create_subvolume(place)
            (place / "file").write_text("x")
        run("btrfs", "subvolume", "snapshot", "-r", target / "a", target / "frozen")
        run("btrfs", "subvolume", "snapshot", "-r", target / "c", target / "a/b/frozen")
    driver.delete(volume_id)
    driver.reaped()
    assert list((pool / "trash").iterdir()) == []
    assert list((pool / "volumes").iterdir()) == []


def test_record_of_another_volume(driver: Driver, root: None, pool: Path) -> None:
    """A copied volume directory is not taken for the volume that it was copied from."""
    kept = driver.create("kept", parameters=DIRECTORY).volume_id
    (pool / "volumes" / kept / "data/file").write_text("kept")
    driver.stop()
    shutil.copytree(pool / "volumes" / kept, pool / "volumes/copy@node-1")
    driver.start()
    assert driver.volume_ids() == [kept]
    with refused(grpc.StatusCode.FAILED_PRECONDITION, kept):
        driver.delete("copy@node-1")
    assert (pool / "volumes" / kept / "data/file").read_text() == "kept"


def test_place_that_is_taken(driver: Driver, pool: Path) -> None:
    """A directory that appeared at a volume's place is neither used nor deleted."""
    precious = pool / "volumes/x@node-1/data/important"
    precious.mkdir(parents=True)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "x@node-1"):
        driver.create("x", parameters=DIRECTORY)
    assert precious.exists()
    assert list((pool / "tmp").iterdir()) == []


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("what", ["data", "volume"])
def test_directory_that_somebody_deletes(
    driver: Driver, root: None, pool: Path, tmp_path: Path, what: str, restarted: bool
) -> None:
    """What is mounted of a directory that has gone is unmounted, also by a driver that is new."""
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging)
    driver.publish(volume_id, staging, target)
    place = pool / "volumes" / volume_id
    shutil.rmtree(place / "data" if what == "data" else place)
    if restarted:
        driver.restart()
    with refused(grpc.StatusCode.NOT_FOUND):
        driver.unpublish("other@node-1", target)
    driver.unpublish(volume_id, target)
    assert not target.exists()
    driver.unstage(volume_id, staging)
    assert not staging.is_mount()
    driver.delete(volume_id)


def test_device_that_somebody_keeps_open(driver: Driver, root: None, tmp_path: Path) -> None:
    """A raw device is not reported as gone, nor used again, while a process has it open."""
    wanted = block_capability()
    volume_id = driver.create("v", capability=wanted).volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, wanted)
    driver.publish(volume_id, staging, target, wanted)
    device = Path(f"/dev/loop{os.minor(target.stat().st_rdev)}")
    with device.open("rb"):
        driver.unpublish(volume_id, target)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, f"process {os.getpid()}"):
            driver.unstage(volume_id, staging)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "not staged"):
            driver.publish(volume_id, staging, target, wanted)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, f"process {os.getpid()}"):
            driver.stage(volume_id, staging, wanted)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            driver.delete(volume_id)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)


@pytest.mark.parametrize("part", [("--offset", "4096"), ("--sizelimit", "4194304")])
@pytest.mark.parametrize("wanted", [mount_capability(), block_capability()], ids=["image", "raw"])
def test_device_that_shows_a_part_of_the_image(
    driver: Driver,
    root: None,
    pool: Path,
    tmp_path: Path,
    wanted: csi.VolumeCapability,
    part: tuple[str, str],
) -> None:
    """A device with an offset or a limit, which somebody else attached, is never the volume's."""
    parameters = {} if wanted.HasField("block") else {"type": "image"}
    volume_id = driver.create("v", capability=wanted, parameters=parameters).volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    device = run("losetup", "--find", "--show", *part, image).strip()
    try:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, device, "a part of"):
            driver.stage(volume_id, tmp_path / "staging", wanted)
    finally:
        run("losetup", "--detach", device)
    with driver.published(volume_id, tmp_path, wanted):
        pass


def test_nothing_is_undone_on_a_full_pool_in_vain(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Without a free byte a volume can still be unpublished, unstaged and deleted."""
    driver = serve(filesystem("ext4", 256 * MIB))
    volume_id = driver.create("v", 16 * MIB, parameters=DIRECTORY).volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging)
    driver.publish(volume_id, staging, target)
    fill(target / "fill")
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        driver.create("w", 16 * MIB, type="image")
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)
    driver.reaped()
    driver.delete(driver.create("w", 16 * MIB, type="image").volume_id)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("how", ["mode", "flag"])
def test_grown_image_can_be_mounted_read_only(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    fs_type: str,
    how: str,
) -> None:
    """An image expanded while unused is staged read-only, and grows once it is writable."""
    driver = serve(filesystem("xfs", 3 * GIB))
    plain = mount_capability(fs_type)
    volume_id = driver.create("v", 300 * MIB, capability=plain, type="image").volume_id
    driver.expand(volume_id, 700 * MIB)
    wanted = mount_capability(fs_type, flags=["ro"])
    if how == "mode":
        wanted = mount_capability(fs_type, Mode.SINGLE_NODE_READER_ONLY)
    with driver.published(volume_id, tmp_path, wanted) as target:
        assert os.statvfs(target).f_flag & os.ST_RDONLY
    with driver.published(volume_id, tmp_path, plain) as target:
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize > 550 * MIB


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
def test_growth_through_a_read_only_publication(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, fs_type: str
) -> None:
    """The published path is read-only, the staged one is not: the filesystem can grow."""
    driver = serve(filesystem("ext4", 3 * GIB))
    wanted = mount_capability(fs_type)
    volume_id = driver.create("v", 300 * MIB, capability=wanted, type="image").volume_id
    with driver.published(volume_id, tmp_path, wanted, readonly=True) as target:
        driver.expand(volume_id, 700 * MIB)
        driver.node_expand(volume_id, target)
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize > 550 * MIB


@pytest.mark.parametrize("how", ["stage", "expand", "clone"])
def test_xfs_whose_growth_was_cut_off(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    how: str,
) -> None:
    """A power cut may leave old copies of a grown XFS' superblock, which a repair would believe."""
    driver = serve(where := filesystem("ext4", 3 * GIB))
    xfs = mount_capability("xfs")
    volume_id = driver.create("v", 300 * MIB, capability=xfs, type="image").volume_id
    image = where / "volumes" / volume_id / "disk.img"
    with image.open("rb") as file:
        blocks, groups = struct.unpack(">84xII", file.read(92))
        places = [number * blocks * 4096 for number in range(1, groups)]
        old = [os.pread(file.fileno(), 512, place) for place in places]
    driver.expand(volume_id, 700 * MIB)
    with driver.published(volume_id, tmp_path, xfs):
        pass
    with image.open("r+b") as file:
        for place, copy in zip(places, old, strict=True):
            os.pwrite(file.fileno(), copy, place)
    with pytest.raises(AssertionError, match=r"superblock [0-9] conflict"):
        run("xfs_repair", "-n", image)
    if how == "clone":
        source = from_volume(volume_id)
        volume_id = driver.create("w", 700 * MIB, capability=xfs, source=source).volume_id
        image = where / "volumes" / volume_id / "disk.img"
    elif how == "expand":
        with driver.published(volume_id, tmp_path, xfs) as target:
            driver.node_expand(volume_id, target)
    else:
        with driver.published(volume_id, tmp_path, xfs):
            pass
    run("xfs_repair", "-n", image)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("filler", [0x00, 0x3F, 0x7F, 0xFF])
@pytest.mark.parametrize(("fs_type", "sizes"), [("xfs", (4, 500)), ("ext4", (1024 + 0x18, 4))])
def test_superblock_that_is_damaged(
    driver: Driver, tmp_path: Path, pool: Path, fs_type: str, sizes: tuple[int, int], filler: int
) -> None:
    """Whatever it says of its sizes, the volume is refused, and nothing stays attached."""
    place, length = sizes
    capability = mount_capability(fs_type)
    volume_id = driver.create("v", 300 * MIB, capability=capability, type="image").volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    with image.open("r+b") as file:
        file.seek(place)
        file.write(bytes([filler]) * length)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, str(image)):
        driver.stage(volume_id, tmp_path / "staging", capability)
    assert loop.find(image) == []


@pytest.mark.parametrize("more", [4096, MIB])
def test_ext4_that_cannot_use_its_last_bytes(
    driver: Driver, root: None, tmp_path: Path, more: int
) -> None:
    """A remainder too small for a block group is no reason to refuse the volume."""
    volume_id = driver.create("v", GIB, type="image").volume_id
    driver.expand(volume_id, GIB + more)
    for _ in range(2):
        with driver.published(volume_id, tmp_path) as target:
            assert driver.node_expand(volume_id, target) == GIB + more


def test_growth_that_was_killed(driver: Driver, root: None, tmp_path: Path, pool: Path) -> None:
    """SIGKILL of driver and resize2fs while ext4 is grown: the next staging mends and goes on."""
    volume_id = driver.create("v", 64 * MIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        (target / "file").write_text("kept")
    driver.expand(volume_id, 4 * GIB)
    staging = tmp_path / "staging"
    staging.mkdir()
    image = pool / "volumes" / volume_id / "disk.img"
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        call = driver.node.NodeStageVolume.future(
            csi.NodeStageVolumeRequest(
                volume_id=volume_id,
                staging_target_path=str(staging),
                volume_capability=mount_capability(),
            )
        )
        deadline = time.monotonic() + 5
        while not call.done() and time.monotonic() < deadline:
            programs = subprocess.run(
                ["pgrep", "-f", f"resize2fs.*{image}"], capture_output=True, text=True, check=False
            ).stdout.split()
            if programs:
                time.sleep(delay)
                assert driver.process is not None
                driver.process.kill()
                subprocess.run(["kill", "-9", *programs], check=False, capture_output=True)
                break
        call.cancel()
        driver.stop(signal.SIGKILL)
        driver.start()
        driver.unstage(volume_id, staging)
    with driver.published(volume_id, tmp_path) as target:
        assert (target / "file").read_text() == "kept"
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize > 3.8 * GIB
    run("e2fsck", "-f", "-n", image)


@pytest.mark.parametrize(
    ("fs_type", "options"),
    [("ext4", "-O journal_dev"), ("ext4", "-b 65536"), ("btrfs", "-s 65536 -n 65536")],
)
def test_options_for_what_cannot_be_mounted(
    driver: Driver, root: None, pool: Path, fs_type: str, options: str
) -> None:
    """Options of mkfs whose result this kernel cannot mount are refused at creation."""
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "mkfsOptions"):
        driver.create("v", GIB, capability=mount_capability(fs_type), mkfsOptions=options)
    assert list((pool / "volumes").iterdir()) == []
    assert list((pool / "tmp").iterdir()) == []


def test_options_are_honoured(driver: Driver, root: None, tmp_path: Path) -> None:
    """Good mkfs options reach mkfs."""
    volume_id = driver.create("v", 64 * MIB, mkfsOptions="-N 12345 -O ^has_journal").volume_id
    with driver.published(volume_id, tmp_path) as target:
        assert 12000 < os.statvfs(target).f_files < 13000


def test_attachment_of_a_driver_that_no_longer_attaches(
    serve: Callable[..., Driver], pool: Path
) -> None:
    """Attaching was switched off: what was attached can still be deleted."""
    driver = serve(pool, options=("--enable-attach",))
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    driver.controller.ControllerPublishVolume(
        csi.ControllerPublishVolumeRequest(
            volume_id=volume_id, node_id="node-1", volume_capability=mount_capability()
        )
    )
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "attached"):
        driver.delete(volume_id)
    driver.stop()
    serve(pool).delete(volume_id)


def test_paths_above_a_pool(driver: Driver, root: None, tmp_path: Path) -> None:
    """A path that would hide the pool is refused."""
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "pool default"):
        driver.stage(volume_id, tmp_path)


def test_something_over_the_staged_path(driver: Driver, root: None, tmp_path: Path) -> None:
    """What somebody has mounted over the staged path is not published."""
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    staging = tmp_path / "staging"
    driver.stage(volume_id, staging)
    run("mount", "-t", "tmpfs", "tmpfs", staging)
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        driver.publish(volume_id, staging, tmp_path / "target")
    run("umount", staging)
    driver.unstage(volume_id, staging)


def test_damaged_notes(driver: Driver, root: None, tmp_path: Path, pool: Path) -> None:
    """Without readable notes a published volume still counts as published, and can be undone."""
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging)
    driver.publish(volume_id, staging, target)
    (pool / "volumes" / volume_id / "node.json").write_text("{")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "published"):
        driver.unstage(volume_id, staging)
    driver.unpublish(volume_id, target)
    assert not target.exists()
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)


def test_inline_volumes_are_not_persistent_ones(
    driver: Driver, root: None, tmp_path: Path, pool: Path
) -> None:
    """The id under which an inline volume is kept opens nothing."""
    target = tmp_path / "target"
    context = {"csi.storage.k8s.io/ephemeral": "true", "size": "32Mi"}
    driver.publish("csi-1", None, target, context=context)
    ours = next((pool / "volumes").iterdir()).name
    with refused(grpc.StatusCode.NOT_FOUND):
        driver.stage(ours, tmp_path / "staging")
    with refused(grpc.StatusCode.NOT_FOUND):
        driver.expand(ours, 64 * MIB)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "inline"):
        driver.delete(ours)
    assert target.is_mount()
    run("umount", target)
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        driver.publish("csi-1", None, target, context=context | {"size": "64Mi"})
    driver.unpublish("csi-1", target)
    assert list((pool / "volumes").iterdir()) == []


def test_pool_in_a_pool_by_another_path(
    driver: Driver, root: None, tmp_path: Path, pool: Path
) -> None:
    """A bind mount does not hide that one pool lies in another."""
    (pool / "tmp/inner").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    driver.stop()
    with mounted("--bind", pool / "tmp/inner", elsewhere):
        second = Driver(tmp_path / "second", [f"a={pool}", f"b={elsewhere}"])
        second.launch()
        assert second.process is not None
        assert second.process.wait(20) == 1
        second.channel.close()
        assert "lies in pool" in second.log
    driver.start()


def test_thick_volume_with_extended_options(driver: Driver, root: None, pool: Path) -> None:
    """Options of mkfs do not cost a thick volume its blocks."""
    volume_id = driver.create(
        "v", 64 * MIB, allocation="thick", mkfsOptions="-E stride=4"
    ).volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    assert image.stat().st_blocks * 512 >= 64 * MIB
    assert loop.find(image) == []


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_volumes_of_a_full_pool_can_be_used(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """Without a free byte a volume can still be staged and published, to delete files from it."""
    driver = serve(filesystem(kind, 512 * MIB))
    volume_id = driver.create("v", 16 * MIB, parameters=DIRECTORY).volume_id
    image_id = driver.create("i", 16 * MIB, type="image", allocation="thick").volume_id
    with driver.published(volume_id, tmp_path) as target:
        fill(target / "fill")
    with driver.published(image_id, tmp_path) as target:
        assert target.is_mount()
    with driver.published(volume_id, tmp_path) as target:
        (target / "fill").unlink()
    driver.delete(volume_id)


def test_raw_volume_staged_at_two_paths(driver: Driver, root: None, tmp_path: Path) -> None:
    """Unstaging one path does not take the device from the other."""
    wanted = block_capability()
    volume_id = driver.create("v", capability=wanted).volume_id
    first, second, target = tmp_path / "first", tmp_path / "second", tmp_path / "target"
    driver.stage(volume_id, first, wanted)
    driver.stage(volume_id, second, wanted)
    driver.unstage(volume_id, second)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, str(first)):
        driver.delete(volume_id)
    driver.publish(volume_id, first, target, wanted)
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, first)
    driver.delete(volume_id)


def test_damaged_notes_of_a_raw_volume(
    driver: Driver, root: None, tmp_path: Path, pool: Path
) -> None:
    """A raw volume whose notes are lost can be unpublished, unstaged and deleted."""
    wanted = block_capability()
    volume_id = driver.create("v", capability=wanted).volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, wanted)
    driver.publish(volume_id, staging, target, wanted)
    (pool / "volumes" / volume_id / "node.json").write_text("")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "published"):
        driver.unstage(volume_id, staging)
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)


@pytest.mark.parametrize("name", ["mkfs.btrfs", "btrfstune"])
def test_program_that_meets_an_unmount(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, name: str
) -> None:
    """Where a program of btrfs fails because some mount has gone meanwhile it is run again."""
    real = shutil.which(name)
    shims = tmp_path / "shims"
    shims.mkdir()
    shim = shims / name
    shim.write_text(
        "#!/bin/sh\n"
        f"if mkdir {shims}/failed 2>/dev/null; then\n"
        '  echo "ERROR: cannot check mount status of a.img: No such device or address" >&2\n'
        "  exit 1\n"
        "fi\n"
        f'exec {real} "$@"\n'
    )
    shim.chmod(0o755)
    driver = serve(filesystem("xfs", GIB), PATH=f"{shims}:{os.environ['PATH']}")
    capability = mount_capability("btrfs")
    volume_id = driver.create("v", 256 * MIB, capability=capability).volume_id
    copy = driver.create("w", 256 * MIB, capability=capability, source=from_volume(volume_id))
    assert (shims / "failed").is_dir()
    with driver.published(copy.volume_id, tmp_path, capability) as target:
        (target / "file").write_text("x")
