"""The health of pools, made ill for real: their own, and what it means for their volumes."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, injected, mounted, needs, run
from driver import GIB, MIB, Driver, refused
from health import storage, unwell, well

from pycsi.linux import kernel
from pycsi.proto import csi_pb2 as csi

Serve = Callable[..., Driver]


def two_volumes(driver: Driver) -> list[str]:
    """Make a directory and an image, and return their ids."""
    made = [
        driver.create("d", type="directory", quota="none").volume_id,
        driver.create("i", type="image").volume_id,
    ]
    well(driver, *made)
    assert storage(driver) == {}
    return made


def reasons(health: csi.VolumeHealth) -> list[str]:
    return [entry.reason for entry in health.health_statuses]


def test_pool_gone_read_only(filesystem: FilesystemFactory, serve: Serve) -> None:
    """Its volumes can be read: they are degraded, no more."""
    pool = filesystem("ext4", GIB)
    driver = serve(pool)
    made = two_volumes(driver)
    run("mount", "-o", "remount,ro", pool.parent)
    for volume_id in made:
        assert reasons(unwell(driver, volume_id, "PoolReadOnly", "default")) == ["PoolReadOnly"]
    assert storage(driver).keys() == {"PoolReadOnly"}
    run("mount", "-o", "remount,rw", pool.parent)
    well(driver, *made)
    assert storage(driver) == {}


def test_another_pool_at_the_path(filesystem: FilesystemFactory, serve: Serve) -> None:
    """What is not in another pool is not lost: its own disk may come back."""
    pool, other = filesystem("ext4", GIB), filesystem("ext4", GIB)
    serve(other).stop()
    driver = serve(pool)
    made = two_volumes(driver)
    with mounted("--bind", other, pool):
        for volume_id in made:
            health = unwell(driver, volume_id, "PoolMissing", "holds pool")
            assert reasons(health) == ["PoolMissing"]
        assert storage(driver).keys() == {"PoolMissing"}
    well(driver, *made)


def test_errors_of_a_pool(filesystem: FilesystemFactory, serve: Serve) -> None:
    """What the pool's ext4 counts is told of each volume in it, beside the volume's own faults."""
    pool = filesystem("ext4", GIB)
    driver = serve(pool)
    directory, image = two_volumes(driver)
    disk = kernel.topmost(pool.parent)
    assert disk
    counters = Path("/sys/fs/ext4", Path(disk.source).name)
    (counters / "trigger_fs_error").write_text("test")
    while not int((counters / "errors_count").read_text()):  # the kernel counts it later
        time.sleep(0.01)
    unwell(driver, directory, "PoolErrors", "errors")
    assert storage(driver).keys() == {"PoolErrors"}
    os.truncate(pool / "volumes" / image / "disk.img", MIB)
    assert reasons(unwell(driver, image, "ImageTruncated"))[0] == "ImageTruncated"
    unwell(driver, image, "PoolErrors")


def test_pool_that_was_shut_down(filesystem: FilesystemFactory, serve: Serve) -> None:
    """After an error of its disk nothing is told to be lost: it may come back."""
    pool = filesystem("xfs", GIB)
    driver = serve(pool)
    made = two_volumes(driver)
    run("xfs_io", "-x", "-c", "shutdown", pool.parent)
    for volume_id in made:
        health = unwell(driver, volume_id, "PoolUnreadable", "default")
        assert reasons(health) == ["PoolUnreadable"]
    assert storage(driver).keys() == {"PoolUnreadable"}
    driver.stop()
    run("umount", pool.parent)
    run("mount", "-o", "loop", pool.parent.with_suffix(".img"), pool.parent)
    driver.start()
    well(driver, *made)


def test_pools_that_are_missing(
    filesystem: FilesystemFactory, serve: Serve, pool: Path, tmp_path: Path
) -> None:
    """Pools with the same fault are told of together; one that is there is not among them."""
    unmounted = filesystem("ext4", GIB)
    missing = tmp_path / "nowhere" / "pool"
    driver = serve(f"default={pool}", f"gone={unmounted}", f"never={missing}")
    volume_id = driver.create("v", type="directory", quota="none", pool="gone").volume_id
    assert "never" in storage(driver)["PoolMissing"].message
    aside = unmounted.rename(unmounted.with_name("aside"))
    health = unwell(driver, volume_id, "PoolMissing", "gone")
    assert reasons(health) == ["PoolMissing"]
    message = storage(driver)["PoolMissing"].message
    assert "gone" in message
    assert "never" in message
    assert "default" not in message.partition(":")[0]
    aside.rename(unmounted)
    well(driver, volume_id)


@pytest.fixture
def hidden(root: None) -> Iterator[Callable[[Path], None]]:
    """Return a function that mounts something over a directory."""
    with contextlib.ExitStack() as hiding:

        def hide(place: Path) -> None:
            hiding.enter_context(mounted("-t", "tmpfs", "none", place))

        yield hide


@pytest.mark.parametrize("over", ["volumes", "volumes/{}"])
def test_data_that_something_hides(
    driver: Driver, pool: Path, hidden: Callable[[Path], None], over: str
) -> None:
    """What cannot be seen for a mount over it is not lost."""
    for volume_id in two_volumes(driver):
        hidden(pool / over.format(volume_id))
        health = unwell(driver, volume_id, "MountReplaced", "hidden", "tmpfs")
        assert reasons(health) == ["MountReplaced"]


@pytest.mark.parametrize("quota", ["none", "required"])
def test_data_that_looks_as_it_should(
    filesystem: FilesystemFactory, serve: Serve, quota: str
) -> None:
    """What is mounted over a volume's data is not the volume, however much it looks like it."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    directory = driver.create("d", type="directory", quota=quota).volume_id
    image = driver.create("i", type="image").volume_id
    well(driver, directory, image)
    data, disk = pool / "volumes" / directory / "data", pool / "volumes" / image / "disk.img"
    copy = shutil.copy(disk, pool.parent)
    with mounted("-t", "tmpfs", "none", data), mounted("--bind", copy, disk):
        for volume_id in (directory, image):
            health = unwell(driver, volume_id, "MountReplaced", "hidden")
            assert reasons(health) == ["MountReplaced"]
    well(driver, directory, image)


def test_directory_that_cannot_be_read(root: None, serve: Serve, pool: Path) -> None:
    """What the kernel refuses to show is out of reach, and not lost."""
    needs("setpriv", met=shutil.which("setpriv") is not None)
    powers = "-dac_override,-dac_read_search"
    driver = serve(pool, wrapper=("setpriv", "--bounding-set", powers, "--inh-caps", powers))
    for volume_id in two_volumes(driver):
        place = pool / "volumes" / volume_id
        place.chmod(0)
        health = unwell(driver, volume_id, "Unreadable", "Permission denied")
        assert reasons(health) == ["Unreadable"]
        place.chmod(0o700)
        well(driver, volume_id)


@pytest.mark.parametrize("fault", ["EIO", "EUCLEAN"])
def test_notes_that_cannot_be_read(
    root: None, driver: Driver, pool: Path, tmp_path: Path, fault: str
) -> None:
    """The disk's error is told, whichever file of the volume it is in."""
    volume_id = driver.create("d", type="directory", quota="none").volume_id
    with driver.published(volume_id, tmp_path):
        notes = pool / "volumes" / volume_id / "node.json"
        with injected(driver, "openat", f"error={fault}", "-P", str(notes)):
            assert reasons(unwell(driver, volume_id, "Unreadable")) == ["Unreadable"]
        well(driver, volume_id)


@pytest.mark.parametrize("fault", ["EMFILE", "ENOMEM"])
@pytest.mark.parametrize("file", ["volumes/i@node-1/disk.img", "pool.json"])
def test_driver_that_lacks_what_it_takes_to_look(
    root: None, driver: Driver, pool: Path, fault: str, file: str
) -> None:
    """Then nothing is known of the volume, which is neither ill nor well."""
    volume_id = driver.create("i", type="image").volume_id
    with injected(driver, "openat", f"error={fault}", "-P", str(pool / file)):
        for ask in (driver.health, driver.node_health):
            with refused(grpc.StatusCode.ABORTED, "cannot be examined"):
                ask(volume_id)
        assert driver.unwell() == []
        assert "not examined" in driver.condition(volume_id).message
        if file == "pool.json":
            with refused(grpc.StatusCode.ABORTED, "not examined"):
                driver.storage_health()
    well(driver, volume_id)


def test_command_that_lacks_what_it_takes_to_look(root: None, driver: Driver, pool: Path) -> None:
    """`pycsi get volumes` lists the volume all the same."""
    needs("strace", met=shutil.which("strace") is not None)
    image = pool / "volumes" / driver.create("i", type="image").volume_id / "disk.img"
    fault = ("strace", "-f", "-o", "/dev/null", "-P", image, "-e", "inject=openat:error=EMFILE")
    command = (sys.executable, "-m", "pycsi", "get", "volumes", f"--pool={driver.pools[0]}")
    assert "Unreadable: cannot be examined" in run(*fault, *command)


def test_limits_that_were_switched_off(filesystem: FilesystemFactory, serve: Serve) -> None:
    """The pool tells it too: it is for the pool that something can be done."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    volume_id = driver.create("v").volume_id
    run("btrfs", "quota", "disable", pool)
    assert reasons(unwell(driver, volume_id, "LimitNotEnforced")) == ["LimitNotEnforced"]
    assert storage(driver).keys() == {"LimitNotEnforced"}
