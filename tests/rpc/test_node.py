"""The Node service: what is checked, in which order, before anything is mounted."""

import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import run
from driver import MIB, Driver, Mode, block_capability, mount_capability
from rpc.conftest import OK, code_of, pool_of, unchanged

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
INVALID, MISSING, FAILED = Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION
GROUP = csi.VolumeCapability(
    mount=csi.VolumeCapability.MountVolume(volume_mount_group="1000"),
    access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER),
)
EPHEMERAL = {"csi.storage.k8s.io/ephemeral": "true"}
LONG = "/tmp/" + "x" * 300
COMMON: dict[str, Any] = {"volume_id": "v@node-1", "volume_capability": mount_capability()}
BASE: dict[str, dict[str, Any]] = {
    "NodeStageVolume": COMMON | {"staging_target_path": "{tmp}/staging"},
    "NodeUnstageVolume": {"volume_id": "v@node-1", "staging_target_path": "{tmp}/staging"},
    "NodePublishVolume": COMMON
    | {"staging_target_path": "{tmp}/staging", "target_path": "{tmp}/target"},
    "NodeUnpublishVolume": {"volume_id": "v@node-1", "target_path": "{tmp}/target"},
    "NodeGetVolumeStats": {"volume_id": "v@node-1", "volume_path": "{tmp}/target"},
    "NodeExpandVolume": {"volume_id": "v@node-1", "volume_path": "{tmp}/target"},
}


@pytest.fixture(scope="module")
def node(shared: Driver) -> Driver:
    """Return a driver with a directory `v` and an image `i`."""
    shared.create("v", 4 * MIB, quota="none")
    shared.create("i", 16 * MIB, type="image")
    return shared


def call(driver: Driver, method: str, tmp_path: Path, fields: dict[str, Any]) -> grpc.StatusCode:
    """Call a method whose paths lie in `tmp_path`, where there is a staging directory."""
    (tmp_path / "staging").mkdir(exist_ok=True)
    given = {
        key: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in (BASE[method] | fields).items()
    }
    message = getattr(csi, f"{method}Request")(**given)
    return code_of(lambda: getattr(driver.node, method)(message))


REQUIRED = [(method, field) for method, fields in BASE.items() for field in fields]


@pytest.mark.parametrize(("method", "field"), REQUIRED)
@pytest.mark.parametrize("volume_id", ["v@node-1", "none@node-1", "fake"])
def test_missing_field(
    node: Driver, tmp_path: Path, method: str, field: str, volume_id: str
) -> None:
    """A missing required field is INVALID_ARGUMENT before the volume is looked for."""
    fields = {"volume_id": volume_id} | {field: None}
    if (method, field) == ("NodePublishVolume", "staging_target_path"):
        expected = FAILED if volume_id == "v@node-1" else MISSING
        assert call(node, method, tmp_path, fields) in {expected, FAILED}
    else:
        assert call(node, method, tmp_path, fields) is INVALID
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("method", BASE)
@pytest.mark.parametrize("volume_id", ["none@node-1", "v@node-2", "v", "../../etc", "x" * 5000])
def test_volume_that_is_not_there(
    node: Driver, tmp_path: Path, method: str, volume_id: str
) -> None:
    """An unknown volume is NOT_FOUND, also where the path is relative."""
    codes = {MISSING, OK} if method == "NodeUnpublishVolume" and "@" not in volume_id else {MISSING}
    assert call(node, method, tmp_path, {"volume_id": volume_id}) in codes
    if "volume_path" in BASE[method]:
        fields = {"volume_id": volume_id, "volume_path": "some/path"}
        assert call(node, method, tmp_path, fields) is MISSING


PATHS = ["some/path", "/tmp/../etc", "..", "/", "/tmp/a\0b", "/tmp/" + "x/" * 2048, LONG]


@pytest.mark.parametrize(
    ("method", "field"),
    [(method, field) for method, field in REQUIRED if field.endswith("path")],
)
@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_path_that_cannot_be(
    node: Driver, tmp_path: Path, method: str, field: str, path: str
) -> None:
    """A path at which nothing can be mounted is refused; where it is only looked at, NOT_FOUND."""
    code = call(node, method, tmp_path, {field: path})
    if field == "volume_path":
        assert code is MISSING
    elif "Un" in method:
        assert code in {INVALID, OK}
    else:
        assert code in {INVALID, FAILED}


@pytest.mark.parametrize("method", ["NodeStageVolume", "NodePublishVolume"])
@pytest.mark.parametrize("below", ["", "/volumes", "/volumes/v@node-1/data", "/trash"])
def test_path_in_a_pool(node: Driver, tmp_path: Path, method: str, below: str) -> None:
    """Nothing is mounted inside a pool."""
    path = f"{pool_of(node)}{below}"
    (tmp_path / "link").symlink_to(path)
    field = "staging_target_path" if method == "NodeStageVolume" else "target_path"
    with unchanged(node):
        assert call(node, method, tmp_path, {field: f"{path}/x"}) is INVALID
        assert call(node, method, tmp_path, {field: f"{tmp_path}/link/x"}) is INVALID


@pytest.mark.parametrize("method", ["NodeStageVolume", "NodePublishVolume"])
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"volume_capability": GROUP}, FAILED),
        ({"volume_capability": block_capability()}, FAILED),
        ({"volume_capability": mount_capability(flags=["data=journal"])}, FAILED),
        ({"volume_capability": csi.VolumeCapability()}, INVALID),
        ({"volume_id": "i@node-1", "volume_capability": mount_capability("xfs")}, FAILED),
        ({"volume_id": "i@node-1", "volume_capability": block_capability()}, FAILED),
        ({"volume_context": {"poolUUID": "00000000-0000-0000-0000-000000000000"}}, FAILED),
        ({"staging_target_path": "{tmp}/missing"}, FAILED),
    ],
)
def test_capability_that_does_not_fit(
    node: Driver, tmp_path: Path, method: str, fields: dict[str, Any], code: grpc.StatusCode
) -> None:
    """What exceeds the volume is FAILED_PRECONDITION on the node, and leaves no target."""
    assert call(node, method, tmp_path, fields) is code
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["staging"]


def test_publish_what_is_not_staged(node: Driver, tmp_path: Path) -> None:
    """Publishing comes after staging, and a refusal leaves no target."""
    for volume_id in ("v@node-1", "i@node-1"):
        assert call(node, "NodePublishVolume", tmp_path, {"volume_id": volume_id}) is FAILED
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("volume_id", ["v@node-1", "i@node-1"])
def test_undo_what_was_never_done(node: Driver, tmp_path: Path, volume_id: str) -> None:
    """Unstaging and unpublishing what is neither is OK, and touches nothing."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target/file").write_text("kept")
    assert call(node, "NodeUnstageVolume", tmp_path, {"volume_id": volume_id}) is OK
    assert call(node, "NodeUnpublishVolume", tmp_path, {"volume_id": volume_id}) is OK
    assert (tmp_path / "target/file").read_text() == "kept"
    assert (tmp_path / "staging").is_dir()


def test_unpublish_an_inline_volume_that_was_lost(node: Driver, tmp_path: Path) -> None:
    """The same for a volume that came with a workload; once its target is gone it stays gone."""
    (tmp_path / "target").mkdir()
    for _ in range(2):
        assert call(node, "NodeUnpublishVolume", tmp_path, {"volume_id": "csi-inline"}) is OK
        assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_unpublish_what_was_lost(node: Driver, tmp_path: Path, kind: str) -> None:
    """After a pool's disk was replaced the empty targets of its volumes can be taken away.

    An orchestrator would otherwise ask for ever, and never let the workload go.
    """
    target = tmp_path / "target"
    target.mkdir() if kind == "directory" else target.touch()
    lost = {"volume_id": "lost@node-1"}
    assert call(node, "NodeUnpublishVolume", tmp_path, {"volume_id": "lost@node-2"}) is MISSING
    assert target.exists()
    assert call(node, "NodeUnpublishVolume", tmp_path, lost) is OK
    assert not target.exists()
    assert call(node, "NodeUnpublishVolume", tmp_path, lost) is MISSING


def test_unpublish_what_is_somebody_elses(node: Driver, tmp_path: Path, root: None) -> None:
    """Of an unknown volume nothing is unmounted, and no files are deleted."""
    target = tmp_path / "target"
    target.mkdir()
    lost = {"volume_id": "lost@node-1"}
    run("mount", "-t", "tmpfs", "none", target)
    try:
        assert call(node, "NodeUnpublishVolume", tmp_path, lost) is MISSING
        assert target.is_mount()
    finally:
        run("umount", target)
    (target / "file").touch()
    assert call(node, "NodeUnpublishVolume", tmp_path, lost) is FAILED
    assert (target / "file").exists()


@pytest.mark.parametrize("method", ["NodeGetVolumeStats", "NodeExpandVolume"])
def test_path_that_is_not_this_volume(node: Driver, tmp_path: Path, method: str) -> None:
    """A path that exists and is not this volume is NOT_FOUND."""
    for path in (tmp_path, "/", "/proc", tmp_path / "none"):
        assert call(node, method, tmp_path, {"volume_path": str(path)}) is MISSING


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"volume_id": "v@node-1"}, INVALID),
        ({"volume_context": EPHEMERAL | {"mkfsOptions": "-K"}}, INVALID),
        ({"volume_context": EPHEMERAL | {"quota": "none"}}, INVALID),
        ({"volume_context": EPHEMERAL | {"size": "big"}}, INVALID),
        ({"volume_context": EPHEMERAL | {"size": "-1"}}, INVALID),
        ({"volume_context": EPHEMERAL | {"size": "0"}}, INVALID),
        (
            {"volume_context": EPHEMERAL | {"size": "9" * 400}},
            {INVALID, Code.OUT_OF_RANGE},
        ),
        ({"volume_context": EPHEMERAL | {"size": "8000Pi"}}, Code.OUT_OF_RANGE),
        ({"volume_context": EPHEMERAL | {"size": "9999Pi"}}, {INVALID, Code.OUT_OF_RANGE}),
        ({"volume_context": EPHEMERAL | {"pool": "none"}}, INVALID),
        ({"target_path": "target"}, INVALID),
        ({"target_path": "{tmp}/none/target"}, FAILED),
        ({"volume_capability": GROUP}, FAILED),
    ],
)
def test_inline_volume_that_is_refused(
    node: Driver, tmp_path: Path, fields: dict[str, Any], code: Any
) -> None:
    """An inline volume that cannot be had is refused, and leaves neither a volume nor a target."""
    given = {"volume_id": "csi-1", "volume_context": EPHEMERAL, "staging_target_path": ""} | fields
    with unchanged(node):
        found = call(node, "NodePublishVolume", tmp_path, given)
        assert found in (code if isinstance(code, set) else {code})
    assert not (tmp_path / "target").exists()


def test_node_info(node: Driver) -> None:
    """The node's answers are stable, and its topology is the volumes'."""
    info = node.node.NodeGetInfo(csi.NodeGetInfoRequest())
    assert info == node.node.NodeGetInfo(csi.NodeGetInfoRequest())
    assert (info.node_id, info.max_volumes_per_node) == ("node-1", 0)
    listed = node.controller.ListVolumes(csi.ListVolumesRequest()).entries
    assert {str(entry.volume.accessible_topology[0]) for entry in listed} == {
        str(info.accessible_topology)
    }


@pytest.mark.parametrize("name", ["a b", "a\tb", "a\nb", "a\\b", "é", "a\rb", "a\u2028b", "a\x0cb"])
def test_odd_mount_elsewhere(root: None, node: Driver, tmp_path: Path, name: str) -> None:
    """A mount of somebody else's with an odd name stops nothing; an odd target works."""
    other = tmp_path / name
    other.mkdir()
    run("mount", "-t", "tmpfs", "none", other)
    try:
        assert code_of(lambda: node.stage("v@node-1", tmp_path / f"staging {name}")) is OK
        with node.published("i@node-1", tmp_path) as target:
            os.statvfs(target)
        assert code_of(lambda: node.unstage("v@node-1", tmp_path / f"staging {name}")) is OK
    finally:
        run("umount", other)
        left = tmp_path / f"staging {name}"
        while left.is_mount():
            run("umount", left)
