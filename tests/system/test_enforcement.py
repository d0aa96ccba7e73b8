"""Limits that the kernel does not enforce any more: told, not promised, and mended if possible."""

import fcntl
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import FilesystemFactory, needs, run
from driver import GIB, MIB, Driver, from_volume, refused
from health import storage, unwell

from pycsi.linux import btrfs

SIMPLE = 4
DISABLE = 2
ENABLE = 1


def quotas(pool: Path, command: int) -> None:
    """Switch quotas: older programs know no simple ones."""
    fd = os.open(pool, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, btrfs.BTRFS_IOC_QUOTA_CTL, bytearray(struct.pack("=QQ", command, 0)), True)
    finally:
        os.close(fd)


def simple(pool: Path) -> None:
    quotas(pool, DISABLE)
    try:
        quotas(pool, SIMPLE)
    except OSError:
        quotas(pool, ENABLE)
    if btrfs.accounting(pool) is not btrfs.Accounting.SIMPLE:
        pytest.skip("needs a kernel with simple quotas, Linux 6.7")


def switched_off(pool: Path) -> None:
    quotas(pool, DISABLE)


def groups(pool: Path) -> Path:
    uuid = run("findmnt", "-n", "-o", "UUID", "-T", pool).strip()
    return Path(f"/sys/fs/btrfs/{uuid}/qgroups")


def make_inconsistent(pool: Path, data: Path) -> None:
    """Let a subvolume that shares blocks become a member of a group that does not know them."""
    run("btrfs", "subvolume", "snapshot", data, pool.parent / "copy")
    run("btrfs", "qgroup", "create", "1/1", pool)
    number = btrfs.subvolume_number(data)
    # It warns, and so may end as if it had failed.
    subprocess.run(
        ["btrfs", "qgroup", "assign", "--no-rescan", f"0/{number}", "1/1", pool],
        capture_output=True,
        check=False,
    )


def until(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not met():
        assert time.monotonic() < end
        time.sleep(0.05)


def cli(pool: Path, what: str) -> list[dict[str, Any]]:
    words = ["get", what, "--pool", f"default={pool}", "--output", "json"]
    rows: list[dict[str, Any]] = json.loads(run(sys.executable, "-m", "pycsi", *words))
    return rows


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(switched_off, "btrfs quota enable"), (simple, "simple quotas")],
    ids=["switched off", "simple"],
)
def test_limits_that_do_not_hold(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    spoil: Callable[[Path], None],
    words: str,
) -> None:
    """What was made stays usable and says so; what cannot be limited is not made."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", 64 * MIB).volume_id
    spoil(pool)
    unwell(driver, volume_id, "LimitNotEnforced", words)
    assert words in storage(driver)["LimitNotEnforced"].message
    with refused(grpc.StatusCode.FAILED_PRECONDITION, words):
        driver.create("w", 64 * MIB, type="directory")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, words):
        driver.create("c", 64 * MIB, source=from_volume(volume_id))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, words):
        driver.expand(volume_id, 128 * MIB)
    assert driver.expand(volume_id, 64 * MIB).capacity_bytes == 64 * MIB
    assert driver.capacity(type="directory").available_capacity == 0
    assert driver.capacity().available_capacity > 0
    image = driver.create("i", 64 * MIB)
    assert image.volume_context["type"] == "image"
    assert words in image.volume_context["reason"]
    assert driver.create("q", 64 * MIB, quota="none").volume_context["type"] == "directory"
    (row,) = cli(pool, "pools")
    assert words in row["directory_limit"]
    rows = {item["id"]: item["condition"] for item in cli(pool, "volumes")}
    assert words in rows[volume_id]
    with driver.published(volume_id, tmp_path) as target:
        (target / "file").write_bytes(bytes(MIB))
        stats = driver.stats(volume_id, target)
        assert stats.volume_condition.abnormal
        assert stats.usage[0].total > GIB // 2  # of the pool, for nothing less holds
        snapshot = driver.snapshot("s", volume_id)
        assert snapshot.size_bytes >= MIB
        driver.delete_snapshot(snapshot.snapshot_id)
    until(lambda: "the pool's directories are not limited" in driver.log)
    driver.condition(volume_id)
    assert driver.log.count("the pool's directories are not limited") == 1
    driver.delete(volume_id)
    driver.reaped()
    assert "INTERNAL" not in driver.log


def set_size(pool: Path, volume_id: str) -> int:
    """Return the limit that the kernel has for a volume; 0: none."""
    found = btrfs.usage(pool / "volumes" / volume_id / "data")
    return found.limit if found else 0


def refuses(pool: Path, volume_id: str, size: int) -> None:
    """Check that a volume does not take `size` bytes more."""
    file = pool / "volumes" / volume_id / "data" / "more"
    with pytest.raises(OSError, match="quota exceeded"):
        file.write_bytes(os.urandom(size))
    file.unlink()


@pytest.mark.parametrize("restarted", [False, True], ids=["while it runs", "over a restart"])
def test_quota_groups_that_are_switched_on_again(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], *, restarted: bool
) -> None:
    """The limits that went with them come back by themselves, without staging."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", 64 * MIB).volume_id
    expanded = driver.create("e", 16 * MIB).volume_id
    free = driver.create("q", 64 * MIB, quota="none").volume_id
    quotas(pool, DISABLE)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "btrfs quota enable"):
        driver.create("w", 64 * MIB, type="directory")
    if restarted:
        driver.stop()
    quotas(pool, ENABLE)
    until(lambda: btrfs.accounting(pool) is btrfs.Accounting.GOOD)
    if restarted:
        driver.start()
    created = driver.create("w", 64 * MIB).volume_id
    driver.expand(expanded, 32 * MIB)
    until(lambda: set_size(pool, volume_id) == 64 * MIB)
    assert not driver.condition(volume_id).abnormal
    refuses(pool, volume_id, 80 * MIB)
    assert set_size(pool, created) == 64 * MIB
    assert set_size(pool, expanded) == 32 * MIB
    refuses(pool, expanded, 40 * MIB)
    assert set_size(pool, free) == 0
    until(lambda: "limits were lost, and are set again" in driver.log)


def test_limits_of_many_that_were_lost(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """One that has lost its limit, and all of them, while others are created and expanded."""
    pool = filesystem("btrfs", GIB)
    driver = serve(f"default={pool},overcommit=10")
    made = [driver.create(f"v{number}", 8 * MIB).volume_id for number in range(100)]
    run("btrfs", "qgroup", "limit", "none", pool / "volumes" / made[70] / "data")
    until(lambda: set_size(pool, made[70]) == 8 * MIB)
    quotas(pool, DISABLE)
    quotas(pool, ENABLE)
    until(lambda: btrfs.accounting(pool) is btrfs.Accounting.GOOD)
    number = 0
    while any(set_size(pool, volume_id) < 8 * MIB for volume_id in made):
        number += 1
        assert number < 1000
        made.append(driver.create(f"w{number}", 8 * MIB).volume_id)
        driver.expand(made[number % 100], 9 * MIB)
    assert {set_size(pool, volume_id) for volume_id in made} <= {8 * MIB, 9 * MIB}
    assert not any(driver.condition(volume_id).abnormal for volume_id in made)
    assert "ABORTED" not in driver.log


@pytest.mark.parametrize("running", [False, True], ids=["at start", "while it runs"])
def test_inconsistent_quota_groups_are_counted_again(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], *, running: bool
) -> None:
    """The driver starts the rescan by itself, and then limits hold again."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", 64 * MIB).volume_id
    data = pool / "volumes" / volume_id / "data"
    (data / "file").write_bytes(os.urandom(MIB))
    run("btrfs", "filesystem", "sync", pool)
    if not running:
        driver.stop()
    make_inconsistent(pool, data)
    if not running:
        assert (groups(pool) / "inconsistent").read_text().strip() == "1"
        driver.start()
    until(lambda: "inconsistent; run: btrfs quota rescan" in driver.log)
    until(lambda: btrfs.accounting(pool) is btrfs.Accounting.GOOD)
    until(lambda: "the pool's directories are limited again" in driver.log)
    assert not driver.condition(volume_id).abnormal
    assert driver.create("w", 64 * MIB).volume_context["type"] == "directory"
    with pytest.raises(OSError, match="quota exceeded"):
        (data / "more").write_bytes(os.urandom(80 * MIB))


def uncounted_copy(driver: Driver, volume_id: str, data: Path) -> None:
    """Let a snapshot share all that a volume holds, which simple quotas count as its own."""
    simple(data)
    (data / "file").write_bytes(os.urandom(250 * MIB))
    driver.snapshot("s", volume_id)
    driver.stop()


def uncounted_deletion(driver: Driver, _volume_id: str, data: Path) -> None:
    """Delete what a volume holds when nobody counts any more."""
    pool = driver.folders[0]
    driver.stop()
    (data / "file").write_bytes(os.urandom(250 * MIB))
    # With that the kernel gives up when a snapshot is deleted that shares more than a few files.
    threshold = groups(pool) / "drop_subtree_threshold"
    needs("Linux 6.2", met=threshold.exists())
    threshold.write_text("0")
    run("btrfs", "subvolume", "create", pool.parent / "source")
    for number in range(1000):
        (pool.parent / "source" / f"file-{number}").write_bytes(bytes(100))
    run("btrfs", "subvolume", "snapshot", pool.parent / "source", pool.parent / "copy")
    run("btrfs", "subvolume", "delete", "--commit-after", pool.parent / "copy")
    until(lambda: btrfs.accounting(pool) is btrfs.Accounting.INCONSISTENT)
    (data / "file").unlink()


def uncounted_data(driver: Driver, _volume_id: str, data: Path) -> None:
    """Write while quotas are off."""
    quotas(data, DISABLE)
    (data / "file").write_bytes(os.urandom(250 * MIB))
    driver.stop()


@pytest.mark.parametrize("spoil", [uncounted_copy, uncounted_deletion, uncounted_data])
def test_room_while_nothing_is_counted(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    spoil: Callable[[Driver, str, Path], None],
) -> None:
    """What is offered can be written, beside all that a directory was promised."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", 300 * MIB).volume_id
    data = pool / "volumes" / volume_id / "data"
    spoil(driver, volume_id, data)
    run("btrfs", "filesystem", "sync", pool)
    assert btrfs.accounting(pool) is not btrfs.Accounting.GOOD
    (row,) = cli(pool, "pools")
    offered = row["available"]
    assert offered > 100 * MIB
    with (pool.parent / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, offered)
    (data / "file").unlink(missing_ok=True)
    run("btrfs", "filesystem", "sync", pool)
    (data / "all").write_bytes(os.urandom(290 * MIB))
