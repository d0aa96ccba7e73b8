"""DeleteVolume, ControllerGetVolume, ControllerExpandVolume and ValidateVolumeCapabilities."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import injected, needs
from driver import GIB, MIB, NODE, Driver, Mode, block_capability, mount_capability, refused
from rpc.conftest import OK, code_of, on_disk, pool_of, request, unchanged

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
ODD_IDS = [
    "fake",
    "../../etc",
    "..",
    ".",
    "/",
    "/etc",
    "volumes",
    "a@node-1/../../x",
    "\0",
    "a\n@node-1",
    "x" * 10_000,
    "\U0001f600" * 2000,
    "none@node-1",
]


def size(required: int = 0, limit: int = 0) -> csi.CapacityRange:
    return csi.CapacityRange(required_bytes=required, limit_bytes=limit)


@pytest.mark.parametrize("volume_id", ODD_IDS)
def test_delete_what_is_not_there(shared: Driver, volume_id: str) -> None:
    """An id that is no volume is deleted already, whatever it looks like."""
    with unchanged(shared):
        shared.delete(volume_id)
    assert pool_of(shared).is_dir()


@pytest.mark.parametrize("volume_id", ODD_IDS)
def test_look_for_what_is_not_there(shared: Driver, volume_id: str) -> None:
    """An id that is no volume is NOT_FOUND, whatever it looks like, with a message that fits."""
    caps, range_ = [mount_capability()], size(GIB)
    controller = shared.controller
    for call in (
        lambda: controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume_id)),
        lambda: controller.ControllerExpandVolume(
            csi.ControllerExpandVolumeRequest(volume_id=volume_id, capacity_range=range_)
        ),
        lambda: controller.ValidateVolumeCapabilities(
            csi.ValidateVolumeCapabilitiesRequest(volume_id=volume_id, volume_capabilities=caps)
        ),
    ):
        assert code_of(call) is Code.NOT_FOUND


def test_volume_of_another_node(shared: Driver) -> None:
    """What is on another node is not said to be deleted: the error names the node."""
    with refused(Code.FAILED_PRECONDITION, "node-2"):
        shared.delete("a@node-2")
    with refused(Code.NOT_FOUND, "node-2"):
        shared.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id="a@node-2"))


@pytest.mark.parametrize("parameters", [{"quota": "none"}, {"type": "image"}])
def test_delete(limited: Callable[..., Driver], parameters: dict[str, str]) -> None:
    """A deleted volume is gone from the disk when the answer comes, and stays gone."""
    driver = limited(256 * MIB)
    before, available = on_disk(driver), driver.capacity(quota="none").available_capacity
    wanted = request("gone", parameters=parameters)
    wanted.capacity_range.required_bytes = 16 * MIB
    volume_id = driver.controller.CreateVolume(wanted).volume.volume_id
    assert driver.capacity(quota="none").available_capacity == available - 16 * MIB
    for _ in range(3):
        driver.delete(volume_id)
    assert on_disk(driver) == before
    assert volume_id not in driver.volume_ids()
    assert driver.capacity(quota="none").available_capacity == available


@contextlib.contextmanager
def lingering(driver: Driver, call: str) -> Iterator[None]:
    """Let every call of this name do its work at once, and return a second later."""
    with injected(driver, call, "delay_exit=1000000"):
        yield


@pytest.mark.parametrize("parameters", [{"quota": "none"}, {"type": "image"}])
def test_room_of_what_has_gone(
    limited: Callable[..., Driver], root: None, parameters: dict[str, str]
) -> None:
    """Whoever sees that a deleted volume has gone from the disk finds its room free."""
    driver = limited(256 * MIB)
    before = driver.capacity(quota="none").available_capacity
    volume_id = driver.create("v", 128 * MIB, parameters=parameters).volume_id
    with lingering(driver, "rmdir"):
        driver.delete(volume_id)
        assert driver.capacity(quota="none").available_capacity == before


@contextlib.contextmanager
def immutable(file: Path) -> Any:
    """Make a file that not even root can delete, for the `with` block."""
    needs("chattr", met=shutil.which("chattr") is not None)
    done = subprocess.run(["chattr", "+i", file], check=False, capture_output=True)
    needs("immutable files", met=done.returncode == 0)
    try:
        yield
    finally:
        found = [file]
        with contextlib.suppress(FileNotFoundError):  # the reaper is deleting it
            found += file.parents[3].rglob(file.name)
        subprocess.run(["chattr", "-i", *found], check=False, capture_output=True)


def test_delete_that_fails_half_way(driver: Driver, pool: Path) -> None:
    """A deletion that fails may be repeated, and then ends."""
    volume = driver.create("a", 4 * MIB, quota="none")
    file = pool / "volumes" / volume.volume_id / "data" / "stuck"
    file.touch()
    with immutable(file):
        code_of(lambda: driver.delete(volume.volume_id))
    driver.delete(volume.volume_id)
    assert driver.volume_ids() == []
    driver.create("a", 8 * MIB, quota="none")


def test_start_with_trash_that_cannot_be_deleted(driver: Driver, pool: Path) -> None:
    """A file that cannot be deleted does not keep the driver from starting."""
    volume = driver.create("a", 4 * MIB, quota="none")
    file = pool / "volumes" / volume.volume_id / "data" / "stuck"
    file.touch()
    with immutable(file):
        code_of(lambda: driver.delete(volume.volume_id))
        driver.restart()
        driver.create("b", 4 * MIB, quota="none")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("DeleteVolume", csi.DeleteVolumeRequest()),
        ("ControllerGetVolume", csi.ControllerGetVolumeRequest()),
        ("ControllerExpandVolume", csi.ControllerExpandVolumeRequest()),
        ("ControllerExpandVolume", csi.ControllerExpandVolumeRequest(volume_id="a")),
        ("ControllerExpandVolume", csi.ControllerExpandVolumeRequest(capacity_range=size(GIB))),
        (
            "ControllerExpandVolume",
            csi.ControllerExpandVolumeRequest(volume_id="a", capacity_range=size()),
        ),
        (
            "ControllerExpandVolume",
            csi.ControllerExpandVolumeRequest(volume_id="a", capacity_range=size(-1)),
        ),
        ("ValidateVolumeCapabilities", csi.ValidateVolumeCapabilitiesRequest()),
        ("ValidateVolumeCapabilities", csi.ValidateVolumeCapabilitiesRequest(volume_id="a")),
        ("CreateVolume", csi.CreateVolumeRequest()),
    ],
)
def test_missing_field(shared: Driver, method: str, message: Any) -> None:
    """A missing required field is INVALID_ARGUMENT, before anything is looked up."""
    assert code_of(lambda: getattr(shared.controller, method)(message)) is Code.INVALID_ARGUMENT


def test_get(shared: Driver) -> None:
    """ControllerGetVolume answers what CreateVolume and ListVolumes answer."""
    volume = shared.create("get", 4 * MIB, quota="none")
    found = shared.controller.ControllerGetVolume(
        csi.ControllerGetVolumeRequest(volume_id=volume.volume_id)
    )
    assert found.volume == volume
    assert found.HasField("status")
    listed = shared.controller.ListVolumes(csi.ListVolumesRequest()).entries
    assert [entry.volume for entry in listed if entry.volume.volume_id == volume.volume_id] == [
        volume
    ]
    shared.delete(volume.volume_id)


@pytest.mark.parametrize(
    ("wanted", "code", "made"),
    [
        (size(8 * MIB), OK, 8 * MIB),
        (size(8 * MIB, 8 * MIB), OK, 8 * MIB),
        (size(4 * MIB + 1), OK, 4 * MIB + 4096),
        (size(1), OK, 4 * MIB),
        (size(4 * MIB), OK, 4 * MIB),
        (size(0, 8 * MIB), OK, 4 * MIB),
        (size(0, 4 * MIB), OK, 4 * MIB),
        (size(0, 2 * MIB), Code.OUT_OF_RANGE, 4 * MIB),
        (size(1, 2 * MIB), Code.OUT_OF_RANGE, 4 * MIB),
        (size(5 * MIB + 1, 5 * MIB + 2), Code.OUT_OF_RANGE, 4 * MIB),
        (size(2**63 - 1), Code.OUT_OF_RANGE, 4 * MIB),
        (size(2**62), Code.RESOURCE_EXHAUSTED, 4 * MIB),
    ],
)
def test_expand(shared: Driver, wanted: csi.CapacityRange, code: Any, made: int) -> None:
    """A volume grows to what is asked for, never shrinks, and stays as it is when refused."""
    volume = shared.create("expand", 4 * MIB, quota="none")
    message = csi.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=wanted)
    outcome = []
    for _ in range(2):
        assert (
            code_of(lambda: outcome.append(shared.controller.ControllerExpandVolume(message)))
            is code
        )
    found = shared.create("expand", made, quota="none").capacity_bytes
    shared.delete(volume.volume_id)
    assert found == made
    assert all(answer.capacity_bytes == made for answer in outcome)


@pytest.mark.parametrize(
    "capability",
    [block_capability(), csi.VolumeCapability(), mount_capability(flags=["data=x"])],
)
def test_expand_with_a_capability_that_does_not_fit(
    shared: Driver, capability: csi.VolumeCapability
) -> None:
    """A capability that the volume cannot have is INVALID_ARGUMENT on expansion."""
    volume = shared.create("expand", 4 * MIB, quota="none")
    message = csi.ControllerExpandVolumeRequest(
        volume_id=volume.volume_id, capacity_range=size(GIB), volume_capability=capability
    )
    code = code_of(lambda: shared.controller.ControllerExpandVolume(message))
    shared.delete(volume.volume_id)
    assert code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("fields", "confirmed"),
    [
        ({}, True),
        ({"volume_capabilities": [mount_capability(mode=Mode.SINGLE_NODE_READER_ONLY)]}, True),
        ({"volume_capabilities": [mount_capability(), block_capability()]}, False),
        ({"volume_capabilities": [block_capability()]}, False),
        ({"volume_capabilities": [mount_capability(mode=Mode.MULTI_NODE_MULTI_WRITER)]}, True),
        ({"volume_capabilities": [mount_capability(mode=Mode.MULTI_NODE_READER_ONLY)]}, True),
        ({"volume_capabilities": [mount_capability(flags=["data=journal"])]}, False),
        ({"parameters": {"quota": "none"}}, True),
        ({"parameters": {"quota": "required"}}, False),
        ({"volume_context": {"pool": "default"}}, False),
        ({"mutable_parameters": {"a": "b"}}, False),
    ],
)
def test_validate(shared: Driver, fields: dict[str, Any], *, confirmed: bool) -> None:
    """Only what was checked in full is confirmed, and echoed; else a short message says why."""
    volume = shared.create("validate", 4 * MIB, quota="none")
    given = {"volume_id": f"validate@{NODE}", "volume_capabilities": [mount_capability()]} | fields
    message = csi.ValidateVolumeCapabilitiesRequest(**given)
    answer = shared.controller.ValidateVolumeCapabilities(message)
    shared.delete(volume.volume_id)
    assert answer.HasField("confirmed") == confirmed
    if confirmed:
        assert answer.confirmed.volume_capabilities == message.volume_capabilities
        assert answer.confirmed.parameters == message.parameters
    else:
        assert 0 < len(answer.message.encode()) <= 128


def test_validate_with_the_volume_s_own_context(shared: Driver) -> None:
    """The context that CreateVolume answered is confirmed."""
    volume = shared.create("validate", 4 * MIB, quota="none")
    answer = shared.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.volume_id,
            volume_context=volume.volume_context,
            volume_capabilities=[mount_capability()],
        )
    )
    shared.delete(volume.volume_id)
    assert answer.confirmed.volume_context == volume.volume_context
