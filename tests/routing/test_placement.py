"""On which node a volume is made if the request leaves that to the driver."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import Cluster, cluster
from conftest import FilesystemFactory
from driver import MIB, Driver, refused
from routing.conftest import create, ending, killed, requirement, stopped
from rpc.conftest import request, wait_for

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import transfers_pb2 as transfers
from pycsi.proto import transfers_pb2_grpc

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


def test_room(running: Cluster) -> None:
    """A volume goes to a node that has room for it, of those that the request allows."""
    assert sized(running.controller, "first", 250 * MIB) == "large"
    assert sized(running.controller, "second", 150 * MIB) == "medium"
    assert sized(running.controller, "third", 75 * MIB) == "small"
    allowed = requirement(requisite=("small", "large"))
    chosen = sized(running.controller, "fourth", 40 * MIB, accessibility_requirements=allowed)
    assert chosen == "large"


def test_spread(running: Cluster) -> None:
    """Names are spread over all nodes that have room."""
    found = {sized(running.controller, f"v{number}", 1 * MIB) for number in range(40)}
    assert found == set(SIZES)


def test_repeated(running: Cluster) -> None:
    """A name that is asked for again is the same volume, also if its node has room no more."""
    names = [f"v{number}" for number in range(4)]
    first = {name: sized(running.controller, name, 60 * MIB) for name in names}
    for node in SIZES:  # whatever room is left
        with contextlib.suppress(grpc.RpcError):
            sized(
                running.controller, f"fill-{node}", 50 * MIB, accessibility_requirements=only(node)
            )
    assert {name: sized(running.controller, name, 60 * MIB) for name in names} == first


def test_same_name_with_another_size(running: Cluster) -> None:
    """A name that is taken on one node is not used on another."""
    assert sized(running.controller, "same", 250 * MIB) == "large"
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        sized(running.controller, "same", 251 * MIB)
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
    nodes = running.nodes.values()
    assert answer in [ending(functools.partial(create, node, **wrong)) for node in nodes]
    assert running.controller.volume_ids() == []


def test_node_away(running: Cluster) -> None:
    """While a node is away, names that may be there wait for it; others do not."""
    names = [f"v{number}" for number in range(12)]
    first = {name: sized(running.controller, name, 5 * MIB) for name in names}
    with killed(running, "small"):
        for name, node in first.items():
            if node == "small":
                with refused(grpc.StatusCode.UNAVAILABLE, "small"):
                    sized(running.controller, name, 5 * MIB)
            else:
                assert sized(running.controller, name, 5 * MIB) == node
        made = 0
        for number in range(12):
            with contextlib.suppress(grpc.RpcError):
                assert sized(running.controller, f"w{number}", 1 * MIB) != "small"
                made += 1
        assert 0 < made < 12
        allowed = requirement(requisite=("medium", "large"))
        sized(running.controller, "x", 10 * MIB, accessibility_requirements=allowed)
    assert {name: sized(running.controller, name, 5 * MIB) for name in names} == first


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


def test_start_beside_a_silent_node(tmp_path: Path) -> None:
    """A controller that has just begun places nothing before it knows where it may be already."""
    with cluster(tmp_path, "a", "b") as made, stopped(made.nodes["b"]):
        made.controller.restart()
        names = [f"v{number}" for number in range(12)]
        with ThreadPoolExecutor(len(names)) as threads:
            found = list(
                threads.map(lambda name: ending(lambda: create(made.controller, name)), names)
            )
    assert {code for code, _ in found} == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert all("node b may have volume" in details for _, details in found if details)


def only(node: str) -> csi.TopologyRequirement:
    return requirement(requisite=(node,), preferred=(node,))


def test_node_that_is_making_it(running: Cluster) -> None:
    """While a node makes a volume, also for a caller that has given up, no other one makes it."""
    names = [f"v{number}" for number in range(6)]

    def made(name: str) -> grpc.StatusCode:
        return ending(lambda: create(running.controller, name))[0]

    with contextlib.ExitStack() as making:
        for name in names:
            making.enter_context(_being_made(running.nodes["large"], name))
        found = [made(name) for name in names]
        assert found == [grpc.StatusCode.ABORTED] * len(names)
        assert running.controller.volume_ids() == []
    wait_for(lambda: made(names[0]) is grpc.StatusCode.OK)


@contextlib.contextmanager
def _being_made(node: Driver, name: str) -> Iterator[None]:
    """Have a node make a volume whose data does not come."""
    stub = transfers_pb2_grpc.TransfersStub(node.channel)  # type: ignore[no-untyped-call]
    content = transfers.Content(directory=True, capacity_bytes=MIB)
    begin = transfers.ImportRequest.Begin(volume=request(name), content=content)
    ended = threading.Event()

    def steps() -> Iterator[transfers.ImportRequest]:
        yield transfers.ImportRequest(begin=begin)
        ended.wait()

    importing = stub.Import(steps())
    assert next(importing).HasField("ready")
    try:
        yield
    finally:
        importing.cancel()
        ended.set()


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
    assert len(running.controller.volume_ids()) == 1


def test_refusal(filesystem: FilesystemFactory, tmp_path: Path) -> None:
    """If a node refuses for lack of inodes, the next one gets the volume."""
    pools = [
        filesystem("ext4", 512 * MIB, "-N", "64"),
        filesystem("ext4", 256 * MIB),
    ]
    with cluster(tmp_path, "full", "next", pools=pools) as made:
        _use_up(pools[0].parent / "files")
        found = {sized(made.controller, f"v{number}", 5 * MIB) for number in range(12)}
        assert found == {"next"}
        assert made.nodes["full"].volume_ids() == []
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            sized(made.controller, "w", 10 * MIB, accessibility_requirements=only("full"))


def _use_up(folder: Path) -> None:
    """Make files until the filesystem takes no more of them."""
    folder.mkdir()
    with pytest.raises(OSError, match="No space left on device"):  # noqa: PT012
        for number in range(1000):
            (folder / str(number)).touch()
