"""Volumes whose source is on another node, with the parameter restoreAnywhere."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trees
from cluster import Cluster, cluster
from driver import (
    GIB,
    MIB,
    Driver,
    block_capability,
    from_snapshot,
    from_volume,
    mount_capability,
    refused,
)
from exports import image_of, make_volume, same_image, scribble
from routing.conftest import ending, killed, requirement, stopped
from rpc.conftest import on_disk, request, wait_for

from pycsi.proto import csi_pb2 as csi

SIZE = 64 * MIB
ANYWHERE = {"restoreAnywhere": "true"}
DIRECTORY = {"type": "directory", "quota": "none"}

ABORTED = grpc.StatusCode.ABORTED
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
OK = grpc.StatusCode.OK
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def shared_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("nodes")
    with cluster(folder, "a", "b", "c", sizes=(3 * GIB, 3 * GIB, 256 * MIB)) as running:
        yield running


@pytest.fixture
def nodes(shared_nodes: Cluster) -> Iterator[Cluster]:
    """Return three nodes, of which c has little room; all are emptied after the test."""
    yield shared_nodes
    for node in shared_nodes.nodes.values():
        for volume_id in node.volume_ids():
            node.delete(volume_id)
        for snapshot in node.snapshots():
            node.delete_snapshot(snapshot.snapshot_id)
        assert on_disk(node) == set()


def asked(
    source: csi.VolumeContentSource, kind: str, preferred: tuple[str, ...] = ("b",), **more: Any
) -> csi.CreateVolumeRequest:
    """Return the request for a copy of a source, of this kind, anywhere."""
    fields: dict[str, Any] = {
        "volume_capabilities": [block_capability() if kind == "block" else mount_capability()],
        "parameters": ANYWHERE | (DIRECTORY if kind == "directory" else {}),
        "volume_content_source": source,
        "accessibility_requirements": requirement(requisite=("a", "b", "c"), preferred=preferred),
    }
    return csi.CreateVolumeRequest(**({"name": "copy"} | fields | more))


def create(nodes: Cluster, wanted: csi.CreateVolumeRequest, timeout: float = 60) -> csi.Volume:
    made: csi.Volume = nodes.controller.controller.CreateVolume(wanted, timeout=timeout).volume
    return made


def source_of(nodes: Cluster, kind: str, of: str = "snapshot") -> csi.VolumeContentSource:
    """Make the volume v on the node a, and a snapshot of it; return one of them as a source."""
    origin = make_volume(nodes.nodes["a"], kind, SIZE)
    if of == "volume":
        return from_volume(origin)
    return from_snapshot(nodes.controller.snapshot("s", origin).snapshot_id)


def same(nodes: Cluster, kind: str, copy: str = "copy@b") -> None:
    """Compare a copy with the volume v."""
    name = "data" if kind == "directory" else "disk.img"
    one = nodes.nodes["a"].pool / "volumes" / "v@a" / name
    other = nodes.nodes[copy[-1]].pool / "volumes" / copy / name
    if kind == "directory":
        assert trees.describe(one) == trees.describe(other)
    else:
        same_image(one, other)


def untouched(nodes: Cluster) -> None:
    """Check that there is no volume but v, and nothing of any other."""
    wait_for(lambda: nodes.controller.volume_ids() == ["v@a"])
    for name in ("b", "c"):
        assert on_disk(nodes.nodes[name]) == set()


@pytest.mark.parametrize("of", ["snapshot", "volume"])
@pytest.mark.parametrize("kind", ["block", "directory"])
def test_copy(nodes: Cluster, kind: str, of: str) -> None:
    """The copy has every byte and attribute, and the request can be repeated."""
    source = source_of(nodes, kind, of)
    made = create(nodes, asked(source, kind))
    assert made.volume_id == "copy@b"
    assert made.content_source == source
    assert create(nodes, asked(source, kind)) == made
    same(nodes, kind)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "capacity_range"):
        create(nodes, asked(source, kind, capacity_range=csi.CapacityRange(required_bytes=GIB)))
    other = asked(source, kind)
    other.parameters["onDelete"] = "retain"
    with refused(grpc.StatusCode.ALREADY_EXISTS, "parameters"):
        create(nodes, other)


def test_source_is_gone(nodes: Cluster) -> None:
    """A repeated request needs the source no more."""
    source = source_of(nodes, "block")
    made = create(nodes, asked(source, "block"))
    nodes.controller.delete_snapshot("s@a")
    nodes.controller.delete("v@a")
    assert create(nodes, asked(source, "block")) == made
    with refused(NOT_FOUND, "s@a"):
        create(nodes, asked(source, "block", preferred=("c",)))


def test_privileged(nodes: Cluster) -> None:
    """What gives rights is kept, as by a restore on the same node."""
    if os.geteuid():
        pytest.skip("needs root, for device nodes")
    made = nodes.nodes["a"].create("v", SIZE, parameters=DIRECTORY)
    trees.make(nodes.nodes["a"].pool / "volumes" / made.volume_id / "data", privileged=True)
    create(nodes, asked(from_volume("v@a"), "directory"))
    same(nodes, "directory")


def test_larger(nodes: Cluster) -> None:
    source = source_of(nodes, "block")
    larger = csi.CapacityRange(required_bytes=2 * SIZE)
    assert create(nodes, asked(source, "block", capacity_range=larger)).capacity_bytes == 2 * SIZE
    one, other = (
        image_of(nodes.nodes["a"], "v@a").read_bytes(),
        image_of(nodes.nodes["b"], "copy@b").read_bytes(),
    )
    assert other == one.ljust(2 * SIZE, b"\0")


def test_refused(nodes: Cluster) -> None:
    """What a restore on the same node refuses is refused alike, and nothing is left."""
    source = source_of(nodes, "block")
    smaller = csi.CapacityRange(required_bytes=MIB, limit_bytes=SIZE // 2)
    for code, word, wanted in (
        (OUT_OF_RANGE, "", asked(source, "block", capacity_range=smaller)),
        (INVALID_ARGUMENT, "raw block volume", asked(source, "image")),
        (INVALID_ARGUMENT, "type directory", asked(source, "directory")),
        (NOT_FOUND, "none@a", asked(from_snapshot("none@a"), "block")),
        (NOT_FOUND, "none@a", asked(from_volume("none@a"), "block")),
        (UNAVAILABLE, "nowhere", asked(from_snapshot("s@nowhere"), "block")),
        (UNAVAILABLE, "nowhere", asked(source, "block", preferred=("nowhere",))),
        (NOT_FOUND, "none", asked(from_snapshot("none"), "block")),
        (INVALID_ARGUMENT, "'x'", asked(source, "block", parameters=ANYWHERE | {"pool": "x"})),
        (INVALID_ARGUMENT, "'yes'", asked(source, "block", parameters={"restoreAnywhere": "yes"})),
        (INVALID_ARGUMENT, "name", asked(source, "block", name="")),
    ):
        with refused(code, word):
            create(nodes, wanted)
        untouched(nodes)


def test_no_room(nodes: Cluster) -> None:
    """The node that receives has to have the room; the orchestrator may try another one."""
    source = source_of(nodes, "block")
    large = csi.CapacityRange(required_bytes=512 * MIB)
    with refused(RESOURCE_EXHAUSTED, "node c", "256 MiB"):
        create(nodes, asked(source, "block", ("c",), capacity_range=large))
    untouched(nodes)
    create(nodes, asked(source, "block", ("c",)))


def test_in_use(nodes: Cluster, tmp_path: Path) -> None:
    """A volume in use is not copied; its snapshot is."""
    a = nodes.nodes["a"]
    volume_id = a.create("v", SIZE, type="image").volume_id
    with a.published(volume_id, tmp_path) as target:
        (target / "file").write_text("data")
        with refused(FAILED_PRECONDITION, "in use", "take a snapshot"):
            create(nodes, asked(from_volume(volume_id), "image"))
        untouched(nodes)
        snapshot = nodes.controller.snapshot("s", volume_id)
        create(nodes, asked(from_snapshot(snapshot.snapshot_id), "image"))
        b = nodes.nodes["b"]
        with b.published("copy@b", tmp_path) as copy:
            assert (copy / "file").read_text() == "data"


# Which node


def test_without_the_parameter(nodes: Cluster) -> None:
    """A volume is made where its source is, or nowhere."""
    source = source_of(nodes, "block")
    for parameters in ({}, {"restoreAnywhere": "false"}):
        made = create(nodes, asked(source, "block", parameters=parameters))
        assert made.volume_id == "copy@a"
        nodes.controller.delete("copy@a")
        only = requirement(requisite=("b",))
        with refused(RESOURCE_EXHAUSTED):
            create(
                nodes,
                asked(source, "block", parameters=parameters, accessibility_requirements=only),
            )


@pytest.mark.parametrize(
    ("requisite", "preferred", "node"),
    [
        ((), (), "a"),
        ((), ("a", "b"), "a"),
        (("a", "b"), ("b", "a"), "b"),
        (("a", "b", "c"), (), "a"),
        (("b",), (), "b"),
        (("b", "c"), ("c",), "c"),
    ],
)
def test_placement(
    nodes: Cluster, requisite: tuple[str, ...], preferred: tuple[str, ...], node: str
) -> None:
    """The first preferred node counts, then the source's if it is allowed, then any with room."""
    source = source_of(nodes, "block")
    where = requirement(requisite=requisite, preferred=preferred)
    made = create(nodes, asked(source, "block", accessibility_requirements=where))
    assert made.volume_id == f"copy@{node}"
    same(nodes, "block", made.volume_id)


def test_full_node_is_passed_over(nodes: Cluster) -> None:
    """Where no node is preferred, one without room is passed over; and a retry finds the volume."""
    source = source_of(nodes, "block")
    large = csi.CapacityRange(required_bytes=512 * MIB)
    either = requirement(requisite=("b", "c"))
    for name in ("copy", "x", "y", "z"):
        wanted = asked(source, "block", capacity_range=large, accessibility_requirements=either)
        wanted.name = name
        made = create(nodes, wanted)
        assert made.volume_id == f"{name}@b"
        assert create(nodes, wanted) == made


def test_node_alone(nodes: Cluster) -> None:
    """A node without the controller's help makes copies of its own sources only."""
    source = source_of(nodes, "block")
    with refused(RESOURCE_EXHAUSTED, "s@a is on node a"):
        nodes.nodes["b"].controller.CreateVolume(asked(source, "block"))
    untouched(nodes)
    request_here = asked(source, "block", preferred=("a",))
    assert nodes.nodes["a"].controller.CreateVolume(request_here).volume.volume_id == "copy@a"


# What takes long


def test_caller_that_waits_no_longer(nodes: Cluster) -> None:
    """A copy goes on without its caller; others are told ABORTED until it is there."""
    source = source_of(nodes, "block")
    a = nodes.nodes["a"]
    scribble_more(a)
    source = from_snapshot(nodes.controller.snapshot("more", "v@a").snapshot_id)
    with stopped(a):
        with refused(DEADLINE_EXCEEDED):
            create(nodes, asked(source, "block"), timeout=1)
        with refused(ABORTED):
            create(nodes, asked(source, "block"))
        with refused(ABORTED):
            nodes.controller.delete("copy@b")
    wait_for(lambda: "a copy to another node is complete" in nodes.controller.log)
    assert "copy@b" in nodes.nodes["b"].volume_ids()
    assert create(nodes, asked(source, "block")).volume_id == "copy@b"
    same(nodes, "block")


def scribble_more(node: Driver) -> None:
    image = image_of(node, "v@a")
    scribble(image, seed=2)


def test_source_is_kept(nodes: Cluster) -> None:
    """While a snapshot is copied it cannot be deleted, and a volume cannot be used."""
    source = source_of(nodes, "block", "volume")
    fill(nodes.nodes["a"], 256)
    with under_way(nodes, source) as call:
        for _ in range(3):
            with refused(ABORTED):
                nodes.controller.delete("v@a")
    call.result(60)
    same(nodes, "block")


def fill(node: Driver, mib: int) -> None:
    """Grow the volume v, and fill it."""
    node.expand("v@a", mib * MIB)
    with image_of(node, "v@a").open("r+b") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


@contextlib.contextmanager
def under_way(nodes: Cluster, source: csi.VolumeContentSource) -> Iterator[Any]:
    """Begin a copy, and have the node that receives stand still in the midst of it."""
    b = nodes.nodes["b"]
    call = nodes.controller.controller.CreateVolume.future(asked(source, "block"))
    wait_for(lambda: any((b.pool / "tmp").iterdir()) or call.done())
    with stopped(b):
        assert not call.done()
        yield call


@pytest.mark.parametrize("name", ["a", "b"])
def test_node_is_killed(nodes: Cluster, name: str) -> None:
    """A copy of which a node is killed leaves nothing, and is made by the next request."""
    source = source_of(nodes, "block")
    fill(nodes.nodes["a"], 256)
    source = from_snapshot(nodes.controller.snapshot("full", "v@a").snapshot_id)
    with under_way(nodes, source) as call, killed(nodes, name):
        if name == "a":
            assert nodes.nodes["b"].process is not None
            os.kill(nodes.nodes["b"].process.pid, signal.SIGCONT)
        assert ending(lambda: call.result(60))[0] is UNAVAILABLE
        if name == "a":
            wait_for(lambda: on_disk(nodes.nodes["b"]) == set())
    wait_for(lambda: ending(lambda: create(nodes, asked(source, "block")))[0] is OK)
    same(nodes, "block")


def test_memory(nodes: Cluster) -> None:
    """A copy takes little memory, however slow the node is that receives."""
    source = source_of(nodes, "block")
    fill(nodes.nodes["a"], 256)
    source = from_snapshot(nodes.controller.snapshot("full", "v@a").snapshot_id)
    for driver in (nodes.controller, nodes.nodes["a"]):
        assert driver.process is not None
        before = resident(driver.process.pid)
        with under_way(nodes, source) as call:
            with pytest.raises(grpc.FutureTimeoutError):
                call.result(3)
            assert resident(driver.process.pid) < before + 64 * MIB
        call.result(60)
        same(nodes, "block")
        nodes.controller.delete("copy@b")


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_secrets(nodes: Cluster) -> None:
    """Nobody logs secrets, and the node that receives is not even told them."""
    source = source_of(nodes, "block")
    create(nodes, asked(source, "block", secrets={"key": "hush-hush"}))
    for driver in (nodes.controller, *nodes.nodes.values()):
        assert "hush-hush" not in driver.log


def test_capacity(nodes: Cluster) -> None:
    """The parameter makes no difference to what can be made."""
    some = csi.GetCapacityRequest(parameters=ANYWHERE, volume_capabilities=[block_capability()])
    assert nodes.controller.controller.GetCapacity(some).available_capacity > 0
    made = nodes.controller.controller.CreateVolume(request("plain", parameters=ANYWHERE)).volume
    nodes.controller.delete(made.volume_id)
