"""What a driver needs the right to do: it says at start what will not work, and why."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import needs
from driver import AS_ROOT, Driver, block_capability, refused

from pycsi.proto import csi_pb2 as csi

FAILED = grpc.StatusCode.FAILED_PRECONDITION
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.fixture
def setpriv() -> str:
    needs("setpriv", met=shutil.which("setpriv") is not None)
    return "setpriv"


def test_who_can_mount_nothing(pool: Path, tmp_path: Path, setpriv: str) -> None:
    """A driver that could serve no volume ends with one line, and changes nothing."""
    command = [*AS_ROOT, setpriv, "--bounding-set=-sys_admin", sys.executable, "-m", "pycsi"]
    command += ["serve", f"--endpoint=unix://{tmp_path}/s", "--node-id=n", f"--pool=p={pool}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "CAP_SYS_ADMIN" in done.stderr
    assert "as root" in done.stderr
    assert list(pool.iterdir()) == []


def test_in_a_user_namespace(serve: Callable[..., Driver], pool: Path, tmp_path: Path) -> None:
    """Directories can be used; an image, which could not, is refused with the true reason."""
    driver = serve(pool, wrapper=() if AS_ROOT else NAMESPACE)
    assert "images and raw block volumes cannot be used" in driver.log
    with refused(FAILED, "loop device", "user namespace", "type: directory"):
        driver.controller.CreateVolume(image())
    with refused(FAILED, "user namespace"):
        driver.controller.CreateVolume(image(block_capability()))
    assert driver.capacity(type="image").available_capacity == 0
    volume_id = driver.create("d", quota="none").volume_id
    with driver.published(volume_id, tmp_path):
        assert not driver.condition(volume_id).abnormal
    driver.delete(volume_id)
    assert driver.volume_ids() == []


def image(capability: csi.VolumeCapability | None = None) -> csi.CreateVolumeRequest:
    mounted = csi.VolumeCapability(mount=csi.VolumeCapability.MountVolume())
    wanted = capability or mounted
    wanted.access_mode.mode = csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
    return csi.CreateVolumeRequest(
        name="i", volume_capabilities=[wanted], parameters={"type": "image"}
    )


def test_missing_rights_over_files(
    serve: Callable[..., Driver], pool: Path, setpriv: str, root: None
) -> None:
    """What is needed for files of other users is named where it lacks."""
    driver = serve(pool, wrapper=(setpriv, "--bounding-set=-chown,-fowner"))
    (line,) = (line for line in driver.log.splitlines() if "files of other users" in line)
    assert "CAP_CHOWN, CAP_FOWNER:" in line


def test_with_all_rights(driver: Driver, root: None) -> None:
    """Nothing is warned of where nothing lacks."""
    assert "warning" not in driver.log
