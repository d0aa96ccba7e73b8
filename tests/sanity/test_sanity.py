"""csi-sanity against every kind of volume, where the user has it on PATH (`make sanity`)."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver

from pycsi.proto import csi_pb2 as csi

CASES = {
    "directory-ext4": ("ext4", "type: directory\nquota: none\n", "mount", GIB),
    "directory-btrfs": ("btrfs", "type: directory\n", "mount", GIB),
    "image-ext4-on-xfs": ("xfs", "type: image\n", "mount", GIB),
    "image-xfs-on-ext4": ("ext4", "csi.storage.k8s.io/fstype: xfs\n", "mount", GIB),
    "image-btrfs-on-ext4": ("ext4", "csi.storage.k8s.io/fstype: btrfs\n", "mount", GIB),
    "block-on-ext4": ("ext4", "", "block", 64 * MIB),
    "block-on-btrfs": ("btrfs", "allocation: thick\n", "block", 64 * MIB),
}

SECRETS = [
    "CreateVolume",
    "DeleteVolume",
    "ControllerPublishVolume",
    "ControllerUnpublishVolume",
    "ControllerValidateVolumeCapabilities",
    "ControllerExpandVolume",
    "ControllerModifyVolume",
    "CreateSnapshot",
    "DeleteSnapshot",
    "ListSnapshots",
    "GetSnapshot",
    "NodeStageVolume",
    "NodePublishVolume",
]


def sanity(driver: Driver, parameters: Path, access: str, size: int, *more: str) -> str:
    """Run csi-sanity once; return what it printed."""
    folder = driver.folder
    secrets = folder / "secrets.yaml"
    secrets.write_text("".join(f"{kind}Secret: {{key: MARKER}}\n" for kind in SECRETS))
    mutable = folder / "mutable.yaml"
    mutable.write_text("onDelete: delete\n")
    snapshot = folder / "snapshot.yaml"
    snapshot.write_text("consistency: point-in-time\n")
    done = subprocess.run(
        [
            "csi-sanity",
            f"--csi.endpoint=unix://{driver.socket}",
            f"--csi.mountdir={folder}/mount",
            f"--csi.stagingdir={folder}/staging",
            f"--csi.secrets={secrets}",
            f"--csi.testvolumeparameters={parameters}",
            f"--csi.testvolumemutableparameters={mutable}",
            f"--csi.testsnapshotparameters={snapshot}",
            f"--csi.testvolumeaccesstype={access}",
            f"--csi.testvolumesize={size}",
            f"--csi.testvolumeexpandsize={2 * size}",
            "--csi.testnodevolumeattachlimit",
            "--ginkgo.no-color",
            "--ginkgo.timeout=10m",
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_sanity(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, case: str
) -> None:
    """No test fails, in order and at random, twice on one server; no secret is in the log."""
    if shutil.which("csi-sanity") is None:
        pytest.skip("csi-sanity is not on PATH; see make sanity")
    kind, text, access, size = CASES[case]
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(text)
    pool = filesystem(kind, 8 * GIB)
    options = ("--enable-attach", "--max-volumes-per-node=4", "--log-level=debug")
    driver = serve(f"default={pool},overcommit=4", options=options)
    for more in ((), ("--ginkgo.randomize-all",)):
        said = sanity(driver, parameters, access, size, *more)
        counts = re.search(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped", said)
        assert counts, said
        # The one that is pending is so for everybody: csi-test itself has switched it off.
        assert [int(count) for count in counts.groups()] == [95, 0, 1, 0], said
    assert "MARKER" not in driver.log
    assert driver.volume_ids() == []
    assert not driver.controller.ListSnapshots(csi.ListSnapshotsRequest()).entries
