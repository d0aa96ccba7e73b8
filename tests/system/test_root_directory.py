"""The root directory of a new volume: uid, gid and mode, and an ext4 without lost+found."""

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, needs
from driver import (
    GIB,
    MIB,
    Driver,
    block_capability,
    from_snapshot,
    from_volume,
    mount_capability,
    refused,
)

from pycsi.proto import csi_pb2 as csi

FAILED, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
OWNED = {"uid": "1001", "gid": "4294967294", "mode": "3770"}
INLINE = {"csi.storage.k8s.io/ephemeral": "true"}
SIZES = {"ext4": 32 * MIB, "xfs": 300 * MIB, "btrfs": 256 * MIB}

KINDS = {
    "directory": ("", {"type": "directory", "quota": "none"}),
    "ext4": ("ext4", {"type": "image"}),
    "xfs": ("xfs", {"type": "image"}),
    "btrfs": ("btrfs", {"type": "image"}),
    "thick": ("ext4", {"allocation": "thick"}),
    "with mkfsOptions": ("ext4", {"mkfsOptions": "-I 512"}),
}


def facts(path: Path) -> tuple[int, int, int]:
    """Return who owns a directory, and its mode."""
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def image_of(pool: Path, volume_id: str) -> Path:
    return pool / "volumes" / volume_id / "disk.img"


def check(*arguments: str | Path) -> int:
    """Check an ext4 and return e2fsck's exit status; 0 is clean."""
    return subprocess.run(["e2fsck", *arguments], capture_output=True, check=False).returncode


@pytest.mark.parametrize("kind", KINDS)
def test_owner_and_mode(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path, root: None, kind: str
) -> None:
    """The root is as asked for when it is first seen, also after a kill, and when asked again."""
    fs_type, parameters = KINDS[kind]
    driver = serve(pool)
    wanted, size = mount_capability(fs_type), SIZES.get(fs_type, 4 * MIB)
    given = parameters | OWNED
    volume_id = driver.create("v", size, capability=wanted, parameters=given).volume_id
    driver.restart(signal.SIGKILL)
    driver.create("v", size, capability=wanted, parameters=given)
    with driver.published(volume_id, tmp_path, wanted) as target:
        assert facts(target) == (1001, 4294967294, 0o3770)
        assert ((target / "lost+found").exists()) == (fs_type == "ext4")
    assert not driver.condition(volume_id).abnormal
    driver.delete(volume_id)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_pools(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """It is the same on every pool, for directories that are limited where that can be."""
    driver = serve(filesystem(kind, GIB))
    quota = "required" if kind == "btrfs" else "none"
    directory = {"type": "directory", "quota": quota} | OWNED
    image = {"type": "image", "lostAndFound": "false"} | OWNED
    volumes = [
        driver.create("d", parameters=directory).volume_id,
        driver.create("i", parameters=image).volume_id,
    ]
    for volume_id in volumes:
        with driver.published(volume_id, tmp_path) as target:
            assert facts(target) == (1001, 4294967294, 0o3770)
            assert list(target.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"uid": "7"}, (7, 0, 0o755)),
        ({"gid": "7"}, (0, 7, 0o755)),
        ({"mode": "700"}, (0, 0, 0o700)),
        ({"mode": "02775", "gid": "0"}, (0, 0, 0o2775)),
        ({}, (0, 0, 0o755)),
    ],
)
@pytest.mark.parametrize("type_", ["directory", "image"])
def test_each_alone(
    driver: Driver,
    tmp_path: Path,
    root: None,
    type_: str,
    given: dict[str, str],
    expected: tuple[int, int, int],
) -> None:
    """What is not asked for is as it was."""
    parameters = {"type": type_} | ({"quota": "none"} if type_ == "directory" else {}) | given
    volume_id = driver.create("v", parameters=parameters).volume_id
    with driver.published(volume_id, tmp_path) as target:
        assert facts(target) == expected


@pytest.mark.parametrize("kind", ["directory", "ext4"])
def test_copies_keep_their_source_s_root(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path, root: None, kind: str
) -> None:
    """A class that made the source restores it too, and nothing in the copy is changed."""
    fs_type, parameters = KINDS[kind]
    driver, wanted = serve(pool), mount_capability(fs_type)
    given = parameters | OWNED | {"lostAndFound": "false"}
    volume_id = driver.create("v", 32 * MIB, capability=wanted, parameters=given).volume_id
    with driver.published(volume_id, tmp_path, wanted) as target:
        os.chown(target, 5, 6)
        target.chmod(0o711)
        (target / "lost+found").mkdir()
    sources = [from_snapshot(driver.snapshot("s", volume_id).snapshot_id), from_volume(volume_id)]
    for number, source in enumerate(sources):
        copy = driver.create(
            f"c{number}", 32 * MIB, capability=wanted, parameters=given, source=source
        ).volume_id
        with driver.published(copy, tmp_path, wanted) as target:
            assert facts(target) == (5, 6, 0o711)
            assert [item.name for item in target.iterdir()] == ["lost+found"]


def test_inline(driver: Driver, tmp_path: Path, root: None) -> None:
    """A pod may say who owns its inline volume, and repeat it."""
    target = tmp_path / "target"
    context = INLINE | {"size": "32Mi", "lostAndFound": "false"} | OWNED
    for _ in range(2):
        driver.publish("csi-1", None, target, context=context)
    assert facts(target) == (1001, 4294967294, 0o3770)
    assert list(target.iterdir()) == []
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        driver.publish("csi-1", None, target, context=context | {"uid": "1"})
    driver.unpublish("csi-1", target)


def test_inline_that_is_refused(driver: Driver, tmp_path: Path, root: None) -> None:
    """Of an inline volume with a mode that cannot be nothing is made."""
    target = tmp_path / "target"
    with refused(INVALID, "mode", "4777"):
        driver.publish("csi-1", None, target, context=INLINE | {"mode": "4777"})
    assert not target.exists()
    assert list((driver.folders[0] / "volumes").iterdir()) == []


def test_owner_that_a_user_namespace_has_not(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path
) -> None:
    """Who is not mapped there can own nothing: that is said, and nothing is left."""
    needs("root", met=os.geteuid() == 0)
    driver = serve(pool, wrapper=("unshare", "--user", "--map-root-user", "--mount"))
    with refused(FAILED, "uid 1001"):
        driver.create("v", quota="none", uid="1001")
    assert driver.volume_ids() == []
    assert list((pool / "tmp").iterdir()) == []
    volume_id = driver.create("v", quota="none", uid="0", gid="0", mode="2770").volume_id
    assert facts(pool / "volumes" / volume_id / "data") == (0, 0, 0o2770)


@pytest.mark.parametrize("options", [{}, {"mkfsOptions": "-O ^has_journal"}])
def test_without_lost_and_found(
    driver: Driver, tmp_path: Path, pool: Path, root: None, options: dict[str, str]
) -> None:
    """A new ext4 is empty, clean, and stays so; by default lost+found is there."""
    wanted = mount_capability("ext4")
    given = {"type": "image", "lostAndFound": "false"} | options
    volume_id = driver.create("v", 32 * MIB, capability=wanted, parameters=given).volume_id
    assert check("-p", image_of(pool, volume_id)) == 0
    assert check("-f", "-n", image_of(pool, volume_id)) == 0
    with driver.published(volume_id, tmp_path, wanted) as target:
        assert list(target.iterdir()) == []
    plain = given | {"lostAndFound": "true"}
    other = driver.create("w", 32 * MIB, capability=wanted, parameters=plain).volume_id
    with driver.published(other, tmp_path, wanted) as target:
        assert [item.name for item in target.iterdir()] == ["lost+found"]


@pytest.mark.parametrize("how", ["expanded", "cloned"])
def test_growth_brings_no_lost_and_found(
    driver: Driver, tmp_path: Path, pool: Path, root: None, how: str
) -> None:
    """The check before an unmounted ext4 grows does not make what was left out."""
    wanted = mount_capability("ext4")
    given = {"type": "image", "lostAndFound": "false"}
    volume_id = driver.create("v", 32 * MIB, capability=wanted, parameters=given).volume_id
    if how == "expanded":
        driver.expand(volume_id, 96 * MIB)
    else:
        volume_id = driver.create(
            "c", 96 * MIB, capability=wanted, parameters=given, source=from_volume(volume_id)
        ).volume_id
    with driver.published(volume_id, tmp_path, wanted) as target:
        size = os.statvfs(target)
        assert size.f_blocks * size.f_frsize > 64 * MIB
        assert list(target.iterdir()) == []
    assert check("-f", "-n", image_of(pool, volume_id)) == 0


def test_killed_while_it_is_made(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path, root: None
) -> None:
    """A creation that is repeated after a kill has the owner that was asked for."""
    driver = serve(pool)
    request = csi.CreateVolumeRequest(
        name="v",
        capacity_range=csi.CapacityRange(required_bytes=64 * MIB),
        volume_capabilities=[mount_capability("ext4")],
        parameters={"type": "image", "lostAndFound": "false"} | OWNED,
    )
    for number in range(8):
        request.name = f"v{number}"
        driver.controller.CreateVolume.future(request)
        time.sleep(0.005 * number)
        driver.restart(signal.SIGKILL)
        volume_id = driver.controller.CreateVolume(request).volume.volume_id
        with driver.published(volume_id, tmp_path, request.volume_capabilities[0]) as target:
            assert facts(target) == (1001, 4294967294, 0o3770)
            assert list(target.iterdir()) == []


def test_raw_block_has_no_root(driver: Driver, root: None) -> None:
    """Also where the volume would be made from one with a filesystem."""
    wanted = block_capability()
    source = from_volume(driver.create("v", 32 * MIB, type="image").volume_id)
    for key, value in (OWNED | {"lostAndFound": "true"}).items():
        with refused(INVALID, "raw block", key):
            driver.create("b", 32 * MIB, capability=wanted, parameters={key: value})
        with refused(INVALID, "raw block", key):
            driver.create("b", 32 * MIB, capability=wanted, parameters={key: value}, source=source)
