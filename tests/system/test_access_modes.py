"""Access modes of many nodes: where one node is all there is, and where there may be others."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory
from driver import (
    GIB,
    MIB,
    NODE,
    Driver,
    Mode,
    block_capability,
    from_snapshot,
    mount_capability,
    refused,
)

from pycsi.proto import csi_pb2 as csi

FAILED, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
READ_ONLY = Mode.MULTI_NODE_READER_ONLY
WRITERS = [Mode.MULTI_NODE_SINGLE_WRITER, Mode.MULTI_NODE_MULTI_WRITER]
MANY = [*WRITERS, READ_ONLY]
REASON = "single-node"

KINDS: dict[str, dict[str, str]] = {
    "directory": {"type": "directory", "quota": "none"},
    "ext4": {"type": "image"},
    "block": {},
}


def capability(kind: str, mode: csi.VolumeCapability.AccessMode.Mode) -> csi.VolumeCapability:
    return block_capability(mode) if kind == "block" else mount_capability(mode=mode)


@contextlib.contextmanager
def at_three(
    driver: Driver, volume_id: str, folder: Path, wanted: csi.VolumeCapability
) -> Iterator[list[Path]]:
    """Publish a volume at three targets through the `with` block, and twice at each."""
    staging = folder / "staging"
    targets = [folder / f"target-{number}" for number in range(3)]
    driver.stage(volume_id, staging, wanted)
    for target in (*targets, *targets):
        driver.publish(volume_id, staging, target, wanted)
    yield targets
    for target in targets:
        driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)


def write(kind: str, target: Path, text: bytes) -> None:
    file = target if kind == "block" else target / "file"
    with file.open("r+b" if kind == "block" else "wb") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def read(kind: str, target: Path) -> bytes:
    with (target if kind == "block" else target / "file").open("rb") as opened:
        return opened.read(4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", WRITERS)
def test_many_writers(
    driver: Driver,
    tmp_path: Path,
    root: None,
    kind: str,
    mode: csi.VolumeCapability.AccessMode.Mode,
) -> None:
    """What is written at one target is read at each, and the volume outlives them all."""
    wanted = capability(kind, mode)
    volume_id = driver.create("v", 32 * MIB, capability=wanted, parameters=KINDS[kind]).volume_id
    with at_three(driver, volume_id, tmp_path, wanted) as targets:
        for number, target in enumerate(targets):
            write(kind, target, b"%04d" % number)
            assert {read(kind, other) for other in targets} == {b"%04d" % number}
    driver.delete(volume_id)


@pytest.mark.parametrize("kind", KINDS)
def test_read_only_from_a_snapshot(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """A larger copy for many readers has the data, and nobody can write to it."""
    driver = serve(filesystem("xfs", GIB))
    plain, wanted = (capability(kind, mode) for mode in (Mode.SINGLE_NODE_WRITER, READ_ONLY))
    size, parameters = 32 * MIB, KINDS[kind]
    volume_id = driver.create("v", size, capability=plain, parameters=parameters).volume_id
    with driver.published(volume_id, tmp_path, plain) as target:
        write(kind, target, b"data")
    source = from_snapshot(driver.snapshot("s", volume_id).snapshot_id)
    copy = driver.create(
        "c", 2 * size, capability=wanted, parameters=parameters, source=source
    ).volume_id
    with at_three(driver, copy, tmp_path, wanted) as targets:
        for target in targets:
            assert read(kind, target) == b"data"
            with pytest.raises(OSError, match=r"Read-only|not permitted"):
                write(kind, target, b"else")
    with driver.published(copy, tmp_path, plain) as target:
        assert read(kind, target) == b"data"


def test_a_claim_with_several_modes(driver: Driver, tmp_path: Path, root: None) -> None:
    """Each mode of a claim is a capability of its volume, and it can be used with each."""
    modes = [Mode.SINGLE_NODE_MULTI_WRITER, READ_ONLY, Mode.MULTI_NODE_MULTI_WRITER]
    wanted = [mount_capability(mode=mode) for mode in modes]
    request = csi.CreateVolumeRequest(
        name="v", volume_capabilities=wanted, parameters={"quota": "none"}
    )
    volume_id = driver.controller.CreateVolume(request).volume.volume_id
    assert driver.controller.CreateVolume(request).volume.volume_id == volume_id
    for item in wanted:
        with driver.published(volume_id, tmp_path, item) as target:
            only_read = item.access_mode.mode == READ_ONLY
            assert bool(os.statvfs(target).f_flag & os.ST_RDONLY) == only_read
    confirmed = driver.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(volume_id=volume_id, volume_capabilities=wanted)
    )
    assert confirmed.HasField("confirmed")
    room = csi.GetCapacityRequest(volume_capabilities=wanted)
    assert driver.controller.GetCapacity(room).available_capacity > 0


def test_one_target_of_a_mode_for_one(driver: Driver, tmp_path: Path, root: None) -> None:
    """Beside a publication that is to be the only one there is none, whatever its mode."""
    volume_id = driver.create("v", quota="none").volume_id
    one = mount_capability(mode=Mode.SINGLE_NODE_SINGLE_WRITER)
    many = mount_capability(mode=Mode.MULTI_NODE_MULTI_WRITER)
    staging = tmp_path / f"staging-{volume_id}"
    with driver.published(volume_id, tmp_path, many), refused(FAILED, "SINGLE_NODE_SINGLE_WRITER"):
        driver.publish(volume_id, staging, tmp_path / "other", one)
    with driver.published(volume_id, tmp_path, one), refused(FAILED):
        driver.publish(volume_id, staging, tmp_path / "other", many)


def asked(driver: Driver, wanted: csi.VolumeCapability) -> list[Callable[[], object]]:
    """Return the calls of the Controller that have a capability to be refused."""
    volume_id = f"v@{NODE}"
    attach = csi.ControllerPublishVolumeRequest(
        volume_id=volume_id, node_id=NODE, volume_capability=wanted
    )
    room = csi.GetCapacityRequest(volume_capabilities=[wanted])
    return [
        lambda: driver.create("w", capability=wanted, quota="none"),
        lambda: driver.controller.ControllerPublishVolume(attach),
        lambda: driver.controller.GetCapacity(room),
    ]


@pytest.mark.parametrize("kind", ["directory", "block"])
@pytest.mark.parametrize("mode", MANY)
def test_among_other_nodes(
    serve: Callable[..., Driver],
    pool: Path,
    tmp_path: Path,
    root: None,
    kind: str,
    mode: csi.VolumeCapability.AccessMode.Mode,
) -> None:
    """In mode `node` they are refused with the reason, and nothing is made."""
    driver = serve(pool, options=("--mode=node", "--enable-attach"))
    plain, wanted = (capability(kind, item) for item in (Mode.SINGLE_NODE_WRITER, mode))
    driver.create("v", 4 * MIB, capability=plain, parameters=KINDS[kind])
    for call in asked(driver, wanted):
        with refused(INVALID, REASON, Mode.Mode.Name(mode)):
            call()
    answer = driver.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(
            volume_id=f"v@{NODE}", volume_capabilities=[plain, wanted]
        )
    )
    assert not answer.HasField("confirmed")
    assert Mode.Mode.Name(mode) in answer.message
    with refused(FAILED, REASON):
        driver.stage(f"v@{NODE}", tmp_path / "staging", wanted)
    with driver.published(f"v@{NODE}", tmp_path, plain), refused(FAILED, REASON):
        driver.publish(f"v@{NODE}", tmp_path / f"staging-v@{NODE}", tmp_path / "t", wanted)
    assert driver.volume_ids() == [f"v@{NODE}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mode_that_is_left(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path, root: None, kind: str
) -> None:
    """What was made, attached and published in mode `single-node` can be undone in mode `node`."""
    first = serve(pool, options=("--enable-attach",))
    wanted = capability(kind, Mode.MULTI_NODE_MULTI_WRITER)
    volume_id = first.create("v", 32 * MIB, capability=wanted, parameters=KINDS[kind]).volume_id
    snapshot_id = first.snapshot("s", volume_id).snapshot_id
    first.controller.ControllerPublishVolume(
        csi.ControllerPublishVolumeRequest(
            volume_id=volume_id, node_id=NODE, volume_capability=wanted
        )
    )
    staging, targets = tmp_path / "staging", [tmp_path / "t1", tmp_path / "t2"]
    first.stage(volume_id, staging, wanted)
    for target in targets:
        first.publish(volume_id, staging, target, wanted)
    first.stop()

    driver = serve(pool, options=("--mode=node", "--enable-attach"))
    assert driver.volume_ids() == [volume_id]
    assert not driver.condition(volume_id).abnormal
    assert [item.snapshot_id for item in driver.snapshots()] == [snapshot_id]
    assert driver.stats(volume_id, targets[0]).usage
    with refused(FAILED, REASON):
        driver.publish(volume_id, staging, targets[0], wanted)
    plain = capability(kind, Mode.SINGLE_NODE_MULTI_WRITER)
    driver.publish(volume_id, staging, tmp_path / "t3", plain)
    for target in (*targets, tmp_path / "t3"):
        driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)
    with driver.published(volume_id, tmp_path, plain):
        pass
    driver.controller.ControllerUnpublishVolume(
        csi.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=NODE)
    )
    record = json.loads((pool / "volumes" / volume_id / "volume.json").read_text())
    assert record["request"]["capabilities"][0]["mode"] == "MULTI_NODE_MULTI_WRITER"
    driver.delete_snapshot(snapshot_id)
    driver.delete(volume_id)
