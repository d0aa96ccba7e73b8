"""csi-sanity against every kind of volume, where the user has it on PATH (`make sanity`)."""

import functools
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import cluster
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver

from pycsi.linux import luks
from pycsi.proto import csi_pb2 as csi

CASES = {
    "directory-ext4": ("ext4", "type: directory\nquota: none\n", "mount", GIB),
    "directory-btrfs": ("btrfs", "type: directory\n", "mount", GIB),
    "image-ext4-on-xfs": ("xfs", "type: image\n", "mount", GIB),
    "image-xfs-on-ext4": ("ext4", "csi.storage.k8s.io/fstype: xfs\n", "mount", GIB),
    "image-btrfs-on-ext4": ("ext4", "csi.storage.k8s.io/fstype: btrfs\n", "mount", GIB),
    "block-on-ext4": ("ext4", "", "block", 64 * MIB),
    "block-on-btrfs": ("btrfs", "allocation: thick\n", "block", 64 * MIB),
    "encrypted-image": ("xfs", "encryption: luks2\n", "mount", GIB),
    "encrypted-block": ("ext4", "encryption: luks2\n", "block", 64 * MIB),
}

ALL_OF_1_12 = 95
"""The tests of csi-test 5.5, which knows CSI 1.12; all of them run here."""

CAPABILITIES = "should return appropriate capabilities"
"""The tests that compare what is advertised with what csi-sanity knows."""

SECRET = "MARKER of sixteen bytes or more"  # noqa: S105

OPTIONS = ("--enable-attach", "--max-volumes-per-node=4", "--log-level=debug")

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


def sanity(
    driver: Driver, central: Driver, parameters: Path, access: str, size: int, *more: str
) -> str:
    """Run csi-sanity once; return what it printed.

    It asks `central` for what a controller does, which can be the `driver` itself.
    """
    folder = driver.folder
    secrets = folder / "secrets.yaml"
    secrets.write_text(
        "".join(f"{kind}Secret: {{encryptionPassphrase: {SECRET}}}\n" for kind in SECRETS)
    )
    mutable = folder / "mutable.yaml"
    mutable.write_text("onDelete: delete\n")
    snapshot = folder / "snapshot.yaml"
    snapshot.write_text("consistency: point-in-time\n")
    done = subprocess.run(
        [
            "csi-sanity",
            f"--csi.endpoint=unix://{driver.socket}",
            f"--csi.controllerendpoint=unix://{central.socket}",
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
            "--ginkgo.timeout=30m",
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def counts(said: str) -> tuple[int, int, int, int]:
    """Return how many tests passed, failed, were pending and were skipped."""
    found = re.search(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped", said)
    assert found, said
    passed, failed, pending, skipped = map(int, found.groups())
    return passed, failed, pending, skipped


def without_unknown(run: Callable[..., str]) -> tuple[int, list[str]]:
    """Return how many tests csi-sanity cannot pass, and the option with which it skips them.

    One that is older than CSI 1.13, as csi-test up to 5.5 is, fails on each capability that it does
    not know, as such. What the capabilities promise it tests all the same, as far as it knows.
    """
    said = run(f"--ginkgo.focus={CAPABILITIES}")
    passed, failed, *_ = counts(said)
    if not failed:
        return 0, []
    assert len(re.findall(r"\[FAILED\] Unknown (?:capability|service): \d+", said)) >= failed, said
    return passed + failed, [f"--ginkgo.skip={CAPABILITIES}"]


def check(driver: Driver, central: Driver, parameters: Path, case: str, version: str) -> None:
    """Run csi-sanity twice, in order and at random: no test fails, and no secret is in a log."""
    _, text, access, size = CASES[case]
    if "encryption" in text and (refusal := luks.refusal()):
        pytest.skip(f"{refusal}; the machine of make test-vm has it")
    parameters.write_text(text)
    run = functools.partial(sanity, driver, central, parameters, access, size)
    unknown, skip = without_unknown(run)
    assert version == "1.13" or not unknown, "1.12 advertises nothing that is new"
    for more in ((), ("--ginkgo.randomize-all",)):
        said = run(*skip, *more)
        passed, failed, pending, skipped = counts(said)
        # The one that is pending is so for everybody: csi-test itself has switched it off.
        assert (failed, pending) == (0, 1), said
        assert passed >= ALL_OF_1_12 - unknown, said
        assert skipped == unknown or version == "1.12", said
    assert SECRET not in driver.log + central.log
    assert central.volume_ids() == []
    assert not central.controller.ListSnapshots(csi.ListSnapshotsRequest()).entries


@pytest.fixture(autouse=True)
def _on_path() -> None:
    if shutil.which("csi-sanity") is None:
        pytest.skip("csi-sanity is not on PATH; see make sanity")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", ["1.12", "1.13"])
@pytest.mark.parametrize("case", CASES)
def test_sanity(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    case: str,
    version: str,
) -> None:
    """All tests pass on one server, in both versions of CSI, and for every kind of volume."""
    pool = filesystem(CASES[case][0], 8 * GIB)
    driver = serve(f"default={pool},overcommit=4", options=(*OPTIONS, f"--csi-version={version}"))
    check(driver, driver, tmp_path / "parameters.yaml", case, version)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=["one node", "two nodes"])
@pytest.mark.parametrize("case", CASES)
def test_sanity_through_a_controller(
    filesystem: FilesystemFactory, tmp_path: Path, case: str, names: tuple[str, ...]
) -> None:
    """All tests pass with a controller and one of its nodes; another node has no room.

    For csi-sanity asks for volumes without a topology, and uses them on the node that it knows.
    """
    pools = [filesystem(CASES[case][0], 32 * GIB) for _ in names]
    sizes = (0, 1)[: len(names)]
    with cluster(tmp_path, *names, pools=pools, options=OPTIONS, sizes=sizes) as running:
        node = running.nodes["a"]
        check(node, running.controller, tmp_path / "parameters.yaml", case, "1.13")
