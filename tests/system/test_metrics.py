"""What the metrics say of volumes in use: how full they are, how well, and how long frozen."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import FilesystemFactory, fill, needs, run
from driver import GIB, MIB, Driver, mount_capability
from metrics import Scrape, scrape
from rpc.conftest import free_port, wait_for
from silent import SilentFilesystem

from pycsi.linux import mount
from pycsi.proto import csi_pb2 as csi

BYTES, INODES = csi.VolumeUsage.BYTES, csi.VolumeUsage.INODES

Serve = Callable[..., Driver]


def soon(port: int, says: Callable[[Scrape], bool]) -> Scrape:
    """Return the metrics once they say so: they are measured anew after a pause."""
    wait_for(lambda: says(scrape(port)), 60)
    return scrape(port)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_image_in_use(
    filesystem: FilesystemFactory, serve: Serve, tmp_path: Path, fs_type: str
) -> None:
    """Its filesystem tells how full it is, while it is mounted; its loop device is counted."""
    port = free_port()
    pool = filesystem("ext4", GIB)
    driver = serve(pool, options=(f"--metrics-address=127.0.0.1:{port}",))
    driver.create("a", 320 * MIB, capability=mount_capability(fs_type), type="image")
    own = {"volume": "a@node-1"}
    with driver.published("a@node-1", tmp_path) as target:
        (target / "data").write_bytes(bytes(100 * MIB))
        (target / "more").write_bytes(b"")
        found = soon(port, lambda seen: (seen("pycsi_volume_used_bytes", **own) or 0) > 100 * MIB)
        used = found("pycsi_volume_used_bytes", **own)
        usage = {entry.unit: entry for entry in driver.stats("a@node-1", target).usage}
        assert used == pytest.approx(usage[BYTES].used, abs=MIB)
        available = found("pycsi_volume_available_bytes", **own)
        assert available == pytest.approx(usage[BYTES].available, abs=MIB)
        assert found("pycsi_volume_inodes", **own) == usage[INODES].total
        assert found("pycsi_volume_inodes_used", **own) == usage[INODES].used
        assert found("pycsi_volume_capacity_bytes", **own) == 320 * MIB
        assert found("pycsi_loop_devices", pool="default") == 1
        fill(target / "rest")
        soon(port, lambda seen: seen("pycsi_volumes_abnormal", reason="NearlyFull") == 1)
        (target / "rest").unlink()
        driver.snapshot("s", "a@node-1")
        found = scrape(port)
        assert found("pycsi_freeze_seconds_count") == 1
        assert found("pycsi_freeze_overruns_total") == 0
    found = soon(port, lambda seen: seen("pycsi_loop_devices", pool="default") == 0)
    assert found("pycsi_volume_used_bytes", **own) is None


def test_directory(filesystem: FilesystemFactory, serve: Serve, tmp_path: Path) -> None:
    """A directory with a limit is counted by that, also while it is not in use."""
    port = free_port()
    driver = serve(filesystem("btrfs", GIB), options=(f"--metrics-address=127.0.0.1:{port}",))
    driver.create("a", 64 * MIB, type="directory")
    with driver.published("a@node-1", tmp_path) as target:
        (target / "data").write_bytes(bytes(10 * MIB))
        run("sync", "--file-system", target)  # btrfs counts what a transaction has committed
    soon(port, lambda seen: (seen("pycsi_volume_used_bytes") or 0) > 10 * MIB)


def test_freeze_that_overruns(filesystem: FilesystemFactory, serve: Serve, tmp_path: Path) -> None:
    """A freeze that was ended by its limit is counted as one."""
    port = free_port()
    pool = filesystem("ext4", 2 * GIB)
    driver = serve(
        f"default={pool},freeze-limit=0.01s", options=(f"--metrics-address=127.0.0.1:{port}",)
    )
    driver.create("a", 512 * MIB, type="image")
    with driver.published("a@node-1", tmp_path) as target:
        (target / "data").write_bytes(b"x" * 300 * MIB)
        with pytest.raises(Exception, match="freeze-limit"):
            driver.snapshot("s", "a@node-1")
    found = scrape(port)
    assert found("pycsi_freeze_overruns_total") == 1
    assert found("pycsi_freeze_seconds_count") == 1


@pytest.fixture
def silent(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SilentFilesystem]:
    """Return a filesystem that can fall silent."""
    needs("/dev/fuse", met=Path("/dev/fuse").exists())
    with SilentFilesystem(tmp_path_factory.mktemp("silent")) as made:
        yield made


def test_silent_disk(
    silent: SilentFilesystem, filesystem: FilesystemFactory, serve: Serve, tmp_path: Path
) -> None:
    """Scrapes go on when a pool's disk falls silent, which is told; the other pool is as before."""
    port = free_port()
    shown, healthy = silent.place / "disk", tmp_path / "healthy"
    disk = filesystem("ext4", GIB)
    shown.mkdir()
    healthy.mkdir()
    run("mount", "--bind", disk, shown)
    try:
        driver = serve(
            f"slow={shown}", f"other={healthy}", options=(f"--metrics-address=127.0.0.1:{port}",)
        )
        driver.create("a", 64 * MIB, type="image", pool="slow")
        driver.create("b", 64 * MIB, quota="none", pool="other")
        assert scrape(port)("pycsi_pool_up", pool="slow") == 1
        silent.fall_silent()
        try:
            # Each within the 10 seconds after which Prometheus gives up.
            found = soon(port, lambda seen: seen("pycsi_pool_up", pool="slow") == 0)
            assert found("pycsi_pool_size_bytes", pool="slow") is None
            assert found("pycsi_pool_up", pool="other") == 1
            assert found("pycsi_pool_volumes", pool="other") == 1
            faults = {"reason": "PoolNotResponding", "pool": "slow"}
            soon(port, lambda seen: seen("pycsi_volumes_abnormal", **faults) == 1)
        finally:
            silent.speak()
        found = soon(port, lambda seen: seen("pycsi_pool_up", pool="slow") == 1)
        soon(port, lambda seen: seen("pycsi_volumes_abnormal", **faults) == 0)
    finally:
        mount.umount2(shown, mount.MNT_DETACH)
