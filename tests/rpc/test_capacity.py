"""GetCapacity promises exactly what CreateVolume then keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver, block_capability, mount_capability, refused
from rpc.conftest import OK, TOPOLOGY, code_of, request, wait_for

from pycsi.proto import csi_pb2 as csi

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
THIN = {"quota": "none"}
THICK = {"type": "image", "allocation": "thick"}


def capacity(driver: Driver, **fields: Any) -> csi.GetCapacityResponse:
    answer: csi.GetCapacityResponse = driver.controller.GetCapacity(
        csi.GetCapacityRequest(**fields)
    )
    return answer


def create(driver: Driver, name: str, size: int, **fields: Any) -> grpc.StatusCode:
    fields |= {"capacity_range": csi.CapacityRange(required_bytes=size)}
    return code_of(lambda: driver.controller.CreateVolume(request(name, **fields)))


def promise_is_kept(driver: Driver, **fields: Any) -> int:
    """Check that the largest volume can be made and a larger one cannot; return its size."""
    given = {"volume_capabilities": [mount_capability()]} | fields
    answer = capacity(driver, **given)
    largest: int = answer.maximum_volume_size.value
    assert 0 < largest <= answer.available_capacity
    assert largest % 4096 == 0
    assert create(driver, "over", largest + 4096, **given) is FULL
    assert create(driver, "fits", largest, **given) is OK
    after = capacity(driver, **given)
    assert 0 <= after.available_capacity < answer.available_capacity
    assert 0 <= after.maximum_volume_size.value <= after.available_capacity
    return largest


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("size", "largest"), [(64 * MIB, 64 * MIB), (96 * MIB + 4095, 96 * MIB + 4096)]
)
def test_thin(limited: Callable[..., Driver], size: int, largest: int) -> None:
    """The largest thin volume is what is not promised yet."""
    driver = limited(size)
    kinds: list[dict[str, Any]] = [
        {"parameters": THIN},
        {"parameters": {"type": "image"}},
        {"parameters": {}, "volume_capabilities": [block_capability()]},
    ]
    for fields in kinds:
        assert promise_is_kept(driver, **fields) == largest
        driver.delete("fits@node-1")
        driver.reaped()
        # It counts until the driver knows that it is gone from the disk, which is a moment later.
        wait_for(lambda: capacity(driver).available_capacity > 0)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_thick(filesystem: FilesystemFactory, serve: Callable[..., Driver], kind: str) -> None:
    """The largest thick volume fits the disk, on each filesystem."""
    driver = serve(f"default={filesystem(kind, GIB)},overcommit=10,reserve=5%")
    largest = promise_is_kept(driver, parameters=THICK)
    assert 700 * MIB < largest < GIB


@pytest.mark.usefixtures("root")
def test_overcommit_beyond_the_filesystem(pool: Path, serve: Callable[..., Driver]) -> None:
    """However much may be promised, the largest volume is one that the filesystem can hold."""
    driver = serve(f"default={pool},overcommit=100000")
    given = {"volume_capabilities": [block_capability()], "parameters": {}}
    answer = capacity(driver, **given)
    assert create(driver, "fits", answer.maximum_volume_size.value, **given) is OK


@pytest.mark.parametrize("ratio", ["1e9", "1e300"])
def test_overcommit_beyond_the_protocol(
    pool: Path, serve: Callable[..., Driver], ratio: str
) -> None:
    """A capacity that no field of the protocol can hold is cut, not an error."""
    driver = serve(f"default={pool},overcommit={ratio}")
    assert capacity(driver, parameters=THIN).available_capacity > 2**60
    assert create(driver, "a", 4 * MIB) is OK


def test_reserve_larger_than_the_disk(pool: Path, serve: Callable[..., Driver]) -> None:
    """Nothing is left, and that is zero, not a negative number."""
    driver = serve(f"default={pool},reserve=8Pi")
    answer = capacity(driver, parameters=THIN)
    assert (answer.available_capacity, answer.maximum_volume_size.value) == (0, 0)
    with refused(FULL, "lower its reserve"):
        driver.create("a", MIB, quota="none")
    assert "its reserve leaves nothing of its disk" in driver.log


def test_expansion_needs_room_for_the_increment(limited: Callable[..., Driver]) -> None:
    """A volume can grow into what is left, and no further."""
    driver = limited(64 * MIB)
    assert create(driver, "a", 48 * MIB) is OK
    assert code_of(lambda: driver.expand("a@node-1", 64 * MIB + 4096)) is FULL
    assert driver.expand("a@node-1", 64 * MIB).capacity_bytes == 64 * MIB
    assert capacity(driver, parameters=THIN).available_capacity == 0
    assert driver.expand("a@node-1", 64 * MIB).capacity_bytes == 64 * MIB
    driver.restart()
    assert capacity(driver, parameters=THIN).available_capacity == 0


def test_refused_create_gives_its_room_back(shared: Driver) -> None:
    """What could not be made takes no room."""
    before = capacity(shared, parameters=THIN)
    for _ in range(3):
        code_of(lambda: shared.create("a", type="image", mkfsOptions="-b 1000"))
        code_of(lambda: shared.create("a", 2**62, type="image"))
    assert capacity(shared, parameters=THIN) == before


@pytest.mark.parametrize(
    "topology",
    [
        {TOPOLOGY: "node-2"},
        {TOPOLOGY: ""},
        {"topology.other.storage/node": "node-1"},
        {TOPOLOGY: "node-1", "zone": "a"},
    ],
)
def test_topology_of_another_node(shared: Driver, topology: dict[str, str]) -> None:
    """There is no room here for what has to be elsewhere."""
    answer = capacity(shared, parameters=THIN, accessible_topology=csi.Topology(segments=topology))
    assert (answer.available_capacity, answer.maximum_volume_size.value) == (0, 0)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("topology", [{}, {TOPOLOGY: "node-1"}, {TOPOLOGY.upper(): "node-1"}])
def test_topology_of_this_node(shared: Driver, topology: dict[str, str]) -> None:
    """Keys of a topology compare without regard to case."""
    found = csi.Topology(segments=topology)
    assert capacity(shared, accessible_topology=found).available_capacity > 0


@pytest.mark.parametrize(
    ("fields", "minimum"),
    [
        ({}, 16 * MIB),
        ({"parameters": THIN}, MIB),
        ({"volume_capabilities": [block_capability()]}, MIB),
        ({"volume_capabilities": [mount_capability("xfs")]}, 300 * MIB),
        ({"volume_capabilities": [mount_capability("btrfs")]}, 256 * MIB),
    ],
)
def test_minimum(shared: Driver, fields: dict[str, Any], minimum: int) -> None:
    """The least size depends on what the volume is made of; an empty request is answered too."""
    assert capacity(shared, **fields).minimum_volume_size.value == minimum


@pytest.mark.usefixtures("root")
def test_less_room_than_the_minimum(limited: Callable[..., Driver]) -> None:
    """Where not even the least volume fits, the largest is zero."""
    driver = limited(10 * MIB)
    answer = capacity(driver, parameters={"type": "image"})
    assert (answer.available_capacity, answer.maximum_volume_size.value) == (10 * MIB, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"parameters": {"color": "red"}},
        {"parameters": {"pool": "none"}},
        {"parameters": {"type": "image", "mkfsOptions": "-d /etc"}},
        {"volume_capabilities": [csi.VolumeCapability()]},
        {"volume_capabilities": [mount_capability(), block_capability()]},
        {"volume_capabilities": [mount_capability("ntfs")], "parameters": {"type": "image"}},
    ],
)
def test_wrong_field(shared: Driver, fields: dict[str, Any]) -> None:
    """What CreateVolume would refuse is refused, or there is no room for it."""
    outcome: list[csi.GetCapacityResponse] = []
    code = code_of(lambda: outcome.append(capacity(shared, **fields)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT or outcome[0].available_capacity == 0


def test_two_pools(two_pools: Driver) -> None:
    """Each pool has its own room; volumes of both are listed; one name is one volume."""
    other = THIN | {"pool": "other"}
    before = [capacity(two_pools, parameters=item).available_capacity for item in (THIN, other)]
    assert create(two_pools, "a", 64 * MIB, parameters=other) is OK
    after = [capacity(two_pools, parameters=item).available_capacity for item in (THIN, other)]
    assert after == [before[0], before[1] - 64 * MIB]
    assert create(two_pools, "b", 64 * MIB) is OK
    assert two_pools.volume_ids() == ["a@node-1", "b@node-1"]
    assert create(two_pools, "a", 64 * MIB) is grpc.StatusCode.ALREADY_EXISTS
    two_pools.restart()
    assert two_pools.volume_ids() == ["a@node-1", "b@node-1"]
    for name in ("a", "b"):
        two_pools.delete(f"{name}@node-1")


def test_no_default_pool(tmp_path: Path, serve: Callable[..., Driver]) -> None:
    """Where several pools have other names, a request has to name one."""
    for name in "ab":
        (tmp_path / name).mkdir()
    driver = serve(f"a={tmp_path}/a", f"b={tmp_path}/b")
    assert create(driver, "v", MIB) is grpc.StatusCode.INVALID_ARGUMENT
    assert create(driver, "v", MIB, parameters=THIN | {"pool": "b"}) is OK
    assert capacity(driver).available_capacity == 0
