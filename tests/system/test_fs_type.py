"""The fs_type of a capability: honoured, or refused, never ignored."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory
from driver import (
    GIB,
    MIB,
    Driver,
    Mode,
    block_capability,
    from_snapshot,
    from_volume,
    mount_capability,
    refused,
)

from pycsi.linux.kernel import mount_under
from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
FSTYPE = "csi.storage.k8s.io/fstype"
FILES = {"type": "directory", "quota": "none"}


def other_than(kind: str) -> str:
    return "xfs" if kind == "ext4" else "ext4"


def capacity(driver: Driver, kind: str, parameters: dict[str, str]) -> int:
    request = csi.GetCapacityRequest(
        volume_capabilities=[mount_capability(kind)], parameters=parameters
    )
    available: int = driver.controller.GetCapacity(request).available_capacity
    return available


def unconfirmed(driver: Driver, volume_id: str, wanted: csi.VolumeCapability) -> str:
    """Return why a capability is not confirmed; nothing where it is."""
    answer = driver.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(volume_id=volume_id, volume_capabilities=[wanted])
    )
    assert answer.HasField("confirmed") != bool(answer.message)
    message: str = answer.message
    return message


def test_directory_has_the_pools_filesystem(driver: Driver, pool: Path) -> None:
    """Its own name is no obstacle; another one is refused where a directory is asked for."""
    ground = mount_under(pool).fstype
    other = other_than(ground)
    driver.create("same", capability=mount_capability(ground), parameters=FILES)
    driver.create("class", parameters={**FILES, FSTYPE: ground})
    for parameters in (FILES, {"quota": "none"}):
        with refused(Code.INVALID_ARGUMENT, other, ground):
            driver.create("v", capability=mount_capability(other), parameters=parameters)
        with refused(Code.INVALID_ARGUMENT, other, ground):
            driver.create("v", parameters={**parameters, FSTYPE: other})
        with refused(Code.INVALID_ARGUMENT, other, ground):
            capacity(driver, other, parameters)
    assert capacity(driver, ground, FILES) > 0


def test_type_that_is_left_open(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """On a pool that limits directories, another filesystem than the pool's is an image's."""
    driver = serve(filesystem("btrfs", 2 * GIB))
    for kind, made in (("", "directory"), ("btrfs", "directory"), ("ext4", "image")):
        wanted = mount_capability(kind)
        volume = driver.create(f"v{kind}", capability=wanted)
        assert volume.volume_context["type"] == made
        with driver.published(volume.volume_id, tmp_path, wanted) as target:
            assert mount_under(target).fstype == (kind or "btrfs")
    assert driver.create("class", parameters={FSTYPE: "xfs"}).volume_context["type"] == "image"


@pytest.mark.parametrize("kind", ["nosuchfs", "EXT4", "nfs", "tmpfs"])
def test_unknown_filesystem(driver: Driver, root: None, tmp_path: Path, kind: str) -> None:
    """A filesystem that nothing here has is refused everywhere."""
    wanted = mount_capability(kind)
    volumes = [driver.create("d", parameters=FILES), driver.create("i", 16 * MIB, type="image")]
    for parameters in ({}, FILES, {"type": "image"}):
        with refused(Code.INVALID_ARGUMENT, kind):
            driver.create("v", capability=wanted, parameters=parameters)
        with refused(Code.INVALID_ARGUMENT, kind):
            driver.create("v", parameters={**parameters, FSTYPE: kind})
        with refused(Code.INVALID_ARGUMENT, kind):
            capacity(driver, kind, parameters)
    inline = {"csi.storage.k8s.io/ephemeral": "true", "size": "16Mi"}
    with refused(Code.INVALID_ARGUMENT, kind):
        driver.publish("csi-1", None, tmp_path / "target", wanted, context=inline)
    for volume_id in (volume.volume_id for volume in volumes):
        assert kind in unconfirmed(driver, volume_id, wanted)
        assert not unconfirmed(driver, volume_id, mount_capability())
        grow = csi.ControllerExpandVolumeRequest(volume_id=volume_id, volume_capability=wanted)
        grow.capacity_range.required_bytes = 128 * MIB
        with refused(Code.INVALID_ARGUMENT, kind):
            driver.controller.ControllerExpandVolume(grow)
        with refused(Code.FAILED_PRECONDITION, kind):
            driver.stage(volume_id, tmp_path / "staging", wanted)
        driver.stage(volume_id, tmp_path / "staging")
        with refused(Code.FAILED_PRECONDITION, kind):
            driver.publish(volume_id, tmp_path / "staging", tmp_path / "target", wanted)
        assert not (tmp_path / "target").exists()
        driver.unstage(volume_id, tmp_path / "staging")
    assert sorted(driver.volume_ids()) == sorted(volume.volume_id for volume in volumes)


@pytest.mark.parametrize("kind", ["directory", "image", "block"])
def test_other_capability_where_it_is_already(
    driver: Driver, root: None, pool: Path, tmp_path: Path, kind: str
) -> None:
    """Where it is staged or published that is ALREADY_EXISTS, elsewhere FAILED_PRECONDITION."""
    made = FILES if kind == "directory" else {"type": "image"}
    mine = block_capability() if kind == "block" else mount_capability()
    has = "ext4" if kind == "image" else mount_under(pool).fstype
    impossible = [
        mount_capability(other_than(has)),
        mount_capability("nosuchfs"),
        mount_capability(flags=["bind"]),
        mount_capability() if kind == "block" else block_capability(),
    ]
    possible = [
        type(mine).FromString(mine.SerializeToString()),
        mount_capability(flags=["noatime"]),
    ]
    possible[0].access_mode.mode = Mode.SINGLE_NODE_SINGLE_WRITER
    volume_id = driver.create("v", 16 * MIB, capability=mine, parameters=made).volume_id
    staging, target, elsewhere = tmp_path / "staging", tmp_path / "target", tmp_path / "elsewhere"
    for other in impossible:
        with refused(Code.FAILED_PRECONDITION):
            driver.stage(volume_id, staging, other)
    driver.stage(volume_id, staging, mine)
    for other in impossible + possible:
        with refused(Code.ALREADY_EXISTS, str(staging)):
            driver.stage(volume_id, staging, other)
    for other in impossible:
        with refused(Code.FAILED_PRECONDITION):
            driver.stage(volume_id, elsewhere, other)
        with refused(Code.FAILED_PRECONDITION):
            driver.publish(volume_id, staging, target, other)
    driver.publish(volume_id, staging, target, mine)
    for other in impossible + possible:
        with refused(Code.ALREADY_EXISTS, str(target)):
            driver.publish(volume_id, staging, target, other)
    driver.stage(volume_id, staging, mine)
    driver.publish(volume_id, staging, target, mine)
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)


def test_inline_volume_with_another_filesystem(
    driver: Driver, root: None, pool: Path, tmp_path: Path
) -> None:
    """The same holds for an inline volume at its target."""
    context = {"csi.storage.k8s.io/ephemeral": "true", "type": "image", "size": "16Mi"}
    target = tmp_path / "target"
    driver.publish("csi-1", None, target, mount_capability("ext4"), context=context)
    for kind in ("xfs", "nosuchfs"):
        with refused(Code.ALREADY_EXISTS, str(target)):
            driver.publish("csi-1", None, target, mount_capability(kind), context=context)
    driver.unpublish("csi-1", target)
    assert list((pool / "volumes").iterdir()) == []


def test_directory_whose_fs_type_was_ignored(
    driver: Driver, root: None, pool: Path, tmp_path: Path
) -> None:
    """One that an earlier version has made is used with its fs_type still, and copied."""
    volume_id = driver.create("v", parameters=FILES).volume_id
    other = other_than(mount_under(pool).fstype)
    wanted = mount_capability(other)
    record = pool / "volumes" / volume_id / "volume.json"
    data = json.loads(record.read_text())
    data["request"]["capabilities"][0]["filesystem"] = other
    driver.stop()
    record.write_text(json.dumps(data))
    driver.start()
    assert driver.create("v", capability=wanted, parameters=FILES).volume_id == volume_id
    assert not unconfirmed(driver, volume_id, wanted)
    with driver.published(volume_id, tmp_path, wanted) as target:
        (target / "file").write_text("kept")
    snapshot_id = driver.snapshot("s", volume_id).snapshot_id
    for name, source in (("c", from_volume(volume_id)), ("r", from_snapshot(snapshot_id))):
        copy = driver.create(name, capability=wanted, parameters=FILES, source=source).volume_id
        with driver.published(copy, tmp_path, wanted) as target:
            assert (target / "file").read_text() == "kept"
    with refused(Code.FAILED_PRECONDITION, "btrfs"):
        driver.stage(volume_id, tmp_path / "staging", mount_capability("btrfs"))
