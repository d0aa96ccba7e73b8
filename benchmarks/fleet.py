"""Clusters of many nodes, whose drivers and controller are processes of this machine."""

import concurrent.futures
import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import load
from cluster import Cluster, NodeDriver, controller, make_certificates
from driver import MIB
from ground import Location, endpoint
from rows import DIRECTORY

_AT_ONCE = 4
"""The number of drivers that are started or stopped at the same time."""

_TEMPLATE = "template"

PREFIX = "pvc-6ba7b810-9dad-11d1-80b4-00c04f"
"""What the names of volumes begin with; they are as long as those that Kubernetes gives."""


@contextlib.contextmanager
def fleet(where: Location, name: str, count: int, volumes: int = 0) -> Iterator[Cluster]:
    """Run `count` nodes and their controller through the `with` block.

    Each node has a pool of its own on the measured filesystem, with so many volumes in it.
    """
    folder = where.folder / name
    folder.mkdir()
    tls = make_certificates(folder / "tls")
    template = _template(where, folder, volumes, tls)
    nodes: dict[str, NodeDriver] = {}
    ports: set[int] = set()
    while len(nodes) < count:
        segment = f"node-{len(nodes):04}"
        pool = where.disk / name / segment
        node = NodeDriver(segment, folder / segment, [f"default={pool}"], tls)
        if node.port not in ports:  # nobody listens yet, and so a port can be given twice
            ports.add(node.port)
            nodes[segment] = node
            _copy(template, pool, segment)
    drivers = list(nodes.values())
    central = controller(folder, tls, nodes)
    with _running(drivers):
        central.wrapper = _apart(drivers[0])
        with central:
            yield Cluster(folder, tls, nodes, central)


def _apart(node: NodeDriver) -> tuple[str, ...]:
    """Return the command prefix that keeps a controller off the CPU on which a node's driver stays.

    It would be on another machine.
    """
    assert node.process is not None
    others = os.sched_getaffinity(0) - os.sched_getaffinity(node.process.pid)
    return ("taskset", "--cpu-list", ",".join(map(str, sorted(others)))) if others else ()


def _template(where: Location, folder: Path, volumes: int, tls: Path) -> Path:
    """Return a pool with so many volumes, made by a driver."""
    pool = where.disk / folder.name / _TEMPLATE
    pool.mkdir(parents=True)
    wanted = load.Wanted(folder=folder, parameters=DIRECTORY, size=MIB, prefix=PREFIX)
    with NodeDriver(_TEMPLATE, folder / _TEMPLATE, [f"default={pool}"], tls) as driver:
        client = load.Client(endpoint(driver), wanted)
        for number in range(volumes):
            client.create(f"{number:06}")
        client.close()
    return pool


def _copy(template: Path, pool: Path, segment: str) -> None:
    """Copy a pool with its volumes, as if the driver of another node had made them."""
    shutil.copytree(template, pool)
    for volume in (pool / "volumes").iterdir():
        volume.rename(volume.with_name(volume.name.replace(_TEMPLATE, segment)))
    identity = (pool / "pool.json").read_text().partition('"uuid":"')[2].partition('"')[0]
    mine = str(uuid.uuid4())
    for record in (pool / "pool.json", *pool.glob("volumes/*/volume.json")):
        text = record.read_text().replace(f"@{_TEMPLATE}", f"@{segment}").replace(identity, mine)
        record.write_text(text)


@contextlib.contextmanager
def _running(nodes: list[NodeDriver]) -> Iterator[None]:
    """Run the drivers through the `with` block."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as starters:
        try:
            list(starters.map(NodeDriver.start, nodes))
            yield
        finally:
            list(starters.map(NodeDriver.__exit__, nodes))
