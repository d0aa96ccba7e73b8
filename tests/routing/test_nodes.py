"""How the controller finds the nodes, and what it does while it does not."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import NodeDriver, controller, free_port, make_certificates
from driver import Driver, refused
from metrics import scrape
from routing.conftest import create, ending, reaches, requirement
from rpc.conftest import pycsi, wait_for

from pycsi.proto import csi_pb2 as csi

NAME = "nodes.pycsi.example"
WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@dataclasses.dataclass
class Service:
    """Nodes that have one port, at addresses of their own, and a name that stands for these."""

    folder: Path
    running: contextlib.ExitStack
    port: int = dataclasses.field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.tls = make_certificates(self.folder / "tls")
        self.hosts = self.folder / "hosts"
        self.point()

    def point(self, *addresses: str) -> None:
        """Have the name stand for these addresses from now on."""
        lines = ["127.0.0.1 localhost", *(f"{address} {NAME}" for address in addresses)]
        self.hosts.write_text("\n".join(lines) + "\n")

    def node(self, name: str, host: str, *options: str, home: str = "") -> NodeDriver:
        """Run a node at the address `host`."""
        folder = self.folder / (home or name)
        (folder / "pool").mkdir(parents=True)
        node = NodeDriver(name, folder, [f"default={folder / 'pool'}"], self.tls, options)
        node.host, node.port = host, self.port
        return self.running.enter_context(node)

    def controller(self, *options: str, name: str = NAME, **environment: str) -> Driver:
        """Run a controller that finds the nodes by a name."""
        given = (
            "--mode=controller",
            f"--tls-directory={self.tls / 'controller'}",
            f"--node-service={name}:{self.port}",
            *options,
        )
        wrapper = ("unshare", "--mount", "sh", "-c", WITH_HOSTS, str(self.hosts))
        number = len(list(self.folder.glob("controller-*")))
        folder = self.folder / f"controller-{number}"
        return self.running.enter_context(Driver(folder, (), given, environment, wrapper))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Return a name for nodes that a test starts."""
    with contextlib.ExitStack() as running:
        yield Service(tmp_path, running)


def lists(driver: Driver) -> list[str] | str:
    """Return the ids of all volumes, or why they cannot be listed."""
    try:
        return driver.volume_ids()
    except grpc.RpcError as error:
        failure: Any = error
        assert failure.code() is UNAVAILABLE, failure.details()
        return str(failure.details())


def listed_anew(driver: Driver) -> list[str] | str:
    """Return what `lists` does, after the controller has looked for nodes once more."""
    time.sleep(0.3)
    ending(lambda: driver.delete("x@nowhere"))
    return lists(driver)


def make(driver: Driver, name: str, node: str) -> str:
    return create(driver, name, accessibility_requirements=requirement(preferred=(node,)))


def test_nodes_come_and_go(service: Service) -> None:
    """All addresses of the name are nodes; one that comes later is found when it is asked for."""
    service.node("a", "127.0.0.2")
    service.node("b", "127.0.0.3")
    service.point("127.0.0.2", "127.0.0.3")
    port = free_port()
    central = service.controller(f"--metrics-address=127.0.0.1:{port}")
    assert make(central, "v", "a") == "v@a"
    assert make(central, "v", "b") == "v@b"
    assert lists(central) == ["v@a", "v@b"]
    with refused(UNAVAILABLE, "node c is not there"):
        make(central, "v", "c")
    service.node("c", "127.0.0.4")
    service.point("127.0.0.2", "127.0.0.3", "127.0.0.4")
    wait_for(lambda: reaches(central, "c"), 5)
    assert make(central, "v", "c") == "v@c"
    assert lists(central) == ["v@a", "v@b", "v@c"]
    found = scrape(port)
    assert [found("pycsi_node_up", node=name) for name in "abc"] == [1, 1, 1]
    # A node is missed for a while after it has lost its address.
    service.point("127.0.0.3", "127.0.0.4")
    wait_for(lambda: "node a has no address" in listed_anew(central), 30)
    assert make(central, "w", "b") == "w@b"
    service.point("127.0.0.2", "127.0.0.3", "127.0.0.4")
    wait_for(lambda: lists(central) == ["v@a", "v@b", "w@b", "v@c"], 5)


def test_moved_node(service: Service) -> None:
    """A node that comes back at another address is found as soon as the old one fails."""
    node = service.node("a", "127.0.0.2")
    service.node("b", "127.0.0.3")
    service.point("127.0.0.2", "127.0.0.3")
    central = service.controller()
    assert make(central, "v", "a") == "v@a"
    for host, ask in (
        ("127.0.0.4", lambda: lists(central) == ["v@a"]),
        ("127.0.0.5", lambda: reaches(central, "a")),
        ("127.0.0.6", lambda: ending(lambda: make(central, "v", "a"))[0] is grpc.StatusCode.OK),
    ):
        node.stop(signal.SIGKILL)
        assert "node a" in lists(central)
        node.host = host
        node.start()
        service.point("127.0.0.3", host)
        wait_for(ask, 5)


def test_addresses_change_hands(service: Service) -> None:
    """Nodes that come back with each other's addresses are not taken for each other."""
    a, b = service.node("a", "127.0.0.2"), service.node("b", "127.0.0.3")
    service.point("127.0.0.2", "127.0.0.3")
    central = service.controller()
    made = [make(central, "v", "a"), make(central, "w", "b")]
    assert lists(central) == made
    for node in (a, b):
        node.stop(signal.SIGKILL)
    a.host, b.host = b.host, a.host
    for node in (a, b):
        node.start()

    def deleted(volume_id: str) -> bool:
        code, details = ending(lambda: central.delete(volume_id))
        assert code in {grpc.StatusCode.OK, UNAVAILABLE}, details
        return code is grpc.StatusCode.OK

    wait_for(lambda: deleted("v@a"), 5)
    assert a.volume_ids() == []
    assert b.volume_ids() == ["w@b"]
    wait_for(lambda: lists(central) == ["w@b"], 5)
    wait_for(lambda: deleted("w@b"), 5)
    assert b.volume_ids() == []


def test_one_node_id_twice(service: Service) -> None:
    """Of two processes that claim to be one node neither is asked; others are."""
    service.node("a", "127.0.0.2")
    second = service.node("a", "127.0.0.3", home="second")
    service.node("b", "127.0.0.4")
    service.point("127.0.0.2", "127.0.0.4")
    central = service.controller()
    made = make(central, "v", "a")
    service.point("127.0.0.2", "127.0.0.3", "127.0.0.4")
    where = [f"127.0.0.{number}:{service.port}" for number in (2, 3)]
    wait_for(lambda: "both are node a" in listed_anew(central), 30)
    for volume_id in (made, "none@a"):
        with refused(UNAVAILABLE, *where, "--node-id"):
            central.delete(volume_id)
    with refused(UNAVAILABLE, *where):
        central.controller.GetCapacity(csi.GetCapacityRequest())
    assert reaches(central, "b")
    second.stop()
    service.point("127.0.0.2", "127.0.0.4")
    wait_for(lambda: listed_anew(central) == [made], 30)
    central.delete(made)


def test_one_process_at_two_addresses(service: Service) -> None:
    """A node that is reached in two ways is one node, also after it is replaced."""
    node = service.node("a", "")
    service.point("127.0.0.2", "127.0.0.3")
    central = service.controller()
    made = make(central, "v", "a")
    for _ in range(2):
        assert lists(central) == [made]
        node.restart(signal.SIGKILL)
        # One address is in use again before the controller looks at the other.
        wait_for(lambda: reaches(central, "a"), 5)
        time.sleep(1.2)
        with refused(UNAVAILABLE, "node nowhere"):
            make(central, "v", "nowhere")
        assert lists(central) == [made]


def test_name_that_is_not_known(service: Service) -> None:
    """Without an address there is no node; when the name is lost, the known nodes stay."""
    service.node("a", "127.0.0.2")
    central = service.controller()
    for call in (central.volume_ids, lambda: make(central, "v", "a"), lambda: central.delete("x")):
        code, details = ending(call)
        assert code is UNAVAILABLE
        assert f"{NAME}:{service.port} cannot be found" in details
    service.point("127.0.0.2")
    wait_for(lambda: reaches(central, "a"), 5)
    made = make(central, "v", "a")
    service.point()
    wait_for(lambda: "cannot be found" in ending(lambda: make(central, "v", "b"))[1], 5)
    assert lists(central) == [made]


@pytest.mark.parametrize("name", ["no-such.pycsi.example", "a..b", 64 * "x" + ".b", "[::1]"])
def test_wrong_name(service: Service, name: str) -> None:
    """Whatever is wrong with the name, calls say so, and the controller goes on."""
    central = service.controller(name=name)
    for _ in range(2):
        code, details = ending(central.volume_ids)
        assert code is UNAVAILABLE, details
        assert name in details
    assert central.stop() == 0


def test_no_proxy(service: Service) -> None:
    """Nodes are reached without the proxy that the environment has for others."""
    service.node("a", "127.0.0.2")
    service.point("127.0.0.2")
    nobody = f"http://127.0.0.9:{free_port()}"
    variables = ("http_proxy", "https_proxy", "grpc_proxy")
    central = service.controller(**dict.fromkeys(variables, nobody))
    wait_for(lambda: reaches(central, "a"), 5)


# Fixed addresses


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return two nodes, `a` at 127.0.0.2 and `b` at 127.0.0.3."""
    with contextlib.ExitStack() as running:
        made = Service(tmp_path_factory.mktemp("pair"), running)
        made.node("a", "127.0.0.2")
        made.node("b", "127.0.0.3")
        made.node("c", "127.0.0.4", "--driver-name=other.example")
        yield made


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("127.0.0.2", "that of node a, not of node x"),
        ("127.0.0.4", "controller.other.example, may call"),
        ("127.0.0.5", "refused"),
        ("no-such.pycsi.example", "lookup failed"),
    ],
)
def test_wrong_node(pair: Service, tmp_path: Path, host: str, reason: str) -> None:
    """A node that is not where it should be is told with the reason; others are as ever."""
    fixed = (f"--node=b=127.0.0.3:{pair.port}", f"--node=x={host}:{pair.port}")
    with controller(tmp_path, pair.tls, {}, fixed) as central:
        for _ in range(2):
            code, details = ending(lambda: make(central, "v", "x"))
            assert code is UNAVAILABLE
            assert "node x" in details
            assert reason in details
            assert reason in lists(central)
            assert reaches(central, "b")


def test_one_address_for_two_nodes(pair: Service, tmp_path: Path) -> None:
    """Two nodes cannot be at one address: the controller does not start."""
    done = pycsi(
        "--mode=controller",
        f"--endpoint=unix://{tmp_path}/csi.sock",
        f"--tls-directory={pair.tls}/controller",
        f"--node=a=127.0.0.2:{pair.port}",
        f"--node=b=127.0.0.2:{pair.port}",
    )
    assert done.returncode == 2
    assert f"--node b: 127.0.0.2:{pair.port} is that of node a" in done.stderr
