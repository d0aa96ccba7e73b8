"""A mkfs that makes what the kernel does not mount, as one that is newer than the kernel.

It is played by the real one with a feature that no kernel has, which allows reading only.
"""

import concurrent.futures
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, needs
from driver import GIB, MIB, Driver, from_volume, mount_capability, refused

from pycsi.proto import csi_pb2 as csi

SPOIL = {
    "ext4": 'debugfs -w -R "set_super_value feature_ro_compat 0x40000000" "$image"',
    "xfs": 'xfs_db -x -c "sb 0" -c "write -d features_ro_compat 0x40000000" "$image"',
}
"""Shell commands that add the feature to a filesystem."""

SIZE = 300 * MIB


@pytest.fixture
def bin_folder(root: None, tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def play(folder: Path, kind: str, unless: str = "nothing", first: str = ":") -> dict[str, str]:
    """Make a mkfs that spoils what it makes unless an argument matches; return the environment."""
    name = f"mkfs.{kind}"
    real = shutil.which(name)
    needs(name, met=real is not None)
    script = f"""#!/bin/sh
echo "$*" >> {folder}/calls
for image; do :; done
{first}
{real} "$@" || exit
case "$*" in *{unless}*) ;; *) {SPOIL[kind]} ;; esac > /dev/null 2>&1
"""
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def calls(folder: Path) -> int:
    """Return how often mkfs was called."""
    return len((folder / "calls").read_text().splitlines())


@pytest.mark.parametrize("kind", SPOIL)
def test_kind_that_cannot_be_mounted(
    serve: Callable[..., Driver], bin_folder: Path, pool: Path, tmp_path: Path, kind: str
) -> None:
    """It is refused with the kernel's reason, has no capacity, and is tried once only."""
    driver = serve(pool, **play(bin_folder, kind))
    wanted = mount_capability(kind)
    for number in range(2):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, f"mkfs.{kind}", "fs_type"):
            driver.create(f"v{number}", SIZE, capability=wanted, type="image")
    tried = calls(bin_folder)
    request = csi.GetCapacityRequest(volume_capabilities=[wanted], parameters={"type": "image"})
    answer = driver.controller.GetCapacity(request)
    assert answer.available_capacity == answer.maximum_volume_size.value == 0
    context = {"csi.storage.k8s.io/ephemeral": "true", "type": "image", "size": str(SIZE)}
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"mkfs.{kind}"):
        driver.publish("csi-1", None, tmp_path / "target", wanted, context=context)
    assert calls(bin_folder) == tried
    assert driver.volume_ids() == []
    assert list((pool / "tmp").iterdir()) == []
    other = mount_capability({"ext4": "xfs", "xfs": "ext4"}[kind])
    volume_id = driver.create("w", SIZE, capability=other, type="image").volume_id
    with driver.published(volume_id, tmp_path, other):
        pass


@pytest.mark.parametrize(
    ("kind", "unless", "options"),
    [("xfs", "nrext64=0", "-i size=1024"), ("ext4", "^orphan_file", "-O ^has_journal")],
)
def test_options_that_fit(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    bin_folder: Path,
    tmp_path: Path,
    kind: str,
    unless: str,
    options: str,
) -> None:
    """What the kernel does not know is left out, also with mkfsOptions and in copies."""
    driver = serve(filesystem("xfs", 2 * GIB), **play(bin_folder, kind, unless))
    wanted = mount_capability(kind)
    volumes = [
        driver.create("v", SIZE, capability=wanted, type="image").volume_id,
        driver.create("w", SIZE, capability=wanted, mkfsOptions=options).volume_id,
    ]
    tried = calls(bin_folder)
    volumes.append(driver.create("x", SIZE, capability=wanted, type="image").volume_id)
    assert calls(bin_folder) == tried + 1
    volumes.append(
        driver.create("y", SIZE, capability=wanted, source=from_volume(volumes[0])).volume_id
    )
    for volume_id in volumes:
        with driver.published(volume_id, tmp_path, wanted) as target:
            (target / "file").write_text("x")


def test_many_first_volumes_at_once(
    serve: Callable[..., Driver], bin_folder: Path, pool: Path
) -> None:
    """One of them tries what mkfs makes, the others wait for that."""
    driver = serve(pool, **play(bin_folder, "ext4", "*", first="sleep 0.2"))
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda number: driver.create(f"v{number}", type="image"), range(6)))
    assert calls(bin_folder) == 1 + 6


def test_trial_that_fails_for_a_passing_reason(
    serve: Callable[..., Driver], bin_folder: Path, pool: Path, tmp_path: Path
) -> None:
    """It is neither remembered nor held against the volume."""
    broken = bin_folder / "broken"
    first = f"if mkdir {broken}; then exit 1; fi 2> /dev/null"
    driver = serve(pool, **play(bin_folder, "ext4", "*", first=first))
    for number in range(3):
        volume_id = driver.create(f"v{number}", type="image").volume_id
        with driver.published(volume_id, tmp_path):
            pass
    assert calls(bin_folder) == 1 + 1 + 2 + 1  # the first trial fails, the second is good


def test_other_version_of_mkfs(
    serve: Callable[..., Driver], bin_folder: Path, pool: Path, tmp_path: Path
) -> None:
    """What was found out is about one version of the program; a new one is tried anew."""
    driver = serve(pool, **play(bin_folder, "ext4"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "mkfs.ext4"):
        driver.create("v", type="image")
    (bin_folder / "mkfs.ext4").unlink()
    play(bin_folder, "ext4", "*")
    with driver.published(driver.create("v", type="image").volume_id, tmp_path):
        pass


def test_driver_that_dies_meanwhile(
    serve: Callable[..., Driver], bin_folder: Path, pool: Path
) -> None:
    """Nothing is left of the trial after the next start."""
    driver = serve(pool, **play(bin_folder, "ext4", "*", first="sleep 0.5"))
    request = csi.CreateVolumeRequest(
        name="v", volume_capabilities=[mount_capability()], parameters={"type": "image"}
    )
    call = driver.controller.CreateVolume.future(request)
    deadline = time.monotonic() + 30
    while not (bin_folder / "calls").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list((pool / "tmp").rglob("disk.img"))
    assert driver.process is not None
    driver.process.kill()
    call.cancel()
    driver.restart(9)
    assert list((pool / "tmp").iterdir()) == []
    driver.create("v", type="image")


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("xfs", "-b size=512", "Minimum block size for CRC enabled filesystems is 1024 bytes"),
        ("ext4", "-E nosuch", "Bad option(s) specified: nosuch"),
        ("ext4", "-G 3", "flex_bg size must be a power of 2"),
    ],
)
def test_options_that_mkfs_refuses(driver: Driver, kind: str, options: str, reason: str) -> None:
    """The answer has the reason, however much the program says besides."""
    needs(f"mkfs.{kind}", met=shutil.which(f"mkfs.{kind}") is not None)
    wanted = mount_capability(kind)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "mkfsOptions", reason):
        driver.create("v", SIZE, capability=wanted, mkfsOptions=options)


@pytest.mark.parametrize("kind", SPOIL)
def test_options_for_what_can_only_be_read(
    serve: Callable[..., Driver], bin_folder: Path, pool: Path, kind: str
) -> None:
    """Options of a class whose result this kernel mounts read-only are refused at creation."""
    options = {"ext4": "-I 512", "xfs": "-i size=1024"}[kind]
    word = options.split()[1]
    environment = play(bin_folder, kind, "*", first=":")
    script = (bin_folder / f"mkfs.{kind}").read_text()
    spoiled = script.replace('case "$*" in ***)', f'case "$*" in *{word}*) {SPOIL[kind]} ;; *)')
    assert spoiled != script
    (bin_folder / f"mkfs.{kind}").write_text(spoiled)
    driver = serve(pool, **environment)
    wanted = mount_capability(kind)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "mkfsOptions", "writable"):
        driver.create("v", SIZE, capability=wanted, mkfsOptions=options)
    assert driver.volume_ids() == []
    assert list((pool / "tmp").iterdir()) == []
    driver.create("v", SIZE, capability=wanted, type="image")
