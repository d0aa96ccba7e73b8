"""The parameter trimInterval: what is deleted in a mounted thin image goes back to the pool."""

import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import pytest
from conftest import run
from driver import GIB, MIB, Driver, block_capability, mount_capability, refused
from rpc.conftest import wait_for

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
KINDS = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 128 * MIB}
ROUND = 12.0
"""Seconds after which a volume that is due was looked at."""


def create(driver: Driver, name: str, size: int = 64 * MIB, fs: str = "", **given: str) -> str:
    return driver.create(name, size, capability=mount_capability(fs), parameters=given).volume_id


def blocks(pool: Path, volume_id: str) -> int:
    return (pool / "volumes" / volume_id / "disk.img").stat().st_blocks * 512


def leave_free(path: Path, size: int = 16 * MIB) -> None:
    """Write a file, delete it, and leave its blocks to be trimmed."""
    (path / "file").write_bytes(os.urandom(size))
    os.sync()
    (path / "file").unlink()
    os.sync()


def stamp(pool: Path, volume_id: str) -> Path:
    """Return the file that tells when a volume was trimmed last."""
    return pool / "volumes" / volume_id / "trimmed"


@pytest.mark.parametrize("value", ["", "0", "59s", "-1m", "often", "Never", "1m ago", "x" * 30])
def test_impossible_interval(driver: Driver, value: str) -> None:
    image = create(driver, "image", type="image")
    with refused(Code.INVALID_ARGUMENT, "trimInterval", "never"):
        create(driver, "v", type="image", trimInterval=value)
    with refused(Code.INVALID_ARGUMENT, "trimInterval", "never"):
        driver.modify(image, trimInterval=value, onDelete="retain")
    driver.delete(image)
    assert not list((driver.folders[0] / "trash").glob("*.kept.*")), "modified in part"


def test_only_thin_images_are_trimmed(root: None, driver: Driver) -> None:
    """What cannot be trimmed says why, when it is created and when it is modified."""
    block = block_capability()
    directory = {"type": "directory", "quota": "none"}
    thick = {"type": "image", "allocation": "thick"}
    for name, wanted, given, reason in (
        ("directory", mount_capability(), directory, "director"),
        ("open", mount_capability(), {"quota": "none"}, "director"),
        ("block", block, {}, "raw block"),
        ("thick", mount_capability("ext4"), thick, "thick"),
    ):
        with refused(Code.INVALID_ARGUMENT, reason):
            driver.create(name, capability=wanted, parameters=given | {"trimInterval": "24h"})
        request = csi.CreateVolumeRequest(
            name=name,
            volume_capabilities=[wanted],
            parameters=given,
            mutable_parameters={"trimInterval": "24h"},
        )
        with refused(Code.INVALID_ARGUMENT, reason):
            driver.controller.CreateVolume(request)
        made = driver.create(
            name, capability=wanted, parameters=given | {"trimInterval": "never"}
        ).volume_id
        with refused(Code.INVALID_ARGUMENT, reason):
            driver.modify(made, trimInterval="7d")
        driver.modify(made, trimInterval="never")


def test_interval_makes_an_image(driver: Driver) -> None:
    """Where the class leaves the type open, an interval asks for an image."""
    made = driver.create("v", parameters={"trimInterval": "7d"})
    assert made.volume_context["type"] == "image"
    assert "trimInterval" in made.volume_context["reason"]


def test_deleted_files_go_back(
    root: None, serve: Callable[..., Driver], pool: Path, tmp_path: Path
) -> None:
    """Of volumes with an interval, staged or published; a restart does not make them due."""
    driver = serve(f"default={pool}")
    names = {kind: create(driver, kind, size, kind, type="image") for kind, size in KINDS.items()}
    names["never"] = create(driver, "never", type="image")
    for kind, name in names.items():
        driver.stage(name, tmp_path / kind, mount_capability("" if kind == "never" else kind))
        leave_free(tmp_path / kind)
    full = {kind: blocks(pool, name) for kind, name in names.items()}
    for kind in KINDS:
        driver.modify(names[kind], trimInterval="1m")
    for kind in KINDS:
        wait_for(stamp(pool, names[kind]).exists, 30)
        assert blocks(pool, names[kind]) <= full[kind] - 8 * MIB
    assert blocks(pool, names["never"]) == full["never"]
    assert not stamp(pool, names["never"]).exists()

    noted = stamp(pool, names["ext4"]).stat().st_mtime
    driver.modify(names["xfs"], trimInterval="never")
    for kind in KINDS:
        leave_free(tmp_path / kind)
    full = {kind: blocks(pool, name) for kind, name in names.items()}
    driver.restart()
    wait_for(lambda: stamp(pool, names["ext4"]).stat().st_mtime > noted, 90)
    assert stamp(pool, names["ext4"]).stat().st_mtime >= noted + 60, "not due yet"
    wait_for(lambda: blocks(pool, names["ext4"]) <= full["ext4"] - 8 * MIB, 10)
    time.sleep(ROUND)
    assert blocks(pool, names["xfs"]) == full["xfs"], "was switched off"
    for kind, name in names.items():
        driver.unstage(name, tmp_path / kind)
        driver.delete(name)


def is_trimming(driver: Driver, path: Path) -> bool:
    """Tell whether the driver has the filesystem that is mounted at `path` open."""
    assert driver.process
    for fd in Path(f"/proc/{driver.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if fd.readlink() == path:
                return True
    return False


def test_unstage_and_stop_while_trimming(
    root: None, serve: Callable[..., Driver], pool: Path, tmp_path: Path
) -> None:
    """Nobody finds a volume busy, or under way, because it is being trimmed."""
    driver = serve(f"default={pool},overcommit=1000")
    path, wanted = tmp_path / "stage", mount_capability("xfs")
    name = create(driver, "v", 4000 * GIB, "xfs", type="image", trimInterval="1m")
    for _ in range(2):
        driver.stage(name, path, wanted)
        wait_for(partial(is_trimming, driver, path), 2 * ROUND)
        driver.modify(name, onDelete="retain")
        driver.unstage(name, path)
        assert not stamp(pool, name).exists(), "it was not under way any more"
    driver.stage(name, path, wanted)
    wait_for(partial(is_trimming, driver, path), 2 * ROUND)
    begin = time.monotonic()
    assert driver.stop() == 0
    assert time.monotonic() - begin < 5
    driver.start()
    driver.unstage(name, path)
    driver.delete(name)


def test_frozen_by_somebody(
    root: None, serve: Callable[..., Driver], pool: Path, tmp_path: Path
) -> None:
    """A filesystem that somebody has frozen keeps neither others nor the driver's end."""
    driver = serve(f"default={pool}")
    names = [create(driver, kind, type="image", trimInterval="1m") for kind in ("one", "two")]
    for name in names:
        driver.stage(name, tmp_path / name)
    run("fsfreeze", "--freeze", tmp_path / names[0])
    try:
        wait_for(stamp(pool, names[1]).exists, 2 * ROUND)
        begin = time.monotonic()
        assert driver.stop() == 0
        assert time.monotonic() - begin < 5
    finally:
        run("fsfreeze", "--unfreeze", tmp_path / names[0])
    driver.start()
    for name in names:
        driver.unstage(name, tmp_path / name)
