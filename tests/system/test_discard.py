"""Discards: refused for thick volumes, taken for all others, whoever had the loop device before."""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import needs, run
from driver import MIB, Driver, block_capability, mount_capability
from health import unwell

from pycsi.linux import discard, loop, losetup

BLKDISCARD = 0x1277
KINDS = ["ext4", "xfs", "btrfs", "block"]
SIZE = {"xfs": 300 * MIB, "btrfs": 128 * MIB}


@pytest.fixture
def node(root: None, driver: Driver, pool: Path) -> Driver:
    """Return a driver whose kernel keeps refused discards with the device's number."""
    needs("a writable /sys", met=os.access("/sys/block", os.W_OK))
    return driver


def create(driver: Driver, kind: str, **parameters: str) -> str:
    wanted = block_capability() if kind == "block" else mount_capability(kind)
    size = SIZE.get(kind, 32 * MIB)
    return driver.create(
        f"v-{kind}-{parameters.get('allocation')}",
        size,
        capability=wanted,
        parameters={"type": "image"} | parameters,
    ).volume_id


def image(pool: Path, volume_id: str) -> Path:
    return pool / "volumes" / volume_id / "disk.img"


def device_of(pool: Path, volume_id: str) -> loop.LoopDevice:
    (device,) = loop.find(image(pool, volume_id))
    return device


def refuses(device: loop.LoopDevice) -> bool:
    """Tell whether the device refuses discards; one that was removed does not."""
    try:
        return discard.is_refused(device.number)
    except FileNotFoundError:
        return False


def given_back(device: loop.LoopDevice) -> bool:
    """Tell whether a number is as it was found, or has been given to another volume since.

    That other one, of a test beside this one, may be about to give it back.
    """
    deadline = time.monotonic() + 2
    bound = Path(f"/sys/block/loop{device.number}/loop")
    while refuses(device) and not bound.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def trimmed(path: Path, pool: Path, volume_id: str) -> bool:
    """Tell whether the blocks of a file that was deleted go back to the pool."""
    (path / "file").write_bytes(os.urandom(8 * MIB))
    os.sync()
    (path / "file").unlink()
    os.sync()
    before = image(pool, volume_id).stat().st_blocks
    run("fstrim", path)
    return image(pool, volume_id).stat().st_blocks <= before - 8 * MIB // 512 // 2


@pytest.mark.parametrize("kind", KINDS)
def test_thick_leaves_its_device_as_it_was(
    node: Driver, pool: Path, tmp_path: Path, kind: str
) -> None:
    """A staged thick volume is never discarded; when it is unstaged no device refuses discards."""
    volume_id = create(node, kind, allocation="thick")
    wanted = block_capability() if kind == "block" else mount_capability(kind)
    held = image(pool, volume_id).stat().st_blocks
    with node.published(volume_id, tmp_path, wanted) as target:
        device = device_of(pool, volume_id)
        if kind == "block":
            with target.open("r+b") as disk, pytest.raises(OSError, match="not supported"):
                fcntl.ioctl(disk, BLKDISCARD, bytes(8) + (4 * MIB).to_bytes(8, "little"))
        else:
            with pytest.raises(AssertionError, match="not supported"):
                run("fstrim", target)
        assert refuses(device)
        assert image(pool, volume_id).stat().st_blocks >= held
    assert given_back(device)


def test_copies_of_a_thick_volume_leave_no_device(node: Driver, pool: Path, tmp_path: Path) -> None:
    """Nor does a device that was attached to recover or to grow a thick volume."""
    before = refusing()
    volume_id = create(node, "ext4", allocation="thick")
    node.snapshot("s", volume_id)
    node.expand(volume_id, 64 * MIB)
    with node.published(volume_id, tmp_path):
        pass
    assert refusing() <= before


def refusing() -> set[int]:
    found = set()
    for entry in Path("/sys/block").glob("loop*"):
        device = loop.LoopDevice(
            number=int(entry.name.removeprefix("loop")), readonly=False, autoclear=False
        )
        if not (entry / "loop").exists() and refuses(device):
            found.add(device.number)
    return found


@pytest.fixture
def refusing_device(root: None, tmp_path: Path) -> Iterator[loop.LoopDevice]:
    """Return the free device that is given out next, which refuses discards."""
    file = tmp_path / "other.img"
    with file.open("wb") as made:
        made.truncate(MIB)
    with losetup.attach(file, autoclear=True) as device:
        discard.refuse(device.number)
    if not refuses(device):
        pytest.skip("this kernel forgets what a device refused when its file goes")
    yield device
    losetup.remove_refusing()


@pytest.mark.parametrize("kind", ["ext4", "block"])
def test_thin_avoids_a_device_that_refuses(
    node: Driver, pool: Path, tmp_path: Path, refusing_device: loop.LoopDevice, kind: str
) -> None:
    """A thin volume is given another device than a free one that refuses discards."""
    volume_id = create(node, kind)
    wanted = block_capability() if kind == "block" else mount_capability(kind)
    with node.published(volume_id, tmp_path, wanted) as target:
        assert not refuses(device_of(pool, volume_id))
        assert len(loop.find(image(pool, volume_id))) == 1
        if kind != "block":
            assert trimmed(target, pool, volume_id)


def test_unstaging_what_was_unmounted_by_hand(node: Driver, pool: Path, tmp_path: Path) -> None:
    """Where somebody has unmounted a thick volume its device is given back at unstaging."""
    volume_id = create(node, "ext4", allocation="thick")
    staging = tmp_path / "staging"
    node.stage(volume_id, staging, mount_capability("ext4"))
    device = device_of(pool, volume_id)
    run("umount", staging)
    node.unstage(volume_id, staging)
    assert given_back(device)


def test_read_only_sys(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path, refusing_device: loop.LoopDevice
) -> None:
    """Where /sys cannot be written to thin volumes are as ever, and of thick ones it is told."""
    closed = 'mount --bind -o ro /sys /sys && mount -o remount,bind,ro /sys && exec "$@"'
    driver = serve(pool, wrapper=("unshare", "--mount", "sh", "-c", closed, "sh"))
    thin, thick = (create(driver, "ext4", allocation=how) for how in ("thin", "thick"))
    for volume_id, abnormal in ((thin, False), (thick, True)):
        driver.stage(volume_id, tmp_path / volume_id, mount_capability("ext4"))
        condition = driver.condition(volume_id)
        assert condition.abnormal is abnormal, condition.message
        if abnormal:
            unwell(driver, volume_id, "DiscardsAccepted", "/sys")
        assert discard.is_taken(device_of(pool, volume_id).number)
        driver.unstage(volume_id, tmp_path / volume_id)
    assert "/sys" in driver.log


@pytest.mark.parametrize("kind", ["ext4", "block"])
def test_the_next_start_removes_what_a_crash_left(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path, root: None, kind: str
) -> None:
    """A thick volume's device that nobody gave back is removed when a driver starts."""
    driver = serve(pool)
    volume_id = create(driver, kind, allocation="thick")
    wanted = block_capability() if kind == "block" else mount_capability(kind)
    staging = tmp_path / "staging"
    driver.stage(volume_id, staging, wanted)
    device = device_of(pool, volume_id)
    driver.stop(signal.SIGKILL)
    if kind == "block":
        losetup.detach(device)
    else:
        run("umount", staging)
    driver.start()
    assert given_back(device)
    driver.unstage(volume_id, staging)
