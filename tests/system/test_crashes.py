"""The driver is killed again and again while it copies and deletes volumes and snapshots."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import recorder
from conftest import FilesystemFactory, run
from driver import GIB, MIB, Driver, from_snapshot, from_volume, mount_capability

from pycsi.linux import loop

KILLS = 12
FSCK = {
    "ext4": ["e2fsck", "-fn"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--readonly"],
}
SIZES = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 300 * MIB}


def busy(driver: Driver, volumes: list[str], kind: str, number: int) -> None:
    """Make and delete things until the driver is gone."""
    with contextlib.suppress(grpc.RpcError, ValueError):
        for turn in range(1000):
            make_and_delete(driver, volumes, kind, f"{number}-{turn}")


def make_and_delete(driver: Driver, volumes: list[str], kind: str, name: str) -> None:
    capability = mount_capability(kind)
    size = SIZES[kind]
    taken = driver.snapshot(f"s{name}", volumes[0]).snapshot_id
    group = driver.snapshot_group(f"g{name}", *volumes)
    driver.create(f"r{name}", size, capability=capability, source=from_snapshot(taken))
    clone = driver.create(f"c{name}", size, capability=capability, source=from_volume(volumes[1]))
    driver.delete(clone.volume_id)
    driver.delete_snapshot(taken)
    driver.delete_group(group.group_snapshot_id, *(item.snapshot_id for item in group.snapshots))
    driver.delete(f"r{name}@node-1")


def check(driver: Driver, pool: Path, volumes: list[str], kind: str, written: int) -> None:
    """Check that all that is there is whole; then delete it but for `volumes`."""
    assert list((pool / "frozen").iterdir()) == []
    driver.reaped()
    assert list((pool / "tmp").iterdir()) == []
    groups: dict[str, list[str]] = {}
    for snapshot in driver.snapshots():
        assert snapshot.ready_to_use
        image = pool / "snapshots" / snapshot.snapshot_id / "disk.img"
        assert image.stat().st_size == SIZES[kind]
        if snapshot.group_snapshot_id:
            groups.setdefault(snapshot.group_snapshot_id, []).append(snapshot.snapshot_id)
        else:
            driver.delete_snapshot(snapshot.snapshot_id)
    records = {path.stem for path in (pool / "groups").glob("*.json")}
    assert records == groups.keys()
    for group_id, members in groups.items():
        assert len(members) == len(volumes)
        driver.delete_group(group_id, *members)
    for volume_id in driver.volume_ids():
        if volume_id not in volumes:
            image = pool / "volumes" / volume_id / "disk.img"
            run(*FSCK[kind], image)
            assert loop.find(image) == []
            driver.delete(volume_id)
    driver.reaped()
    assert set(driver.volume_ids()) == set(volumes)
    assert {path.name for path in (pool / "volumes").iterdir()} == set(volumes)
    for folder in ("snapshots", "groups", "trash"):
        assert list((pool / folder).iterdir()) == []
    name = f"check-{written}"
    source = from_snapshot(driver.snapshot(name, volumes[0]).snapshot_id)
    copy = driver.create(name, SIZES[kind], capability=mount_capability(kind), source=source)
    with driver.published(copy.volume_id, driver.folder, mount_capability(kind)) as target:
        assert recorder.records(target / "records") == list(range(written))
    driver.delete(copy.volume_id)
    driver.delete_snapshot(source.snapshot.snapshot_id)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ground", "kind"), [("xfs", "ext4"), ("btrfs", "xfs"), ("xfs", "btrfs")])
def test_killed_at_any_time(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    kind: str,
) -> None:
    """After each kill what is there is whole, the volumes are writable, and nothing has leaked."""
    pool = filesystem(ground, 6 * GIB)
    driver = serve(f"default={pool},overcommit=10")
    capability = mount_capability(kind)
    chance = random.Random(f"{ground} {kind}")  # noqa: S311  (the same every time)
    volumes, targets = [], []
    for name in ("v", "w"):
        made = driver.create(name, SIZES[kind], capability=capability, type="image")
        volumes.append(made.volume_id)
        staging, target = tmp_path / f"staging-{name}", tmp_path / f"target-{name}"
        driver.stage(made.volume_id, staging, capability)
        driver.publish(made.volume_id, staging, target, capability)
        targets.append(target)
    for number in range(KILLS):
        with (targets[0] / "records").open("ab") as file:
            file.write(recorder.record(number))
            os.fsync(file.fileno())
        worker = threading.Thread(target=busy, args=(driver, volumes, kind, number))
        worker.start()
        worker.join(chance.uniform(0.05, 0.9))
        assert driver.process is not None
        driver.process.send_signal(signal.SIGKILL)
        driver.process.wait()
        worker.join()
        driver.channel.close()
        driver.start()
        check(driver, pool, volumes, kind, number + 1)
    for name, volume_id, target in zip(("v", "w"), volumes, targets, strict=True):
        driver.unpublish(volume_id, target)
        driver.unstage(volume_id, tmp_path / f"staging-{name}")
