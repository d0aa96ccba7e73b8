"""The life of a volume of each kind, on each kind of pool, against the kernel."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver, block_capability, mount_capability

from pycsi.proto import csi_pb2 as csi


def fill(path: Path, limit: int) -> int:
    """Write to `path` until the disk is full; return the bytes that went in."""
    chunk = os.urandom(MIB)
    written = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while written < limit:
            written += os.write(fd, chunk)
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
    finally:
        os.close(fd)
    return written


IMAGES = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 256 * MIB}


@pytest.mark.parametrize(
    "case",
    [
        *itertools.product(IMAGES, ["ext4", "xfs", "btrfs"], ["thin"]),
        *((kind, kind, "thick") for kind in IMAGES),
    ],
    ids="-".join,
)
def test_image(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    case: tuple[str, str, str],
) -> None:
    """A formatted image can be written to its size and no further, grows, and is gone."""
    kind, pool_kind, allocation = case
    pool = filesystem(pool_kind, 2 * GIB)
    driver = serve(pool)
    size = IMAGES[kind]
    wanted = mount_capability(kind)
    volume = driver.create("data", size, capability=wanted, type="image", allocation=allocation)
    assert volume.capacity_bytes == size
    image = pool / "volumes" / volume.volume_id / "disk.img"
    assert image.stat().st_size == size
    if allocation == "thick":
        assert image.stat().st_blocks * 512 >= size
    else:
        assert image.stat().st_blocks * 512 < size
    with driver.published(volume.volume_id, tmp_path, wanted) as target:
        (target / "kept").write_text("kept")
        total = os.statvfs(target).f_blocks * os.statvfs(target).f_frsize
        assert 0.7 * size < total <= size
        assert fill(target / "fill", 2 * size) < size
        (target / "fill").unlink()
    assert driver.expand(volume.volume_id, 2 * size).capacity_bytes == 2 * size
    with driver.published(volume.volume_id, tmp_path, wanted) as target:
        assert (target / "kept").read_text() == "kept"
        grown = os.statvfs(target).f_blocks * os.statvfs(target).f_frsize
        assert 1.6 * size < grown <= 2 * size
        assert size < fill(target / "fill", 4 * size) < 2 * size
        os.sync()
        (target / "fill").unlink()
    if allocation == "thick":
        assert image.stat().st_blocks * 512 >= 2 * size
    driver.delete(volume.volume_id)
    assert driver.volume_ids() == []
    assert list((pool / "volumes").iterdir()) == []
    driver.reaped()
    assert list((pool / "trash").iterdir()) == []


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_image_grows_while_it_is_in_use(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """A mounted filesystem is larger when NodeExpandVolume has answered."""
    driver = serve(filesystem("ext4", 2 * GIB))
    size, wanted = IMAGES[kind], mount_capability(kind)
    volume = driver.create("data", size, capability=wanted, type="image")
    with driver.published(volume.volume_id, tmp_path, wanted) as target:
        assert driver.expand(volume.volume_id, 2 * size).node_expansion_required
        assert driver.node_expand(volume.volume_id, target, 2 * size) == 2 * size
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize > 1.6 * size
        assert driver.node_expand(volume.volume_id, target) == 2 * size


@pytest.mark.parametrize("kind", IMAGES)
def test_smallest_image_grows(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """The smallest filesystem of each kind can grow by a little."""
    driver = serve(filesystem("xfs", 2 * GIB))
    wanted = mount_capability(kind)
    volume = driver.create("data", 1, capability=wanted, type="image")
    size = volume.capacity_bytes + 16 * MIB
    driver.expand(volume.volume_id, size)
    with driver.published(volume.volume_id, tmp_path, wanted) as target:
        assert driver.node_expand(volume.volume_id, target, size) == size


def test_node_expansion_alone_does_all(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """In node mode there is no controller expansion: the node's grows file, device, filesystem."""
    driver = serve(filesystem("ext4", 2 * GIB), options=("--mode=node",))
    wanted = mount_capability("xfs")
    volume = driver.create("data", 300 * MIB, capability=wanted, type="image")
    with driver.published(volume.volume_id, tmp_path, wanted) as target:
        assert driver.node_expand(volume.volume_id, target, 600 * MIB) == 600 * MIB
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize > 500 * MIB


def test_directory_on_btrfs(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A subvolume takes no more than its limit, and more once the limit is raised."""
    pool = filesystem("btrfs", 2 * GIB)
    driver = serve(pool)
    volume = driver.create("data", 64 * MIB)
    assert volume.volume_context["type"] == "directory"
    assert "quota group" in volume.volume_context["reason"]
    with driver.published(volume.volume_id, tmp_path) as target:
        assert target.stat().st_mode & 0o777 == 0o755
        assert 60 * MIB < fill(target / "fill", 128 * MIB) <= 64 * MIB
        usage = driver.stats(volume.volume_id, target).usage[0]
        assert usage.unit == csi.VolumeUsage.BYTES
        assert usage.total == 64 * MIB
        assert 60 * MIB < usage.used <= 64 * MIB
        assert driver.expand(volume.volume_id, 128 * MIB).capacity_bytes == 128 * MIB
        assert fill(target / "more", 128 * MIB) > 50 * MIB
        assert driver.stats(volume.volume_id, target).usage[0].total == 128 * MIB
    driver.delete(volume.volume_id)
    assert list((pool / "volumes").iterdir()) == []


def test_raw_block(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A raw device has the volume's size, keeps what is written, and grows while it is in use."""
    driver = serve(filesystem("xfs", 2 * GIB))
    wanted = block_capability()
    volume = driver.create("disk", 64 * MIB, capability=wanted)
    with driver.published(volume.volume_id, tmp_path, wanted) as target:
        assert target.is_block_device()
        fd = os.open(target, os.O_RDWR)
        assert os.lseek(fd, 0, os.SEEK_END) == 64 * MIB
        os.pwrite(fd, b"kept", 63 * MIB)
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(fd, b"over", 64 * MIB)
        os.fsync(fd)
        os.close(fd)
        assert driver.stats(volume.volume_id, target).usage[0].total == 64 * MIB
        driver.expand(volume.volume_id, 128 * MIB)
        assert driver.node_expand(volume.volume_id, target) == 128 * MIB
        with target.open("rb") as device:
            assert device.seek(0, os.SEEK_END) == 128 * MIB
            device.seek(63 * MIB)
            assert device.read(4) == b"kept"
    driver.delete(volume.volume_id)


def test_read_only_block_device_cannot_be_written(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A read-only publication is a read-only device, beside a writable one."""
    driver = serve(filesystem("ext4", GIB))
    wanted = block_capability()
    volume = driver.create("disk", 64 * MIB, capability=wanted)
    with driver.published(volume.volume_id, tmp_path, wanted) as writable:
        other = tmp_path / "readonly"
        driver.publish(
            volume.volume_id,
            tmp_path / f"staging-{volume.volume_id}",
            other,
            wanted,
            readonly=True,
        )
        writable.write_bytes(b"x" * 4096)
        with pytest.raises(PermissionError), other.open("r+b", buffering=0) as device:
            device.write(b"y" * 4096)
        driver.unpublish(volume.volume_id, other)
        assert not other.exists()
