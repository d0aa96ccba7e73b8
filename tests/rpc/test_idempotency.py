"""A repeated CreateVolume: the same volume for the same request, ALREADY_EXISTS for another one."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from driver import GIB, MIB, Driver, Mode, block_capability, mount_capability
from rpc.conftest import OK, code_of, on_disk, on_node, request

from pycsi.proto import csi_pb2 as csi

EXISTS = grpc.StatusCode.ALREADY_EXISTS
ORCHESTRATED = {"csi.storage.k8s.io/pvc/name": "claim"}


def size(required: int = 0, limit: int = 0) -> csi.CapacityRange:
    return csi.CapacityRange(required_bytes=required, limit_bytes=limit)


@pytest.fixture(scope="module")
def existing(shared: Driver) -> Driver:
    """Return a driver with a volume `a` of 4 MiB, at most 8."""
    wanted = request("a", capacity_range=size(4 * MIB, 8 * MIB))
    shared.controller.CreateVolume(wanted)
    return shared


@pytest.mark.parametrize(
    ("fields", "codes"),
    [
        ({}, {OK}),
        ({"capacity_range": size(4 * MIB)}, {OK}),
        ({"capacity_range": size(1)}, {OK}),
        ({"capacity_range": size(2 * MIB, 4 * MIB)}, {OK}),
        ({"capacity_range": size(0, 4 * MIB)}, {OK}),
        ({"capacity_range": None}, {OK, EXISTS}),
        ({"capacity_range": size(4 * MIB + 1)}, {EXISTS}),
        ({"capacity_range": size(GIB)}, {EXISTS}),
        ({"capacity_range": size(1, 4 * MIB - 1)}, {EXISTS}),
        ({"capacity_range": size(0, 2 * MIB)}, {EXISTS}),
        ({"capacity_range": size(8 * MIB, 8 * MIB)}, {EXISTS}),
        ({"capacity_range": size(2**63 - 1)}, {EXISTS}),
        ({"volume_capabilities": [mount_capability()] * 2}, {OK}),
        ({"volume_capabilities": [block_capability()]}, {EXISTS}),
        ({"volume_capabilities": [mount_capability(), block_capability()]}, {EXISTS}),
        ({"volume_capabilities": [mount_capability("xfs")]}, {EXISTS}),
        ({"volume_capabilities": [mount_capability(mode=Mode.SINGLE_NODE_WRITER)]}, {OK, EXISTS}),
        ({"volume_capabilities": [mount_capability(flags=["ro"])]}, {OK, EXISTS}),
        ({"parameters": {"quota": "none"} | ORCHESTRATED}, {OK}),
        ({"parameters": {}}, {EXISTS}),
        ({"parameters": {"quota": "none", "type": "directory"}}, {EXISTS}),
        ({"parameters": {"quota": "none", "pool": "default"}}, {EXISTS}),
        ({"parameters": {"type": "image"}}, {EXISTS}),
        ({"mutable_parameters": {"onDelete": "retain"}}, {EXISTS}),
        ({"accessibility_requirements": on_node("node-1")}, {OK}),
        ({"accessibility_requirements": on_node("node-1", "node-2")}, {OK}),
        ({"accessibility_requirements": on_node("node-2")}, {EXISTS}),
        (
            {"volume_content_source": csi.VolumeContentSource()},
            {EXISTS, grpc.StatusCode.INVALID_ARGUMENT},
        ),
        ({"secrets": {"user": "x"}}, {OK}),
    ],
)
def test_repeated_with_a_change(
    existing: Driver, fields: dict[str, Any], codes: set[grpc.StatusCode]
) -> None:
    """Each field of the request is compared; an incompatible one is ALREADY_EXISTS."""
    base: dict[str, Any] = {"capacity_range": size(4 * MIB, 8 * MIB)}
    wanted = request("a", **(base | fields))
    before = on_disk(existing)
    assert code_of(lambda: existing.controller.CreateVolume(wanted)) in codes
    assert on_disk(existing) == before


@pytest.mark.parametrize(
    ("number", "parameters"),
    [(signal.SIGKILL, {"quota": "none"}), (signal.SIGTERM, {"type": "image"})],
)
def test_repeated_after_a_restart(driver: Driver, number: int, parameters: dict[str, str]) -> None:
    """The same request has the same answer, to the last field, after a crash."""
    wanted = request("../a", parameters=parameters)
    wanted.capacity_range.required_bytes = 16 * MIB
    first = driver.controller.CreateVolume(wanted)
    listed = driver.controller.ListVolumes(csi.ListVolumesRequest())
    driver.restart(number)
    assert driver.controller.CreateVolume(wanted) == first
    assert driver.controller.ListVolumes(csi.ListVolumesRequest()) == listed
    wanted.capacity_range.required_bytes = 32 * MIB
    assert code_of(lambda: driver.controller.CreateVolume(wanted)) is EXISTS


def test_repeated_on_a_full_pool(limited: Callable[..., Driver]) -> None:
    """A retry succeeds where the volume itself has taken the last byte."""
    driver = limited(64 * MIB)
    volume = driver.create("a", 64 * MIB, quota="none")
    assert driver.create("a", 64 * MIB, quota="none") == volume
    driver.restart(signal.SIGKILL)
    assert driver.create("a", 64 * MIB, quota="none") == volume
    full = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert code_of(lambda: driver.create("b", 1, quota="none")) is full


def test_repeated_after_an_expansion(driver: Driver) -> None:
    """The first request still fits a volume that has grown since, and so does its new size."""
    wanted = request("a")
    first = driver.controller.CreateVolume(wanted).volume
    driver.expand(first.volume_id, 64 * MIB)
    again = driver.controller.CreateVolume(wanted).volume
    assert (again.volume_id, again.capacity_bytes) == (first.volume_id, 64 * MIB)
    assert again.volume_context == first.volume_context
    assert driver.create("a", 64 * MIB, quota="none").capacity_bytes == 64 * MIB


def test_repeated_after_deletion(driver: Driver) -> None:
    """A name is free again when its volume has been deleted."""
    driver.delete(driver.create("a", 4 * MIB, quota="none").volume_id)
    assert driver.create("a", 8 * MIB, quota="none").capacity_bytes == 8 * MIB


@pytest.mark.parametrize("content", ["", '{"schema": 99}', '{"schema": 1, "id": "a@node-1"}'])
def test_volume_with_a_damaged_record(driver: Driver, pool: Path, content: str) -> None:
    """Data whose record is damaged is neither overwritten nor called deleted while it is there."""
    volume = driver.create("a", 4 * MIB, quota="none")
    place = pool / "volumes" / volume.volume_id
    (place / "data/file").write_text("precious")
    (place / "volume.json").write_text(content)
    driver.restart()
    assert code_of(lambda: driver.create("a", 4 * MIB, quota="none")) is not OK
    assert (place / "data/file").read_text() == "precious"
    assert on_disk(driver) == {f"volumes/{volume.volume_id}"}
    deleted = csi.DeleteVolumeRequest(volume_id=volume.volume_id)
    assert (
        code_of(lambda: driver.controller.DeleteVolume(deleted)) is not OK
        or on_disk(driver) == set()
    )
