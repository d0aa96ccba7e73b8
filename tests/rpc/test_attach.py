"""ControllerPublishVolume and ControllerUnpublishVolume, where they are switched on."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from driver import MIB, Driver, Mode, block_capability, mount_capability
from rpc.conftest import OK, code_of

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
READ_ONLY = Mode.SINGLE_NODE_READER_ONLY


def publish(driver: Driver, volume_id: str = "a@node-1", **fields: Any) -> grpc.StatusCode:
    given: dict[str, Any] = {
        "volume_id": volume_id,
        "node_id": "node-1",
        "volume_capability": mount_capability(),
    } | fields
    message = csi.ControllerPublishVolumeRequest(**given)
    return code_of(lambda: driver.controller.ControllerPublishVolume(message))


def unpublish(driver: Driver, volume_id: str = "a@node-1", node: str = "") -> grpc.StatusCode:
    message = csi.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=node)
    return code_of(lambda: driver.controller.ControllerUnpublishVolume(message))


def nodes(driver: Driver, volume_id: str = "a@node-1") -> list[str]:
    found = driver.controller.ControllerGetVolume(
        csi.ControllerGetVolumeRequest(volume_id=volume_id)
    )
    listed = driver.controller.ListVolumes(csi.ListVolumesRequest()).entries
    [entry] = [item for item in listed if item.volume.volume_id == volume_id]
    assert entry.HasField("status")
    assert entry.status.published_node_ids == found.status.published_node_ids
    return list(found.status.published_node_ids)


@pytest.fixture
def volume(attaching: Driver) -> Iterator[Driver]:
    """Return a driver with a volume `a`."""
    attaching.create("a", 4 * MIB, quota="none")
    yield attaching
    assert unpublish(attaching) is OK
    attaching.delete("a@node-1")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"volume_id": ""}, Code.INVALID_ARGUMENT),
        ({"node_id": ""}, Code.INVALID_ARGUMENT),
        ({"volume_capability": None}, Code.INVALID_ARGUMENT),
        ({"volume_capability": csi.VolumeCapability()}, Code.INVALID_ARGUMENT),
        ({"volume_capability": block_capability()}, Code.INVALID_ARGUMENT),
        (
            {"volume_capability": mount_capability(mode=Mode.UNKNOWN)},
            Code.INVALID_ARGUMENT,
        ),
        ({"volume_id": "none"}, Code.NOT_FOUND),
        ({"volume_id": "none@node-1"}, Code.NOT_FOUND),
        ({"volume_id": "a@node-2"}, Code.NOT_FOUND),
        ({"node_id": "node-2"}, Code.NOT_FOUND),
        ({"volume_id": "none", "node_id": ""}, Code.INVALID_ARGUMENT),
        ({"volume_id": "none", "volume_capability": None}, Code.INVALID_ARGUMENT),
    ],
)
def test_refused(volume: Driver, fields: dict[str, Any], code: grpc.StatusCode) -> None:
    """Fields are checked first, then the volume, then the node; nothing is attached."""
    given = {"volume_id": "a@node-1"} | fields
    assert publish(volume, **given) is code
    assert nodes(volume) == []


def test_attach(volume: Driver) -> None:
    """Attaching is idempotent, shown in the listing, and survives a restart."""
    for _ in range(3):
        assert publish(volume) is OK
    assert publish(volume, volume_context={"any": "thing"}, secrets={"user": "x"}) is OK
    assert nodes(volume) == ["node-1"]
    volume.restart()
    assert nodes(volume) == ["node-1"]
    assert publish(volume) is OK
    assert publish(volume, readonly=True) is Code.ALREADY_EXISTS
    other = mount_capability(mode=READ_ONLY)
    assert publish(volume, volume_capability=other) is Code.ALREADY_EXISTS
    deleted = csi.DeleteVolumeRequest(volume_id="a@node-1")
    assert code_of(lambda: volume.controller.DeleteVolume(deleted)) is Code.FAILED_PRECONDITION
    assert unpublish(volume, node="node-2") is OK
    assert nodes(volume) == ["node-1"]
    for _ in range(3):
        assert unpublish(volume, node="node-1") is OK
    assert nodes(volume) == []
    assert publish(volume, readonly=True) is OK


def test_detach_from_all_nodes(volume: Driver) -> None:
    """Without a node a volume is detached from all."""
    assert publish(volume) is OK
    assert unpublish(volume) is OK
    assert nodes(volume) == []


@pytest.mark.parametrize("volume_id", ["none", "none@node-1", "../x", "x" * 5000])
def test_detach_what_is_not_there(attaching: Driver, volume_id: str) -> None:
    """A volume that has been deleted is detached."""
    assert unpublish(attaching, volume_id, "node-1") is OK


def test_detach_without_a_volume(attaching: Driver) -> None:
    """The volume id is required."""
    assert unpublish(attaching, "") is Code.INVALID_ARGUMENT


def test_limit_of_a_node(attaching: Driver) -> None:
    """As many volumes are attached as the node takes; the next is RESOURCE_EXHAUSTED."""
    info = attaching.node.NodeGetInfo(csi.NodeGetInfoRequest())
    assert info.max_volumes_per_node == 3
    ids = [attaching.create(f"v{number}", 4 * MIB, quota="none").volume_id for number in range(4)]
    assert [publish(attaching, item) for item in ids] == [OK, OK, OK, Code.RESOURCE_EXHAUSTED]
    assert publish(attaching, ids[0]) is OK
    assert publish(attaching, ids[0], readonly=True) is Code.ALREADY_EXISTS
    assert unpublish(attaching, ids[0]) is OK
    assert publish(attaching, ids[3]) is OK
    for item in ids:
        unpublish(attaching, item)
        attaching.delete(item)


def test_limit_of_a_node_at_once(attaching: Driver) -> None:
    """Of many attachments at once as many succeed as there are places; none aborts another."""
    ids = [attaching.create(f"v{number}", 4 * MIB, quota="none").volume_id for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(lambda item: publish(attaching, item), ids))
    attached = [item for item in ids if nodes(attaching, item)]
    for item in ids:
        unpublish(attaching, item)
        attaching.delete(item)
    assert codes.count(OK) == len(attached) <= 3
    assert sorted(code.name for code in codes) == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 5


def test_attachment_in_the_record_of_an_older_version(attaching: Driver) -> None:
    """Older versions kept the attachment in the volume's own record; it is honoured and goes."""
    volume_id = attaching.create("a", quota="none").volume_id
    assert publish(attaching) is OK
    attaching.stop()
    place = attaching.folders[0] / "volumes" / volume_id
    record = json.loads((place / "volume.json").read_text())
    attachment = json.loads((place / "attachment.json").read_text())
    del attachment["schema"]
    (place / "volume.json").write_text(json.dumps(record | {"attachment": attachment}))
    (place / "attachment.json").unlink()
    attaching.start()
    assert nodes(attaching) == ["node-1"]
    assert publish(attaching) is OK
    for _ in range(2):
        assert unpublish(attaching) is OK
        assert nodes(attaching) == []
        attaching.restart()
