"""What an operator moves, renames or mounts while the driver runs, and calls that fail then."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, fill, injected, mounted, needs, run
from driver import MIB, Driver, refused

from pycsi.cli.trash import restore
from pycsi.linux import loop
from pycsi.model.config import PoolConfig

DIRECTORY = {"type": "directory", "quota": "none"}
LOOP_CTL_ADD = 0x4C80
LOOP_CTL_REMOVE = 0x4C81


@contextlib.contextmanager
def failing(driver: Driver, call: str, errno: str, *paths: str | Path) -> Iterator[None]:
    """Let the first call of this name that has to do with one of the paths fail."""
    chosen = [word for path in paths for word in ("-P", str(path))]
    with injected(driver, call, f"error={errno}:when=1", *chosen):
        yield


def check_in_use(driver: Driver, volume_id: str, staging: Path, target: Path) -> None:
    """See that a volume that is published is neither lost nor deleted, and can be used on."""
    assert driver.condition(volume_id).message == "healthy"
    driver.publish(volume_id, staging, target)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "in use"):
        driver.delete(volume_id)
    assert (target / "precious").read_text() == "data"
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)


@pytest.mark.parametrize("how", ["link", "bind", "other mount"])
def test_pool_whose_directory_is_renamed(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, how: str
) -> None:
    """Wherever the pool's directory is moved, what is in use is found, if the pool is."""
    disk = filesystem("xfs", 512 * MIB).parent
    folder, moved, pool = disk / "data", disk / "moved", disk / "data/inner"
    pool.mkdir(parents=True)
    staging, target = tmp_path / "staging", tmp_path / "target"
    with contextlib.ExitStack() as mounts:
        if how == "other mount":  # as in a container, which does not see the name change
            pool = tmp_path / "seen"
            pool.mkdir()
            mounts.enter_context(mounted("--bind", folder / "inner", pool))
        driver = serve(pool)
        mounts.callback(driver.stop)
        volume_id = driver.create("v", parameters=DIRECTORY).volume_id
        driver.stage(volume_id, staging)
        driver.publish(volume_id, staging, target)
        (target / "precious").write_text("data")
        folder.rename(moved)
        if how == "link":
            folder.symlink_to(moved)
        elif how == "bind":
            folder.mkdir()
            mounts.enter_context(mounted("--bind", moved, folder))
            mounts.callback(driver.stop)
        check_in_use(driver, volume_id, staging, target)


def test_pool_in_whose_place_is_a_hard_linked_copy(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """Another directory with the same record is another one: two drivers never share a pool."""
    pool = filesystem("xfs", 512 * MIB)
    driver = serve(pool)
    driver.create("a", parameters=DIRECTORY)
    driver.stop()
    copy = pool.with_name("copy")
    run("cp", "--archive", "--link", pool, copy)
    driver.start()
    driver.create("b", parameters=DIRECTORY)
    pool.rename(pool.with_name("gone"))
    copy.rename(pool)
    driver.create("c", parameters=DIRECTORY)
    assert (pool / "volumes/c@node-1").is_dir()
    second = Driver(driver.folder.with_name("second"), [f"default={pool}"])
    second.launch()
    assert second.process is not None
    try:
        assert second.process.wait(20) == 1
    finally:
        second.process.kill()
        second.channel.close()
    assert "in use by another driver" in second.log


def test_call_that_fails_while_a_pool_is_followed(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """What fails once, where the pool has come to another disk, is done the next time."""
    pool, other = filesystem("xfs", 512 * MIB), filesystem("xfs", 512 * MIB)
    driver = serve(pool)
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    run("cp", "--archive", f"{pool}/.", other)
    descriptors = [f"/proc/self/fdinfo/{number}" for number in range(3, 80)]
    with mounted("--bind", other, pool), contextlib.ExitStack() as stopped:
        stopped.callback(driver.stop)
        with (
            failing(driver, "openat", "EMFILE", *descriptors),
            refused(grpc.StatusCode.FAILED_PRECONDITION, "does not hold the pool"),
        ):
            driver.create("w", parameters=DIRECTORY)
        driver.stage(volume_id, staging)
        driver.publish(volume_id, staging, target)
        (target / "precious").write_text("data")
        check_in_use(driver, volume_id, staging, target)


def test_record_that_cannot_be_read_just_now(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """A volume brought back from the trash is not taken for damaged, nor for deleted."""
    pool = filesystem("xfs", 512 * MIB)
    driver = serve(pool)
    volume_id = driver.create("v", parameters=DIRECTORY | {"onDelete": "retain"}).volume_id
    driver.delete(volume_id)
    place = pool / "volumes" / volume_id
    with failing(driver, "openat", "ENOMEM", place / "volume.json"):
        (entry,) = (pool / "trash").iterdir()
        restore([PoolConfig.parse(f"default={pool}")], entry.name)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "volume.json"):
            driver.delete(volume_id)
    assert place.is_dir()
    assert driver.condition(volume_id).message == "healthy"
    driver.delete(volume_id)
    assert not place.exists()


def test_damaged_record_that_is_found(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """A deletion does not say that there is nothing, also not the first one."""
    pool = filesystem("xfs", 512 * MIB)
    driver = serve(pool)
    place = pool / "volumes/v@node-1"
    place.mkdir()
    (place / "volume.json").write_text("{")
    for _ in range(2):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "cannot be read"):
            driver.delete("v@node-1")
    assert place.is_dir()


def test_id_that_was_another_pools_once(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """A volume is adopted though one of its id, which was not this pool's, lay there before."""
    pool, other = filesystem("xfs", 512 * MIB), filesystem("xfs", 512 * MIB)
    pools = f"default={pool}", f"b={other}"
    driver = serve(*pools)
    volume_id = driver.create("v", parameters=DIRECTORY | {"pool": "b"}).volume_id
    place = pool / "volumes" / volume_id
    shutil.copytree(other / "volumes" / volume_id, place)
    driver.delete(volume_id)
    with refused(grpc.StatusCode.NOT_FOUND):  # not the one that lies there
        driver.expand(volume_id, 64 * MIB)
    shutil.rmtree(place)
    assert driver.create("v", parameters=DIRECTORY | {"onDelete": "retain"}).volume_id == volume_id
    driver.delete(volume_id)
    (entry,) = (pool / "trash").iterdir()
    restore([PoolConfig.parse(text) for text in pools], entry.name)
    assert driver.condition(volume_id).message == "healthy"
    driver.delete(volume_id)


@pytest.mark.parametrize("parameters", [DIRECTORY, {"type": "image"}], ids=["directory", "image"])
def test_older_mount_moved_onto_a_target(
    driver: Driver, root: None, tmp_path: Path, parameters: dict[str, str]
) -> None:
    """The kernel lists it before the volume's mount, which it hides: it is not unmounted."""
    older, staging, target = tmp_path / "older", tmp_path / "staging", tmp_path / "target"
    older.mkdir()
    run("mount", "-t", "tmpfs", "none", older)
    (older / "theirs").touch()
    volume_id = driver.create("v", parameters=parameters).volume_id
    driver.stage(volume_id, staging)
    driver.publish(volume_id, staging, target)
    run("mount", "--move", older, target)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "something else is mounted there"):
        driver.unpublish(volume_id, target)
    assert (target / "theirs").exists()
    run("umount", target)
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)


@pytest.mark.parametrize("parameters", [DIRECTORY, {"type": "image"}], ids=["directory", "image"])
def test_mount_over_a_target(
    driver: Driver, root: None, tmp_path: Path, parameters: dict[str, str]
) -> None:
    """What hides a volume is not taken for it."""
    staging, target = tmp_path / "staging", tmp_path / "target"
    volume_id = driver.create("v", parameters=parameters).volume_id
    driver.stage(volume_id, staging)
    driver.publish(volume_id, staging, target)
    with mounted("-t", "tmpfs", "none", target):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "something else is mounted there"):
            driver.publish(volume_id, staging, target)
        assert "lost" in driver.condition(volume_id).message
        assert driver.stats(volume_id, target).volume_condition.abnormal
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "in use"):
            driver.delete(volume_id)
    driver.publish(volume_id, staging, target)
    assert driver.condition(volume_id).message == "healthy"
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)


def test_notes_that_grow_on_a_full_pool(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Where they find no room the volume is published yet, and stays so where it was."""
    pool = filesystem("xfs", 320 * MIB, "-b", "size=1024")
    driver = serve(pool)
    volume_id = driver.create("v", 16 * MIB, parameters=DIRECTORY).volume_id
    staging = tmp_path / "staging"
    driver.stage(volume_id, staging)
    notes = pool / "volumes" / volume_id / "node.json"
    targets = [tmp_path / f"target-{number:03}" for number in range(9)]
    there: list[Path] = []
    size, grown = notes.stat().st_size, 0
    while size + grown <= 1024:
        there.append(targets[len(there)])
        driver.publish(volume_id, staging, there[-1])
        grown, size = notes.stat().st_size - size, notes.stat().st_size
    assert notes.stat().st_size <= 1024
    fill(there[0] / "fill")
    there.append(targets[len(there)])
    driver.publish(volume_id, staging, there[-1])
    driver.restart()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "published"):
        driver.unstage(volume_id, staging)
    for target in there:
        driver.publish(volume_id, staging, target)
    for target in there:
        driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)


def test_device_whose_file_lies_too_deep(driver: Driver, root: None, tmp_path: Path) -> None:
    """The kernel tells no path of over a page; devices of others keep nobody from anything."""
    volume_id = driver.create("v", type="image").volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging)
    script = """
        cd "$1" && mkdir deep && cd deep
        for _ in $(seq 20); do mkdir "$2" && cd "$2"; done
        truncate --size=1M file && losetup --find --show file
    """
    device = run("bash", "-ec", script, "bash", tmp_path, "d" * 250).strip()
    try:
        driver.publish(volume_id, staging, target)
        assert driver.condition(volume_id).message == "healthy"
        driver.unpublish(volume_id, target)
        driver.unstage(volume_id, staging)
        driver.delete(volume_id)
    finally:
        run("losetup", "--detach", device)
        run("rm", "-rf", tmp_path / "deep")


def test_image_that_was_linked_anew(driver: Driver, root: None, pool: Path, tmp_path: Path) -> None:
    """The kernel calls it deleted, and it is the image: it never gets a second device."""
    volume_id = driver.create("v", type="image").volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    first, second = tmp_path / "first", tmp_path / "second"
    driver.stage(volume_id, first)
    kept = image.with_name("kept")
    os.link(image, kept)
    image.unlink()
    kept.rename(image)
    driver.stage(volume_id, second)
    assert len(loop.find(image)) == 1
    for staging in (first, second):
        driver.unstage(volume_id, staging)
    driver.delete(volume_id)


def listed() -> int:
    """Return how many bytes the kernel gives of its list of block devices at once."""
    fd = os.open("/proc/partitions", os.O_RDONLY)
    try:
        return len(os.read(fd, 1 << 16))
    finally:
        os.close(fd)


@contextlib.contextmanager
def devices(image: Path) -> Iterator[list[int]]:
    """Bind loop devices to a file, until the kernel does not list all block devices at once.

    All but the first one, which is free. Who asks for a free device meanwhile gets a lower number.
    """
    made: list[int] = []
    lower = range(4000, 4032)
    with Path("/dev/loop-control").open("r+b", buffering=0) as control:
        try:
            for number in lower:
                fcntl.ioctl(control, LOOP_CTL_ADD, number)
            while listed() == len(Path("/proc/partitions").read_bytes()):
                made.append(fcntl.ioctl(control, LOOP_CTL_ADD, 8000 + len(made)))
                if len(made) > 1:
                    run("losetup", f"/dev/loop{made[-1]}", image)
            yield made
        finally:
            for number in made[1:]:
                run("losetup", "--detach", f"/dev/loop{number}")
            for number in (*made, *lower):
                with contextlib.suppress(OSError):  # somebody looks at it, or uses it
                    fcntl.ioctl(control, LOOP_CTL_REMOVE, number)


def test_block_device_that_goes_while_they_are_listed(root: None, tmp_path: Path) -> None:
    """The kernel goes on with its list by position, and so passes one over: it is found yet."""
    needs("strace", met=shutil.which("strace") is not None)
    others, image = tmp_path / "others", tmp_path / "image"
    others.write_bytes(bytes(MIB))
    image.write_bytes(bytes(MIB))
    with devices(others) as made:
        run("losetup", "--detach", f"/dev/loop{made[-1]}")
        run("losetup", f"/dev/loop{made[-1]}", image)
        script = (
            "import pathlib, sys; from pycsi.linux import loop; "
            "print(len(loop.find(pathlib.Path(sys.argv[1]))))"
        )
        delay = "inject=read:delay_enter=1000000:when=2"
        command = ["strace", "-P", "/proc/partitions", "-e", "trace=read", "-e", delay]
        with subprocess.Popen(
            [*command, sys.executable, "-c", script, str(image)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as looking:
            assert looking.stderr is not None
            assert "read(" in looking.stderr.readline()
            with Path("/dev/loop-control").open("r+b", buffering=0) as control:
                fcntl.ioctl(control, LOOP_CTL_REMOVE, made[0])
            found = looking.communicate()[0]
    assert found.strip() == "1"
