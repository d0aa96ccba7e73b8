"""Health: each fault that a volume or a pool can have is made, and told by each RPC alike."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from conftest import FilesystemFactory, needs, run
from driver import GIB, MIB, Driver, block_capability, mount_capability, refused
from health import storage, unwell, well

from pycsi.linux import kernel, loop, losetup, mount


def lost_to_another_mount(driver: Driver, volume_id: str, target: Path) -> None:
    """Expect it to be told that something else is mounted where the volume was published."""
    mount.umount2(target)
    mount.mount("tmpfs", Path("none"), target)
    unwell(driver, volume_id, "MountReplaced", "tmpfs")
    mount.umount2(target)
    well(driver, volume_id)


def test_healthy(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Volumes of each kind are well, in use or not, also read-only, and after a reboot."""
    driver = serve(filesystem("btrfs", 2 * GIB))
    kinds = {
        "directory": (mount_capability(), {}),
        "ext4": (mount_capability("ext4"), {"type": "image"}),
        "xfs": (mount_capability("xfs"), {"type": "image"}),
        "btrfs": (mount_capability("btrfs"), {"type": "image"}),
        "block": (block_capability(), {}),
    }
    for name, (capability, parameters) in kinds.items():
        size = 16 * MIB if name in {"directory", "ext4", "block"} else 300 * MIB
        volume_id = driver.create(
            name, size, capability=capability, parameters=parameters
        ).volume_id
        well(driver, volume_id)
        for readonly in (False, True):
            with driver.published(volume_id, tmp_path, capability, readonly=readonly) as target:
                well(driver, volume_id)
                stats = driver.stats(volume_id, target)
                assert not stats.volume_condition.abnormal, stats.volume_condition.message
                assert stats.volume_condition.message
        (tmp_path / f"staging-{volume_id}").mkdir(exist_ok=True)
        well(driver, volume_id)


def test_missing_data(driver: Driver, root: None, pool: Path) -> None:
    """Data that is gone, or is not what it was."""
    directory = driver.create("d", type="directory", quota="none").volume_id
    image = driver.create("i", type="image").volume_id
    short = driver.create("s", type="image").volume_id
    other = driver.create("o", type="image").volume_id
    block = driver.create("b", capability=block_capability()).volume_id
    well(driver, directory, image, short, other, block)
    volumes = pool / "volumes"
    shutil.rmtree(volumes / directory / "data")
    (volumes / image / "disk.img").unlink()
    os.truncate(volumes / short / "disk.img", 4 * MIB)
    (volumes / other / "disk.img").write_bytes(bytes(64 * MIB))
    shutil.rmtree(volumes / block)
    unwell(driver, directory, "DataMissing", "directory")
    unwell(driver, image, "DataMissing", "image")
    unwell(driver, short, "ImageTruncated", "64 MiB")
    unwell(driver, other, "ForeignData", "foreign data")
    unwell(driver, block, "DataMissing")


def test_other_filesystem(driver: Driver, root: None, pool: Path) -> None:
    volume_id = driver.create("v", 320 * MIB, type="image").volume_id
    run("mkfs.xfs", "-q", "-f", pool / "volumes" / volume_id / "disk.img")
    unwell(driver, volume_id, "ForeignData", "xfs", "not ext4")


def test_image_that_was_replaced(driver: Driver, root: None, tmp_path: Path, pool: Path) -> None:
    """What is mounted is not the volume's image any more."""
    volume_id = driver.create("v", type="image").volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    with driver.published(volume_id, tmp_path) as target:
        aside = image.with_name("aside")
        image.rename(aside)
        shutil.copy(aside, image)
        unwell(driver, volume_id, "MountReplaced")
        stats = driver.stats(volume_id, target)
        assert stats.volume_condition.abnormal
        assert not stats.usage
        image.unlink()
        aside.rename(image)
        well(driver, volume_id)


def test_directory_that_another_mount_replaced(driver: Driver, root: None, tmp_path: Path) -> None:
    """It was seen to be well before it was ever staged; now something else is at its target."""
    volume_id = driver.create("v", type="directory", quota="none").volume_id
    well(driver, volume_id)
    with driver.published(volume_id, tmp_path) as target:
        well(driver, volume_id)
        lost_to_another_mount(driver, volume_id, target)


def test_directory_that_came_back(driver: Driver, root: None, tmp_path: Path, pool: Path) -> None:
    """What is noted of a volume counts also if it was away when it was looked at first."""
    volume_id = driver.create("v", type="directory", quota="none").volume_id
    place = pool / "volumes" / volume_id
    with driver.published(volume_id, tmp_path) as target:
        aside = place.rename(pool / "aside")
        unwell(driver, volume_id, "DataMissing")
        aside.rename(place)
        lost_to_another_mount(driver, volume_id, target)


def test_lost_loop_device(driver: Driver, root: None, tmp_path: Path, pool: Path) -> None:
    """A raw volume's device was taken away below its pod."""
    volume_id = driver.create("v", capability=block_capability()).volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    with driver.published(volume_id, tmp_path, block_capability()) as target:
        (device,) = loop.find(image)
        losetup.detach(device)
        unwell(driver, volume_id, "MountReplaced")
        assert driver.stats(volume_id, target).volume_condition.abnormal


def test_filesystem_gone_read_only(driver: Driver, root: None, tmp_path: Path) -> None:
    volume_id = driver.create("v", type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        run("mount", "-o", "remount,ro", tmp_path / f"staging-{volume_id}")
        # The mount itself stays writable: that is how the kernel does it on an error.
        run("mount", "-o", "remount,bind,rw", tmp_path / f"staging-{volume_id}")
        unwell(driver, volume_id, "FilesystemReadOnly")
        assert driver.stats(volume_id, target).volume_condition.abnormal


def test_errors_of_ext4(driver: Driver, root: None, tmp_path: Path) -> None:
    """The filesystem's own counter is told, while it is mounted and afterwards."""
    volume_id = driver.create("v", type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        device = next(item.source for item in kernel.mountinfo() if item.target == str(target))
        counters = Path(f"/sys/fs/ext4/{Path(device).name}")
        (counters / "trigger_fs_error").write_text("test")
        while not int((counters / "errors_count").read_text()):  # the kernel counts it later
            time.sleep(0.01)
        unwell(driver, volume_id, "FilesystemErrors")
    unwell(driver, volume_id, "FilesystemErrors")


def test_xfs_that_was_shut_down(driver: Driver, root: None, tmp_path: Path) -> None:
    capability = mount_capability("xfs")
    volume_id = driver.create("v", 300 * MIB, capability=capability, type="image").volume_id
    with driver.published(volume_id, tmp_path, capability) as target:
        run("xfs_io", "-x", "-c", "shutdown", target)
        unwell(driver, volume_id, "FilesystemShutDown")


def test_limit_that_was_changed(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    volume_id = driver.create("v").volume_id
    well(driver, volume_id)
    run("btrfs", "qgroup", "limit", "32M", pool / "volumes" / volume_id / "data")
    unwell(driver, volume_id, "LimitDiffers", "its limit is 32 MiB")
    with driver.published(volume_id, tmp_path):
        well(driver, volume_id)


def test_nearly_full(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A volume that is nearly full, and those on a disk that is."""
    pool = filesystem("btrfs", GIB)
    driver = serve(f"default={pool},overcommit=10")
    full = driver.create("full", 32 * MIB).volume_id
    other = driver.create("other", 32 * MIB).volume_id
    thick = driver.create("thick", 32 * MIB, type="image", allocation="thick").volume_id
    with driver.published(full, tmp_path) as target:
        (target / "file").write_bytes(os.urandom(31 * MIB))
        os.sync()
        unwell(driver, full, "NearlyFull")
        well(driver, other)
    with (pool.parent / "ballast").open("wb") as ballast:
        try:
            while ballast.write(os.urandom(4 * MIB)):
                ballast.flush()
        except OSError:
            pass
    os.sync()
    unwell(driver, other, "PoolNearlyFull")
    assert storage(driver).keys() == {"PoolNearlyFull"}
    well(driver, thick)
    (pool.parent / "ballast").unlink()


def test_pool_that_was_replaced(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    pool = filesystem("ext4", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        run("mount", "-t", "tmpfs", "tmpfs", pool)
        try:
            unwell(driver, volume_id, "PoolMissing", "pool default")
            assert storage(driver).keys() == {"PoolMissing"}
            stats = driver.stats(volume_id, target)
            assert stats.volume_condition == driver.condition(volume_id)
            with refused(grpc.StatusCode.NOT_FOUND):
                driver.stats(volume_id, tmp_path / "elsewhere")
        finally:
            run("umount", pool)
        well(driver, volume_id)


def test_command(driver: Driver, root: None, pool: Path) -> None:
    """`pycsi get volumes` tells the same, without the driver."""
    volume_id = driver.create("v", type="image").volume_id
    driver.snapshot("s", volume_id)
    (pool / "volumes" / volume_id / "disk.img").unlink()
    driver.stop()
    said = {
        what: run(sys.executable, "-m", "pycsi", "get", what, f"--pool={driver.pools[0]}")
        for what in ("volumes", "snapshots", "pools")
    }
    assert "missing" in said["volumes"]
    assert "s@node-1" in said["snapshots"]
    driver.start()


def use_up_inodes(folder: Path, *, leave: int = 0) -> Path:
    """Make empty files until at most `leave` inodes are free; return the folder they are in."""
    many = folder / "many"
    many.mkdir()
    for number in range(1_000_000):
        if os.statvfs(folder).f_favail <= leave:
            return many
        os.mknod(many / str(number))
    raise AssertionError("there is no end of inodes")


def test_full_inode_table(root: None, driver: Driver, tmp_path: Path) -> None:
    """An ext4 without free inodes takes no file more, however much room it has."""
    wanted = mount_capability("ext4")
    options = {"type": "image", "mkfsOptions": "-N 256"}
    volume_id = driver.create("v", 32 * MIB, capability=wanted, parameters=options).volume_id
    with driver.published(volume_id, tmp_path, wanted) as target:
        well(driver, volume_id)
        many = use_up_inodes(target)
        unwell(driver, volume_id, "FewInodes", "256 of 256")
        assert driver.stats(volume_id, target).volume_condition.abnormal
        shutil.rmtree(many)
        well(driver, volume_id)


def test_inodes_without_a_limit(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """XFS and btrfs make inodes as they are wanted: many files are no fault there."""
    driver = serve(filesystem("btrfs", 2 * GIB))
    for kind in ("xfs", "btrfs"):
        wanted = mount_capability(kind)
        volume_id = driver.create(kind, 300 * MIB, capability=wanted, type="image").volume_id
        with driver.published(volume_id, tmp_path, wanted) as target:
            for number in range(5000):
                os.mknod(target / str(number))
            well(driver, volume_id)


def test_image_that_cannot_grow_for_want_of_inodes(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """It is used as it is, and the log says what the pool's disk lacks."""
    needs("setpriv", met=shutil.which("setpriv") is not None)
    # With this capability the kernel grows a mounted ext4, which takes no file.
    wrapper = ("setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource")
    pool = filesystem("ext4", GIB, "-N", "600")
    driver = serve(pool, wrapper=wrapper)
    image = driver.create("i", 32 * MIB, type="image").volume_id
    driver.expand(image, 256 * MIB)
    many = use_up_inodes(pool.parent)
    with driver.published(image, tmp_path):
        assert "the pool's disk has no inode free" in driver.log
    shutil.rmtree(many)
    with driver.published(image, tmp_path) as target:
        assert driver.stats(image, target).usage[0].total > 200 * MIB


def test_full_inode_table_of_the_pool(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """Nothing new is promised there, with that reason; directories on it are unwell."""
    pool = filesystem("ext4", GIB, "-N", "600")
    driver = serve(pool)
    parameters = {"type": "directory", "quota": "none"}
    directory = driver.create("d", 32 * MIB, parameters=parameters).volume_id
    image = driver.create("i", 32 * MIB, type="image").volume_id
    well(driver, directory, image)
    many = use_up_inodes(pool.parent, leave=5)
    unwell(driver, directory, "PoolFewInodes")
    well(driver, image)
    assert driver.capacity().available_capacity == 0
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "inodes", "pool default"):
        driver.create("v", 32 * MIB, type="image")
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "inodes"):
        driver.snapshot("s", image)
    assert driver.create("i", 32 * MIB, type="image").volume_id == image
    shutil.rmtree(many)
    well(driver, directory, image)
    driver.create("v", 32 * MIB, type="image")
