"""A cluster that the tests share, and how an RPC to a controller ends."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from cluster import Cluster, cluster
from driver import Driver
from rpc.conftest import TOPOLOGY, request, wait_for

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc

ODD_NAME = "c with spaces"
"""A node whose name cannot be a topology value, so that a digest stands for it."""

OK = grpc.StatusCode.OK


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster of three nodes, for tests that do not disturb each other."""
    with cluster(tmp_path_factory.mktemp("three"), "a", "b", ODD_NAME) as running:
        yield running


def segments(running: Cluster) -> dict[str, str]:
    """Return the topology segment of each node, by its name."""
    found = {}
    for name, node in running.nodes.items():
        info = node.node.NodeGetInfo(csi.NodeGetInfoRequest())
        found[name] = info.accessible_topology.segments[TOPOLOGY]
    return found


def place(*nodes: str, key: str = TOPOLOGY) -> list[csi.Topology]:
    """Return the topologies of nodes, by their segments."""
    return [csi.Topology(segments={key: node}) for node in nodes]


def requirement(
    *, requisite: tuple[str, ...] = (), preferred: tuple[str, ...] = ()
) -> csi.TopologyRequirement:
    """Return a requirement that the volume lies on one of the nodes."""
    return csi.TopologyRequirement(requisite=place(*requisite), preferred=place(*preferred))


def create(driver: Driver, name: str, **fields: Any) -> str:
    """Create a small directory, and return its id."""
    volume_id: str = driver.controller.CreateVolume(request(name, **fields)).volume.volume_id
    return volume_id


def ending(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Return how an RPC ends: its status code, and its message; a stream is read to its end."""
    try:
        reply = call()
        if isinstance(reply, grpc.Call):
            list(reply)  # type: ignore[call-overload]
    except grpc.RpcError as error:
        failure: Any = error
        return failure.code(), failure.details()
    return OK, ""


def rpcs(*services: str) -> Iterator[tuple[str, Any]]:
    """Yield the service and the descriptor of each of its methods."""
    for service in services:
        for method in csi.DESCRIPTOR.services_by_name[service].methods:
            yield service, method


def stub(driver: Driver, service: str) -> Any:
    """Return the client of a service."""
    return getattr(csi_pb2_grpc, f"{service}Stub")(driver.channel)


@contextlib.contextmanager
def stopped(driver: Driver) -> Iterator[None]:
    """Have a driver's process stand still, as if its machine was out of reach."""
    assert driver.process is not None
    os.kill(driver.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, driver.process.pid, os.WSTOPPED)  # until then a thread may answer
    try:
        yield
    finally:
        os.kill(driver.process.pid, signal.SIGCONT)


@contextlib.contextmanager
def killed(running: Cluster, name: str) -> Iterator[None]:
    """Kill a node, start it again at the end, and wait until the controller reaches it."""
    node = running.nodes[name]
    node.stop(signal.SIGKILL)
    try:
        yield
    finally:
        node.start()
    wait_for(lambda: reaches(running.controller, name))


def reaches(controller: Driver, segment: str) -> bool:
    """Tell whether a controller reaches a node."""
    asked = csi.GetCapacityRequest(accessible_topology=place(segment)[0])
    return ending(lambda: controller.controller.GetCapacity(asked))[0] is OK
