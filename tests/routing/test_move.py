"""Volumes that move from one node to another, by the controller."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cluster import Cluster, NodeDriver, cluster
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver, block_capability, mount_capability, refused
from exports import image_of
from reliability.test_groups_over_nodes import again
from relocation import Traveller, content_of, data_in, look, move
from routing.conftest import ending, killed, reaches, stopped
from rpc.conftest import TOPOLOGY, on_disk, wait_for
from terminal import piped

from pycsi.proto import transfers_pb2 as transfers
from pycsi.proto import transfers_pb2_grpc

SIZE = 64 * MIB
KINDS = ("block", "directory")

ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def nodes(filesystem: FilesystemFactory, tmp_path: Path) -> Iterator[Cluster]:
    """Return two nodes, with pools on XFS and on ext4."""
    pools = [filesystem("xfs", GIB) / "pool", filesystem("ext4", 640 * MIB) / "pool"]
    with cluster(tmp_path, "a", "b", pools=pools) as running:
        yield running


def arriving(nodes: Cluster) -> Path:
    """Return the copy of v that arrives on the node b."""
    return data_in(nodes.nodes["b"].pool / "arriving" / "v@b")


def nothing_is_left(nodes: Cluster) -> None:
    """Check that v is on the node a as if no move had ever begun."""
    a, b = nodes.nodes["a"], nodes.nodes["b"]
    wait_for(lambda: not on_disk(b))
    assert not list((b.pool / "arriving").iterdir())
    assert a.volume_ids() == ["v@a"]
    assert not a.snapshots()
    assert not (a.pool / "volumes" / "v@a" / "departure.json").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_move(nodes: Cluster, kind: str) -> None:
    """What was prepared is brought up to date in its place; the volume keeps all that it was."""
    moving = Traveller(nodes, kind, SIZE)
    moving.a.modify(moving.id, onDelete="retain")
    assert not moving.move(prepare=True).HasField("volume")
    copy = arriving(nodes)
    assert look(copy) == moving.before
    same = copy.stat().st_ino
    for number in (1, 2):
        moving.change(number)
        moving.move(prepare=True)
        assert look(copy) == moving.before
    assert len(moving.a.snapshots()) <= 2
    moving.change(3)
    made = moving.move()
    moving.arrived()
    assert content_of(moving.b, "v@b").stat().st_ino == same
    assert made.volume.volume_id == "v@b"
    assert made.volume.capacity_bytes == SIZE
    assert made.volume.accessible_topology[0].segments[TOPOLOGY] == "b"
    assert made.request.mutable_parameters["onDelete"] == "retain"
    assert moving.move() == made
    with refused(NOT_FOUND, "v@a"):
        moving.move(prepare=True)


def test_in_use(nodes: Cluster, tmp_path: Path) -> None:
    """A filesystem in use is copied; once it is not, the rest. All that it held is on the node."""
    a, b = nodes.nodes["a"], nodes.nodes["b"]
    a.create("v", 320 * MIB, capability=mount_capability("xfs"), parameters={"type": "image"})
    with a.published("v@a", tmp_path) as target:
        (target / "one").write_text("data")
        move(nodes, "v@a", "b", prepare=True)
        (target / "two").write_text("more")
        with refused(FAILED_PRECONDITION, "in use", "node b"):
            move(nodes, "v@a", "b")
        (target / "three").write_text("and more")
    a.expand("v@a", 384 * MIB)
    made = move(nodes, "v@a", "b")
    assert made.volume.capacity_bytes == 384 * MIB
    with b.published("v@b", tmp_path) as target:
        assert {item.name: item.read_text() for item in target.iterdir()} == {
            "one": "data", "two": "more", "three": "and more"
        }  # fmt: skip


def test_without_preparing(nodes: Cluster) -> None:
    """All of a volume that is not in use is copied at once, also back, and under a parameter."""
    moving = Traveller(nodes, "block", SIZE)
    moving.move(pool="default")
    moving.arrived()
    assert move(nodes, "v@b", "a").volume.volume_id == "v@a"
    assert look(content_of(moving.a, "v@a")) == moving.before
    assert moving.b.volume_ids() == []


def test_snapshots_stay(nodes: Cluster) -> None:
    """Snapshots of users are no snapshots of moves."""
    moving = Traveller(nodes, "block", SIZE)
    moving.a.snapshot("moving-mine", moving.id)
    moving.move(prepare=True)
    moving.move()
    assert [item.snapshot_id for item in moving.a.snapshots()] == ["moving-mine@a"]


# What is refused


def test_refused(nodes: Cluster) -> None:
    """What cannot be moved is refused, with the reason, and nothing is changed."""
    moving = Traveller(nodes, "block", SIZE)
    for code, words, volume_id, node, more in (
        (UNAVAILABLE, ("nowhere",), "v@a", "nowhere", {}),
        (INVALID_ARGUMENT, ("is on node a",), "v@a", "a", {}),
        (NOT_FOUND, ("none@a",), "none@a", "b", {}),
        (NOT_FOUND, ("its id",), "v", "b", {}),
        (UNAVAILABLE, ("nowhere",), "v@nowhere", "b", {}),
        (INVALID_ARGUMENT, ("node b", "'x'"), "v@a", "b", {"pool": "x"}),
        (FAILED_PRECONDITION, ("--endpoint",), "v@a", "", {"pool": "default"}),
    ):
        for prepare in (False, True):
            with refused(code, *words):
                move(nodes, volume_id, node, prepare=prepare, **more)
            nothing_is_left(nodes)
    moving.b.create("v", SIZE)
    for prepare in (False, True):
        with refused(ALREADY_EXISTS, "node b", "v@b"):
            moving.move(prepare=prepare)
    moving.b.delete("v@b")
    moving.b.reaped()
    moving.a.expand(moving.id, 800 * MIB)
    for prepare in (False, True):
        with refused(RESOURCE_EXHAUSTED, "node b", "800 MiB wanted"):
            moving.move(prepare=prepare)
        nothing_is_left(nodes)


def test_encrypted(nodes: Cluster) -> None:
    """An encrypted volume is refused, locked or not: it would leave its key in the trash."""
    a, record = nodes.nodes["a"], nodes.nodes["a"].pool / "volumes" / "v@a" / "volume.json"
    a.create("v", SIZE, capability=block_capability())
    a.stop()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"encryption": "luks2"}))
    a.start()
    wait_for(lambda: reaches(nodes.controller, "a"))
    for prepare in (False, True):
        with refused(FAILED_PRECONDITION, "v@a is encrypted"):
            move(nodes, "v@a", "b", prepare=prepare)
        nothing_is_left(nodes)


def test_no_limit_there(nodes: Cluster) -> None:
    """A directory with a limit needs a pool that limits directories."""
    a, record = nodes.nodes["a"], nodes.nodes["a"].pool / "volumes" / "v@a" / "volume.json"
    a.create("v", SIZE, parameters={"type": "directory", "quota": "none"})
    a.stop()
    record.write_text(record.read_text().replace('"quota":"none"', '"quota":"required"'))
    a.start()
    wait_for(lambda: reaches(nodes.controller, "a"))
    with refused(INVALID_ARGUMENT, "node b", "cannot limit the size of a directory"):
        move(nodes, "v@a", "b")
    nothing_is_left(nodes)


def test_node_alone(nodes: Cluster) -> None:
    """A node does not move its volumes to another one."""
    stub = transfers_pb2_grpc.TransfersStub(nodes.nodes["a"].channel)  # type: ignore[no-untyped-call]
    with refused(FAILED_PRECONDITION, "controller"):
        list(stub.Move(transfers.MoveRequest(volume_id="v@a", to_node="b")))
    with refused(FAILED_PRECONDITION, "controller"):
        stub.CancelMove(transfers.CancelMoveRequest(volume_id="v@a", to_node="b"))


# What is cut off


@contextlib.contextmanager
def under_way(nodes: Cluster) -> Iterator[Any]:
    """Begin to move the volume v, and have the node b stand still while the rest is copied."""
    stub = transfers_pb2_grpc.TransfersStub(nodes.controller.channel)  # type: ignore[no-untyped-call]
    blocks = arriving(nodes).stat().st_blocks if arriving(nodes).exists() else 0
    call = stub.Move(transfers.MoveRequest(volume_id="v@a", to_node="b"))
    wait_for(lambda: arriving(nodes).exists() and arriving(nodes).stat().st_blocks > blocks)
    with stopped(nodes.nodes["b"]):
        yield call


def fill(node: Driver, mib: int) -> None:
    """Grow the volume v, and fill it."""
    node.expand("v@a", mib * MIB)
    with image_of(node, "v@a").open("r+b") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


def test_departing(nodes: Cluster, tmp_path: Path) -> None:
    """From when the rest is copied to the end nothing can change the volume; `cancel` ends that."""
    moving = Traveller(nodes, "block", SIZE)
    fill(moving.a, 256)
    moving.before = look(moving.content)
    with under_way(nodes) as call, killed(nodes, "b"):
        assert ending(lambda: list(call))[0] is UNAVAILABLE
    a = moving.a
    for _ in range(2):
        for change in (
            lambda: a.stage("v@a", tmp_path / "staging", block_capability()),
            lambda: a.expand("v@a", 300 * MIB),
            lambda: a.modify("v@a", onDelete="retain"),
        ):
            with refused(FAILED_PRECONDITION, "v@a is moving to node b", "--cancel"):
                change()
        a.restart(signal.SIGKILL)
        wait_for(lambda: reaches(nodes.controller, "a"))
    moving.cancel()
    nothing_is_left(nodes)
    moving.cancel()
    with a.published("v@a", tmp_path, block_capability()):
        pass
    moving.move()
    moving.arrived()
    with refused(NOT_FOUND):
        moving.move(prepare=True)
    moving.cancel()
    moving.arrived()


@pytest.mark.parametrize("prepare", [False, True])
@pytest.mark.parametrize("name", ["a", "b", "caller"])
def test_cut(nodes: Cluster, name: str, prepare: bool) -> None:
    """Whoever is lost, what was done stays, and the repeated command goes on."""
    moving = Traveller(nodes, "block", SIZE)
    moving.move(prepare=True)
    same = arriving(nodes).stat().st_ino
    fill(moving.a, 256)
    moving.before = look(moving.content)
    stub = transfers_pb2_grpc.TransfersStub(nodes.controller.channel)  # type: ignore[no-untyped-call]
    blocks = arriving(nodes).stat().st_blocks
    call = stub.Move(transfers.MoveRequest(volume_id="v@a", to_node="b", prepare=prepare))
    wait_for(lambda: arriving(nodes).stat().st_blocks > blocks)
    if name == "caller":
        call.cancel()
    else:
        with killed(nodes, name):
            assert ending(lambda: list(call))[0] is UNAVAILABLE
    again(moving.move)
    moving.arrived()
    assert content_of(moving.b, "v@b").stat().st_ino == same


def test_node_is_away(nodes: Cluster, tmp_path: Path) -> None:
    """If the other node is not there the volume stays all the same; its copy is deleted later."""
    moving = Traveller(nodes, "block", SIZE)
    fill(moving.a, 256)
    moving.before = look(moving.content)
    with under_way(nodes) as call, killed(nodes, "b"):
        assert ending(lambda: list(call))[0] is UNAVAILABLE
        with refused(UNAVAILABLE, "v@a stays", "repeat"):
            moving.cancel()
        with moving.a.published("v@a", tmp_path, block_capability()):
            pass
    assert arriving(nodes).exists()
    again(moving.cancel)
    nothing_is_left(nodes)


# The command


def pycsi(nodes: Cluster, *words: str | Path) -> Any:
    return piped("move", "v@a", "--to-node", "b", f"--endpoint={nodes.controller.socket}", *words)


def test_command(nodes: Cluster, tmp_path: Path) -> None:
    """The command prints what the cluster needs to use the volume in its new place."""
    a = nodes.nodes["a"]
    given = {
        "type": "directory",
        "quota": "none",
        "csi.storage.k8s.io/pvc/name": "data",
        "csi.storage.k8s.io/pvc/namespace": "shop",
    }
    a.create("pvc-1", SIZE, parameters=given)
    a.create("v", SIZE, parameters={"type": "directory", "quota": "none"})
    prepared = pycsi(nodes, "--prepare")
    assert prepared.returncode == 0
    assert prepared.stdout.startswith("v@a is copied to node b")
    done = pycsi(nodes)
    assert done.returncode == 0, done.stderr
    assert pycsi(nodes).stdout == done.stdout
    (volume,) = yaml.safe_load_all(done.stdout.partition("---")[2].rpartition("---")[0])
    assert volume["metadata"]["name"] == "v-b"
    assert volume["spec"]["csi"]["volumeHandle"] == "v@b"
    assert "kubectl patch pv v --type merge" in done.stdout
    assert "kubectl delete pv v\n" in done.stdout
    told = piped("move", "pvc-1@a", "--to-node", "b", f"--endpoint={nodes.controller.socket}")
    volume, claim = yaml.safe_load_all(told.stdout.partition("---")[2].rpartition("---")[0])
    assert volume["spec"]["claimRef"]["namespace"] == "shop"
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"] == "pvc-1-b"
    assert "kubectl -n shop delete pvc data" in told.stdout


def test_objects(nodes: Cluster, tmp_path: Path) -> None:
    """With what the cluster tells, the manifests have classes, labels and access modes."""
    nodes.nodes["a"].create("v", SIZE, parameters={"type": "directory", "quota": "none"})
    handle = {"driver": "pycsi.storage", "volumeHandle": "v@a"}
    reference = {"namespace": "shop", "name": "data"}
    objects = {
        "kind": "List",
        "items": [
            {"kind": "PersistentVolume", "metadata": {"name": "old"}, "spec": {
                "csi": handle, "claimRef": reference, "storageClassName": "fast",
                "capacity": {"storage": "64Mi"}, "accessModes": ["ReadWriteOncePod"],
                "persistentVolumeReclaimPolicy": "Delete"}},
            {"kind": "PersistentVolumeClaim", "metadata": {**reference, "labels": {"app": "shop"}},
             "spec": {"accessModes": ["ReadWriteOncePod"],
                      "resources": {"requests": {"storage": "64Mi"}}}},
        ],
    }  # fmt: skip
    file = tmp_path / "objects.json"
    file.write_text(json.dumps({"kind": "List", "items": []}))
    none = pycsi(nodes, "--objects", file)
    assert none.returncode == 2
    assert "no volume of pycsi.storage with handle v@a" in none.stderr
    assert nodes.nodes["a"].volume_ids() == ["v@a"]
    file.write_text(json.dumps(objects))
    done = pycsi(nodes, "--objects", file)
    volume, claim = yaml.safe_load_all(done.stdout.partition("---")[2].rpartition("---")[0])
    assert volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"] == "fast"
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert volume["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert volume["spec"]["capacity"]["storage"] == "64Mi"
    assert volume["metadata"]["name"] == "old-b"
    assert claim["metadata"]["labels"] == {"app": "shop"}
    assert "kubectl delete pv old" in done.stdout


def findings(node: NodeDriver) -> list[dict[str, Any]]:
    """Return what the doctor finds on a node about moves."""
    found = piped("doctor", "-o", "json", f"--pool={node.pools[0]}", f"--node-id={node.name}")
    return [item for item in json.loads(found.stdout) if item["code"] == "MoveUnfinished"]


def test_doctor(nodes: Cluster) -> None:
    """The doctor tells of a move that has not ended, on both nodes, with what ends it."""
    moving = Traveller(nodes, "block", SIZE)
    assert findings(moving.a) == findings(moving.b) == []
    moving.move(prepare=True)
    fill(moving.a, 256)
    moving.before = look(moving.content)
    for node, words in ((moving.a, "has a snapshot"), (moving.b, "is here in part")):
        (found,) = findings(node)
        assert words in found["message"]
        assert found["command"] == "pycsi move v@a --to-node b"
        assert "pycsi move v@a --to-node b --cancel" in found["message"]
    with under_way(nodes) as call, killed(nodes, "b"):
        assert ending(lambda: list(call))[0] is UNAVAILABLE
    (found,) = findings(moving.a)
    assert "is not staged until" in found["message"]
    again(moving.move)
    moving.arrived()
    assert findings(moving.a) == findings(moving.b) == []
