"""What connections to a node's port can take from it."""

import contextlib
import socket
from pathlib import Path

from cluster import Cluster, NodeDriver
from routing.conftest import create, reaches, requirement
from rpc.conftest import wait_for

MANY = 600
"""More connections than a node takes."""


def descriptors(node: NodeDriver) -> int:
    assert node.process is not None
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


def test_silent_connections(three: Cluster) -> None:
    """Clients that never say who they are use up no descriptors, and keep nobody out for long."""
    node = three.nodes["a"]
    assert reaches(three.controller, "a")
    before = descriptors(node)
    with contextlib.ExitStack() as opened:
        for _ in range(MANY):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            client.settimeout(5)
        only = requirement(preferred=("a",))
        for driver in (node, three.controller):
            driver.delete(create(driver, "flooded", accessibility_requirements=only))
        assert descriptors(node) < before + MANY // 2
        wait_for(lambda: descriptors(node) < before + 10)

        assert reaches(three.controller, "a")
