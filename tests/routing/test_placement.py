"""On which node a volume is made if the request leaves that to the driver."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import Cluster, cluster
from conftest import FilesystemFactory
from driver import MIB, Driver, refused
from routing.conftest import create, ending, killed, requirement

from pycsi.proto import csi_pb2 as csi

SIZES = {"small": 100 * MIB, "large": 300 * MIB, "medium": 200 * MIB}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster of three nodes that can promise 100, 200 and 300 MiB."""
    with cluster(tmp_path_factory.mktemp("sized"), *SIZES, sizes=[*SIZES.values()]) as made:
        yield made


@pytest.fixture(autouse=True)
def _emptied(request: pytest.FixtureRequest) -> Iterator[None]:
    """Delete the volumes that a test has made."""
    yield
    if "running" not in request.fixturenames:
        return
    made: Cluster = request.getfixturevalue("running")
    for node in made.nodes.values():
        for volume_id in node.volume_ids():
            node.delete(volume_id)
        node.reaped()


def sized(driver: Driver, name: str, size: int, **fields: csi.TopologyRequirement) -> str:
    """Create a directory of so many bytes, and return the node that has it."""
    needed = csi.CapacityRange(required_bytes=size)
    volume_id = create(driver, name, capacity_range=needed, **fields)
    assert volume_id.startswith(f"{name}@")
    return volume_id.partition("@")[2]


def test_most_room(running: Cluster) -> None:
    """The node with most room gets the volume, of those that the request allows."""
    assert sized(running.controller, "first", 50 * MIB) == "large"
    assert sized(running.controller, "second", 100 * MIB) == "large"
    assert sized(running.controller, "third", 10 * MIB) == "medium"
    allowed = requirement(requisite=("small", "large"))
    chosen = sized(running.controller, "fourth", 10 * MIB, accessibility_requirements=allowed)
    assert chosen == "large"


def test_repeated(running: Cluster) -> None:
    """A name that is asked for again is the same volume, also if another node has more room."""
    assert sized(running.controller, "same", 200 * MIB) == "large"
    for _ in range(3):
        assert sized(running.controller, "same", 200 * MIB) == "large"
    assert sized(running.controller, "other", 10 * MIB) == "medium"
    assert sorted(running.controller.volume_ids()) == ["other@medium", "same@large"]


def test_same_name_with_another_size(running: Cluster) -> None:
    """A name that is taken on one node is not used on another."""
    assert sized(running.controller, "same", 200 * MIB) == "large"
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        sized(running.controller, "same", 201 * MIB)
    assert running.controller.volume_ids() == ["same@large"]


def test_no_room(running: Cluster) -> None:
    """A volume that fits on no node is refused as a node refuses it, and made nowhere."""
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        sized(running.controller, "huge", 400 * MIB)
    assert running.controller.volume_ids() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "v", "parameters": {"no-such-parameter": "x"}},
        {"name": "v", "volume_capabilities": []},
        {"name": "v", "capacity_range": csi.CapacityRange(required_bytes=-1)},
        {"name": "v", "parameters": {"pool": "no-such-pool"}},
    ],
)
def test_wrong_request(running: Cluster, wrong: dict[str, Any]) -> None:
    """A request that no node takes is answered as a node answers it."""
    answer = ending(lambda: create(running.controller, **wrong))
    assert answer[0] is not grpc.StatusCode.OK
    assert answer == ending(lambda: create(running.nodes["large"], **wrong))
    assert running.controller.volume_ids() == []


def test_node_away(running: Cluster) -> None:
    """While a node is away that may have the volume, none is made; others need only their nodes."""
    with killed(running, "small"):
        with refused(grpc.StatusCode.UNAVAILABLE, "small"):
            sized(running.controller, "v", 10 * MIB)
        allowed = requirement(requisite=("medium", "large"))
        chosen = sized(running.controller, "w", 10 * MIB, accessibility_requirements=allowed)
        assert chosen == "large"
    assert running.nodes["large"].volume_ids() == ["w@large"]
    assert running.nodes["medium"].volume_ids() == []


def test_names_at_once(running: Cluster) -> None:
    """Volumes that each fill a node find one each, however they race; a fourth finds none."""
    sized(running.controller, "in-large", 200 * MIB, accessibility_requirements=only("large"))
    sized(running.controller, "in-medium", 100 * MIB, accessibility_requirements=only("medium"))
    names = [f"v{number}" for number in range(4)]
    with ThreadPoolExecutor(len(names)) as threads:
        found = list(
            threads.map(
                lambda name: ending(lambda: sized(running.controller, name, 80 * MIB))[0], names
            )
        )
    assert sorted(code.name for code in found) == ["OK", "OK", "OK", "RESOURCE_EXHAUSTED"]
    made = [item for item in running.controller.volume_ids() if item.startswith("v")]
    assert sorted(item.partition("@")[2] for item in made) == sorted(SIZES)


def only(node: str) -> csi.TopologyRequirement:
    return requirement(requisite=(node,), preferred=(node,))


def test_one_name_at_once(running: Cluster) -> None:
    """Requests for one name make one volume: each is answered with it, or ABORTED."""
    with ThreadPoolExecutor(16) as threads:
        codes = list(
            threads.map(
                lambda _: ending(lambda: sized(running.controller, "one", 10 * MIB))[0], range(64)
            )
        )
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.ABORTED}
    assert grpc.StatusCode.OK in codes
    assert running.controller.volume_ids() == ["one@large"]


def test_refusal(filesystem: FilesystemFactory, tmp_path: Path) -> None:
    """If the node with most room refuses after all, the next one gets the volume."""
    pools = [
        filesystem("ext4", 512 * MIB, "-N", "64"),
        filesystem("ext4", 256 * MIB),
    ]
    with cluster(tmp_path, "full", "next", pools=pools) as made:
        _use_up(pools[0].parent / "files")
        assert sized(made.controller, "v", 10 * MIB) == "next"
        assert made.nodes["full"].volume_ids() == []
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            sized(made.controller, "w", 10 * MIB, accessibility_requirements=only("full"))


def _use_up(folder: Path) -> None:
    """Make files until the filesystem takes no more of them."""
    folder.mkdir()
    with pytest.raises(OSError, match="No space left on device"):  # noqa: PT012
        for number in range(1000):
            (folder / str(number)).touch()
