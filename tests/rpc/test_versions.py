"""Orchestrators of CSI 1.12 and 1.13 see the same health, each by what its version has for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from driver import MIB, Driver, refused
from google.protobuf.unknown_fields import UnknownFieldSet
from wire import Client

CONDITION_OF_CONTROLLER, CONDITION_OF_NODE = 11, 4
CAPABILITIES = ("GetPluginCapabilities", "ControllerGetCapabilities", "NodeGetCapabilities")


def numbers(client: Client, method: str) -> set[int]:
    """Return the capabilities that a server advertises, as they travel."""
    answer = client.call(method)
    return {getattr(item, item.WhichOneof("type")).type for item in answer.capabilities}


def known(client: Client, method: str) -> set[int]:
    """Return the numbers of all capabilities that a client's version has."""
    name = {
        "GetPluginCapabilities": "PluginCapability.Service",
        "ControllerGetCapabilities": "ControllerServiceCapability.RPC",
        "NodeGetCapabilities": "NodeServiceCapability.RPC",
    }[method]
    (kind,) = client.message(name).DESCRIPTOR.enum_types
    return {value.number for value in kind.values}


def unknown(message: Any) -> list[int]:
    """Return the fields of an answer, at any depth, that the client's version does not have."""
    fields = UnknownFieldSet(message)
    found = [fields[number].field_number for number in range(len(fields))]
    for field, value in message.ListFields():
        if field.message_type and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else [value]:
                found += unknown(part)
    return found


@pytest.fixture
def ill(driver: Driver, pool: Path, tmp_path: Path) -> Iterator[tuple[Driver, str, Path]]:
    """Return a driver, a volume whose data has gone while it is published, and where it is."""
    volume_id = driver.create("v", MIB, quota="none").volume_id
    data = pool / "volumes" / volume_id / "data"
    with driver.published(volume_id, tmp_path) as target:
        aside = data.rename(data.with_name("aside"))
        yield driver, volume_id, target
        aside.rename(data)


def conditions(client: Client, volume_id: str, target: Path) -> list[Any]:
    """Return what the three RPCs of 1.12 tell of a volume."""
    (entry,) = client.call("ListVolumes").entries
    got = client.call("ControllerGetVolume", volume_id=volume_id)
    stats = client.call("NodeGetVolumeStats", volume_id=volume_id, volume_path=str(target))
    told = [entry.status, got.status, stats]
    assert all(item.HasField("volume_condition") for item in told)
    return [item.volume_condition for item in told]


def healths(client: Client, volume_id: str, target: Path) -> list[Any]:
    """Return what the three RPCs of 1.13 tell of a volume that is not well."""
    (listed,) = client.call("ControllerListVolumeHealth").entries
    got = client.call("ControllerGetVolumeHealth", volume_id=volume_id)
    node = client.call("NodeGetVolumeHealth", volume_id=volume_id, volume_publish_path=str(target))
    return [listed, got.volume_health, node.volume_health]


def test_both_see_the_fault(ill: tuple[Driver, str, Path]) -> None:
    """The same fault reaches both, and neither is disturbed by what is there for the other."""
    driver, volume_id, target = ill
    old, new = Client("1.12", driver.channel), Client("1.13", driver.channel)
    assert CONDITION_OF_CONTROLLER in numbers(old, "ControllerGetCapabilities")
    assert CONDITION_OF_NODE in numbers(old, "NodeGetCapabilities")
    assert numbers(new, "ControllerGetCapabilities") >= {16, 17}
    assert numbers(new, "NodeGetCapabilities") >= {7, 8}
    messages = set()
    for condition in conditions(old, volume_id, target):
        assert condition.abnormal
        messages.add(condition.message)
    for health in healths(new, volume_id, target):
        assert health.volume_id == volume_id
        worst, *_ = health.health_statuses
        assert (worst.status, worst.reason) == (3, "DataMissing")
        messages.add(worst.message)
    assert len(messages) == 1


def test_both_see_that_it_is_well(driver: Driver, tmp_path: Path) -> None:
    """So does a volume that is well."""
    volume_id = driver.create("v", MIB, quota="none").volume_id
    old, new = Client("1.12", driver.channel), Client("1.13", driver.channel)
    with driver.published(volume_id, tmp_path) as target:
        assert not any(item.abnormal for item in conditions(old, volume_id, target))
        assert list(new.call("ControllerListVolumeHealth").entries) == []
        for method in ("ControllerGetVolumeHealth", "NodeGetVolumeHealth"):
            health = new.call(method, volume_id=volume_id).volume_health
            assert health.volume_id == volume_id
            assert list(health.health_statuses) == []
    assert list(new.call("NodeGetStorageHealth").backend_health) == []


@pytest.mark.parametrize("mode", ["single-node", "node"])
def test_nothing_new_for_1_12(serve: Callable[..., Driver], pool: Path, mode: str) -> None:
    """With --csi-version 1.12 no capability, field or RPC is there that 1.12 does not have."""
    driver = serve(pool, options=("--csi-version=1.12", f"--mode={mode}", "--enable-attach"))
    old, new = Client("1.12", driver.channel), Client("1.13", driver.channel)
    for method in CAPABILITIES:
        assert numbers(old, method) <= known(old, method)
    for method in (
        "ControllerListVolumeHealth",
        "ControllerGetVolumeHealth",
        "NodeGetVolumeHealth",
        "NodeGetStorageHealth",
    ):
        with refused(grpc.StatusCode.UNIMPLEMENTED, "--csi-version"):
            new.call(method)


@pytest.mark.parametrize(
    ("options", "version", "expected"),
    [
        ((), "1.12", {7}),  # Snapshot.accessible_topology
        ((), "1.13", {2}),  # volume_condition
        (("--csi-version=1.12",), "1.12", set()),
    ],
)
def test_what_a_client_does_not_know(
    serve: Callable[..., Driver],
    pool: Path,
    options: tuple[str, ...],
    version: str,
    expected: set[int],
) -> None:
    """Answers have fields that the client does not know only if they are the other version's."""
    driver = serve(pool, options=options)
    client = Client(version, driver.channel)
    volume_id = driver.create("v", MIB, quota="none").volume_id
    answers = [
        client.call("CreateSnapshot", name="s", source_volume_id=volume_id),
        client.call("GetSnapshot", snapshot_id="s@node-1"),
        client.call("CreateVolumeGroupSnapshot", name="g", source_volume_ids=[volume_id]),
        client.call("ListSnapshots"),
        client.call("ListVolumes"),
        client.call("ControllerGetVolume", volume_id=volume_id),
    ]
    assert {number for answer in answers for number in unknown(answer)} == expected
