"""Who keeps a volume from being unmounted or freed is named; what nobody uses is no obstacle."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from conftest import holding, run
from driver import Driver, block_capability, refused

from pycsi.linux import loop

REFUSED = grpc.StatusCode.FAILED_PRECONDITION
BLOCK = block_capability()


def losetup(node: Path | str) -> Path:
    """Put a loop device on another one, as a kubelet does."""
    return Path(run("losetup", "--find", "--show", node).strip())


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Expect that nobody waited for what does not change."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize("way", ["directory", "file", "map"])
def test_mount_that_is_in_use(driver: Driver, root: None, tmp_path: Path, way: str) -> None:
    """The process is named at both calls, of a mount of its own and of a part of the pool."""
    kind = {"type": "directory", "quota": "none"} if way == "file" else {"type": "image"}
    volume_id = driver.create("v", parameters=kind).volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging)
    driver.publish(volume_id, staging, target)
    (target / "file").write_text("x")
    with holding(target, way) as pid, refused(REFUSED, str(target), f"process {pid} (python"):
        driver.unpublish(volume_id, target)
    driver.unpublish(volume_id, target)
    if way == "map":
        with holding(staging, way) as pid, refused(REFUSED, f"process {pid} (python"):
            driver.unstage(volume_id, staging)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)


def test_mount_on_a_volume(driver: Driver, root: None, tmp_path: Path) -> None:
    """What else is mounted in it is named, and a loop device on a file in it."""
    volume_id = driver.create("v", type="image").volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging)
    driver.publish(volume_id, staging, target)
    (target / "inner").mkdir()
    (target / "file").write_bytes(bytes(4096))
    run("mount", "-t", "tmpfs", "none", target / "inner")
    device = losetup(target / "file")
    try:
        with refused(REFUSED, f"a mount at {target}/inner", f"{device}, which is on {target}/file"):
            driver.unpublish(volume_id, target)
    finally:
        run("umount", target / "inner")
        run("losetup", "--detach", device)
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)


def test_image_that_another_mount_namespace_holds(
    driver: Driver, root: None, tmp_path: Path
) -> None:
    """A deletion names the process there."""
    volume_id = driver.create("v", type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        (target / "file").write_text("x")
        wrapper = ("unshare", "--mount", "--propagation", "private", "--")
        stack = contextlib.ExitStack()
        pid = stack.enter_context(holding(target, "file", *wrapper))
    with stack, quick(), refused(REFUSED, "another mount namespace", f"process {pid} (python"):
        driver.delete(volume_id)
    driver.delete(volume_id)


@pytest.mark.parametrize("end", ["unpublish", "unstage", "delete"])
def test_unused_devices_on_top_of_a_raw_volume(
    driver: Driver, root: None, pool: Path, tmp_path: Path, end: str
) -> None:
    """What a killed kubelet has left goes with the volume, also one on top of another."""
    volume_id = driver.create("v", capability=BLOCK).volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, BLOCK)
    driver.publish(volume_id, staging, target, BLOCK)
    (device,) = loop.find(image)
    tops = [losetup(target if end == "unpublish" else device.path)]
    tops.append(losetup(tops[0]))
    below = [path.stat() for path in (device.path, tops[0])]
    driver.unpublish(volume_id, target)
    with quick():
        if end == "delete":
            staging.rmdir()  # nobody will unstage it
        else:
            driver.unstage(volume_id, staging)
            assert loop.find(image) == []
        driver.delete(volume_id)
    infos = filter(None, map(loop.status_of, loop.numbers()))  # by now other devices' numbers
    bound = {(info.lo_device, info.lo_inode) for info in infos}
    assert not [item for item in below if (item.st_dev, item.st_ino) in bound]


def test_used_device_on_top_of_a_raw_volume(driver: Driver, root: None, tmp_path: Path) -> None:
    """One that somebody has open or mounted is named, and left as it is."""
    volume_id = driver.create("v", capability=BLOCK).volume_id
    staging, mounted = tmp_path / "staging", tmp_path / "mounted"
    driver.stage(volume_id, staging, BLOCK)
    (device,) = loop.find(driver.folders[0] / "volumes" / volume_id / "disk.img")
    top = losetup(device.path)
    run("mkfs.ext4", "-q", top)
    mounted.mkdir()
    run("mount", top, mounted)
    try:
        with quick(), refused(REFUSED, f"{top}, which is on top of it"):
            driver.unstage(volume_id, staging)
        with quick(), refused(REFUSED, f"{top}, which is on top of it"):
            driver.delete(volume_id)
        assert mounted.is_mount()
    finally:
        run("umount", mounted)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)


@contextlib.contextmanager
def attached(image: Path, *options: str) -> Iterator[Path]:
    """Attach a loop device to an image by hand; expect that it is there until the end."""
    device = Path(run("losetup", "--find", "--show", *options, image).strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def paths_on(image: Path) -> set[Path]:
    """Return the devices on an image that stay when nobody has them open."""
    return {device.path for device in loop.find(image) if not device.autoclear}


@pytest.mark.parametrize("kind", ["image", "raw"])
def test_unused_device_of_somebody_else(
    driver: Driver, root: None, pool: Path, tmp_path: Path, kind: str
) -> None:
    """It keeps a volume from being deleted, and is named with what to do."""
    how = {"capability": BLOCK} if kind == "raw" else {"type": "image"}
    volume_id = driver.create("v", **how).volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    with attached(image, "--read-only") as reading:
        for _ in range(2):
            with quick(), refused(REFUSED, f"attached {reading}", f"losetup -d {reading}"):
                driver.delete(volume_id)
        assert paths_on(image) == {reading}
        with driver.published(volume_id, tmp_path, BLOCK if kind == "raw" else None):
            pass
        assert paths_on(image) == {reading}
    driver.delete(volume_id)


def test_writable_device_of_somebody_else(
    driver: Driver, root: None, pool: Path, tmp_path: Path
) -> None:
    """No raw volume is given out beside it; what was given out goes without it."""
    volume_id = driver.create("v", capability=BLOCK).volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    staging, target = tmp_path / "staging", tmp_path / "target"
    with attached(image) as writing, refused(REFUSED, f"losetup -d {writing}"):
        driver.stage(volume_id, staging, BLOCK)
    driver.stage(volume_id, staging, BLOCK)
    driver.publish(volume_id, staging, target, BLOCK)
    with attached(image) as writing, attached(image, "--read-only") as reading:
        with holding(writing, "device") as pid:
            driver.unpublish(volume_id, target)
            with quick():
                driver.unstage(volume_id, staging)
            with quick(), refused(REFUSED, f"attached {writing}", f"process {pid} (python"):
                driver.delete(volume_id)
        assert paths_on(image) == {writing, reading}
    driver.delete(volume_id)


def test_image_that_is_staged_on_a_device_of_somebody_else(
    driver: Driver, root: None, pool: Path, tmp_path: Path
) -> None:
    """Two devices on one filesystem would corrupt it; theirs is left to them afterwards."""
    volume_id = driver.create("v", type="image").volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    with attached(image) as device:
        with quick(), driver.published(volume_id, tmp_path) as target:
            (target / "file").write_text("x")
            assert len(loop.find(image)) == 1
        assert paths_on(image) == {device}
        with refused(REFUSED, f"attached {device}", f"losetup -d {device}"):
            driver.delete(volume_id)
    driver.delete(volume_id)


def test_process_that_has_a_raw_volume_open(driver: Driver, root: None, tmp_path: Path) -> None:
    """It is named; the volume can be staged again when it has ended."""
    volume_id = driver.create("v", capability=BLOCK).volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, BLOCK)
    driver.publish(volume_id, staging, target, BLOCK)
    (device,) = loop.find(driver.folders[0] / "volumes" / volume_id / "disk.img")
    with holding(target, "device") as pid, refused(REFUSED, f"process {pid} (python"):
        driver.unpublish(volume_id, target)
    driver.unpublish(volume_id, target)
    with holding(device.path, "device") as pid:
        with quick(), refused(REFUSED, f"process {pid} (python"):
            driver.unstage(volume_id, staging)
        with refused(REFUSED, "was detached", f"process {pid} (python"):
            driver.stage(volume_id, tmp_path / "other", BLOCK)
    driver.stage(volume_id, staging, BLOCK)
    driver.unstage(volume_id, staging)
    driver.delete(volume_id)
