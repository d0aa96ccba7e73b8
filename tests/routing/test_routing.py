"""Each RPC reaches the node that it is for, and is answered as that node answers it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import Cluster, cluster
from conftest import FilesystemFactory
from driver import MIB, Driver, block_capability, from_snapshot, from_volume, refused
from routing.conftest import (
    ODD_NAME,
    create,
    ending,
    killed,
    place,
    requirement,
    rpcs,
    segments,
    stub,
)
from rpc.conftest import TOPOLOGY, request, rpc_types
from rpc.test_modes import NEEDS, UNIMPLEMENTED, answers, plugin

from pycsi.proto import csi_pb2 as csi

BY_ID = {
    method.name: (service, field.name)
    for service, method in rpcs("Controller", "SnapshotMetadata")
    for field in method.input_type.fields
    if field.name in {"volume_id", "snapshot_id", "source_volume_id", "target_snapshot_id"}
    and not method.name.startswith("List")
}
"""The methods whose requests have an id, with their service and the field of the id."""

MALFORMED = {
    "nothing": "",
    "no node": "x",
    "no name": "@a",
    "two nodes": "x@a@b",
    "path": "../../x@a",
    "absolute path": "/x@a",
    "path to a node": "x@../a",
    "NUL": "x\0y@a",
    "line feed": "x@a\n",
    "space": " x@a",
    "long": 200 * "x" + "@a",
    "long node": "x@" + 200 * "a",
    "not ASCII": "\u00e4@\u00f6",
}


@pytest.fixture(scope="module")
def attaching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster of two nodes that attaches volumes."""
    folder = tmp_path_factory.mktemp("attaching")
    with cluster(folder, "a", "b", options=("--enable-attach",)) as running:
        yield running


def message(method: Any, **fields: Any) -> Any:
    return getattr(csi, method)(**fields)


def ids_asked(node: Driver, name: str) -> set[str]:
    """Return the ids in the requests `name` that a node has logged."""
    lines = [json.loads(line) for line in node.log.splitlines()]
    return {
        value
        for line in lines
        if line["event"] == name
        for key, value in line.items()
        if key.endswith("_id") and key != "request_id"
    }


def undecoded(driver: Driver, service: str, method: str) -> tuple[grpc.StatusCode, str]:
    """Return how a request ends that is no message."""
    channel: Any = driver.channel
    kind = channel.unary_stream if service == "SnapshotMetadata" else channel.unary_unary
    return ending(lambda: kind(f"/csi.v1.{service}/{method}")(b"\xff\xff"))


@pytest.mark.parametrize("name", ["a", "b", ODD_NAME])
@pytest.mark.parametrize("method", BY_ID)
def test_id(attaching: Cluster, three: Cluster, method: str, name: str) -> None:
    """A request with an id gets the answer of the node in it, and reaches no other."""
    attaches = "ublish" in method
    running = attaching if attaches and name != ODD_NAME else three
    service, field = BY_ID[method]
    wanted = f"none-{name[:1]}@{segments(running)[name]}"
    base = {"base_snapshot_id": wanted} if method == "GetMetadataDelta" else {}
    asked = message(f"{method}Request", **{field: wanted}, **base)
    answer = ending(lambda: getattr(stub(running.controller, service), method)(asked))
    assert answer == ending(lambda: getattr(stub(running.nodes[name], service), method)(asked))
    if answer[0] is UNIMPLEMENTED:
        assert attaches
        return
    for other, node in running.nodes.items():
        assert (wanted in ids_asked(node, method)) is (other == name)


def test_no_method_is_left_out() -> None:
    """Those that are not asked by id are known."""
    others = {method.name for _, method in rpcs("Controller")} - set(BY_ID)
    assert others == {
        "CreateVolume",
        "ListVolumes",
        "GetCapacity",
        "ControllerGetCapabilities",
        "ListSnapshots",
        "ControllerListVolumeHealth",
    }


@pytest.mark.parametrize("wrong", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("method", BY_ID)
def test_malformed_id(three: Cluster, method: str, wrong: str) -> None:
    """An id that no node gives is answered as any node answers it."""
    service, field = BY_ID[method]
    asked = message(f"{method}Request", **{field: wrong})
    answer = ending(lambda: getattr(stub(three.controller, service), method)(asked))
    own = [
        ending(lambda: getattr(stub(node, service), method)(asked))  # noqa: B023
        for node in three.nodes.values()
    ]
    assert answer in own


@pytest.mark.parametrize(
    ("service", "method"),
    [(service, method.name) for service, method in rpcs("Controller", "SnapshotMetadata")],
)
def test_undecodable(three: Cluster, service: str, method: str) -> None:
    """Bytes that are no message are refused as a node refuses them."""
    found = [undecoded(driver, service, method) for driver in (three.controller, three.nodes["a"])]
    assert found[0] == found[1]
    assert found[0][0] is grpc.StatusCode.INVALID_ARGUMENT or method.startswith("ControllerP")


@pytest.mark.parametrize("method", [name for name in BY_ID if "ublish" not in name])
def test_unknown_node(three: Cluster, method: str) -> None:
    """A request for a node that nobody knows is UNAVAILABLE, with its name: never OK."""
    service, field = BY_ID[method]
    asked = message(f"{method}Request", **{field: "x@nowhere"})
    code, details = ending(lambda: getattr(stub(three.controller, service), method)(asked))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "nowhere" in details


def test_node_that_is_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is for a node that is down is UNAVAILABLE with its name; others are as ever."""
    with cluster(tmp_path_factory.mktemp("away"), "here", "gone") as running:
        controller = running.controller
        lost = create(controller, "v", accessibility_requirements=requirement(preferred=("gone",)))
        with killed(running, "gone"):
            for _ in range(2):
                with refused(grpc.StatusCode.UNAVAILABLE, "node gone"):
                    controller.delete(lost)
            with refused(grpc.StatusCode.UNAVAILABLE, "node gone"):
                create(controller, "w", accessibility_requirements=requirement(preferred=("gone",)))
            with refused(grpc.StatusCode.UNAVAILABLE, "node gone"):
                controller.controller.GetCapacity(csi.GetCapacityRequest())
            with refused(grpc.StatusCode.UNAVAILABLE, "node gone"):
                create(controller, "v")
            assert controller.condition(create(running.nodes["here"], "u")).message == "healthy"
        assert running.nodes["gone"].volume_ids() == [lost]


# Volumes from a source


@pytest.mark.parametrize("kind", ["snapshot", "volume"])
def test_source(three: Cluster, kind: str) -> None:
    """A volume from a source is made where the source is, whatever is preferred."""
    of = segments(three)
    every = tuple(of.values())
    for name, node in of.items():
        only = requirement(preferred=(node,))
        origin = create(three.controller, f"{kind}-{name[0]}", accessibility_requirements=only)
        assert origin.endswith(f"@{node}")
        source = from_volume(origin)
        if kind == "snapshot":
            source = from_snapshot(three.controller.snapshot(f"s-{name}", origin).snapshot_id)
        others = tuple(item for item in every if item != node)
        wanted = requirement(requisite=every, preferred=(*others, node))
        for _ in range(2):
            made = create(
                three.controller,
                f"from-{kind}-{name[0]}",
                volume_content_source=source,
                accessibility_requirements=wanted,
            )
            assert made == f"from-{kind}-{name[0]}@{node}"
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            create(
                three.controller,
                f"refused-{kind}-{name[0]}",
                volume_content_source=source,
                accessibility_requirements=requirement(requisite=others, preferred=others),
            )


@pytest.mark.parametrize("source", [from_volume("x@nowhere"), from_snapshot("x@nowhere")])
def test_source_on_unknown_node(three: Cluster, source: csi.VolumeContentSource) -> None:
    """Nothing is made from a source whose node is not known."""
    before = three.controller.volume_ids()
    with refused(grpc.StatusCode.UNAVAILABLE, "nowhere"):
        create(three.controller, "from-nowhere", volume_content_source=source)
    assert three.controller.volume_ids() == before


@pytest.mark.parametrize("source", [from_volume("x"), from_snapshot("x"), from_volume("../x@a")])
def test_source_without_node(three: Cluster, source: csi.VolumeContentSource) -> None:
    """A source that cannot be anywhere is answered as a node answers it."""
    asked = request("from-x", volume_content_source=source)
    answer = ending(lambda: three.controller.controller.CreateVolume(asked))
    own = [
        ending(lambda: node.controller.CreateVolume(asked))  # noqa: B023
        for node in three.nodes.values()
    ]
    assert answer in own


# Topology


def test_first_preferred(three: Cluster) -> None:
    """Of the preferred nodes the first gets the volume."""
    for name, node in segments(three).items():
        others = tuple(item for item in segments(three).values() if item != node)
        wanted = requirement(requisite=(*others, node), preferred=(node, *others))
        made = create(three.controller, f"p-{name[0]}", accessibility_requirements=wanted)
        assert made == f"p-{name[0]}@{node}"


@pytest.mark.parametrize("key", [TOPOLOGY.upper(), TOPOLOGY.title()])
def test_case_of_keys(three: Cluster, key: str) -> None:
    """The case of topology keys is ignored."""
    wanted = csi.TopologyRequirement(requisite=place("a", "b"), preferred=place("b", key=key))
    made = create(three.controller, f"key-{key[0]}-{key[1]}", accessibility_requirements=wanted)
    assert made.endswith("@b")
    wanted = csi.TopologyRequirement(requisite=place("b", key=key))
    made = create(three.controller, f"req-{key[0]}-{key[1]}", accessibility_requirements=wanted)
    assert made.endswith("@b")


@pytest.mark.parametrize(
    "foreign",
    [
        {"topology.kubernetes.io/zone": "a"},
        {TOPOLOGY: "a", "topology.kubernetes.io/zone": "a"},
    ],
)
def test_foreign_keys(three: Cluster, foreign: dict[str, str]) -> None:
    """No node lies in a topology of others' keys: nothing is made, and no capacity is told."""
    topology = csi.Topology(segments=foreign)
    wanted = csi.TopologyRequirement(requisite=[topology], preferred=[topology])
    before = three.controller.volume_ids()
    asked = request("foreign", accessibility_requirements=wanted)
    answer = ending(lambda: three.controller.controller.CreateVolume(asked))
    own = [
        ending(lambda: node.controller.CreateVolume(asked))  # noqa: B023
        for node in three.nodes.values()
    ]
    assert answer[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer in own
    assert three.controller.volume_ids() == before
    capacity = three.controller.controller.GetCapacity(
        csi.GetCapacityRequest(accessible_topology=topology)
    )
    assert capacity.available_capacity == 0


def test_requisite(three: Cluster) -> None:
    """Without preferred topologies the volume is made on one of the requisite nodes."""
    for name, node in segments(three).items():
        wanted = requirement(requisite=(node,))
        made = create(three.controller, f"r-{name[0]}", accessibility_requirements=wanted)
        assert made == f"r-{name[0]}@{node}"
    wanted = requirement(requisite=("a", "nowhere"))
    with refused(grpc.StatusCode.UNAVAILABLE, "nowhere"):
        create(three.controller, "r-x", accessibility_requirements=wanted)


def test_unknown_preferred(three: Cluster) -> None:
    """A node that is not known does not get a volume, and no other does instead."""
    before = three.controller.volume_ids()
    with refused(grpc.StatusCode.UNAVAILABLE, "nowhere"):
        create(
            three.controller,
            "u",
            accessibility_requirements=requirement(
                requisite=("a", "nowhere"), preferred=("nowhere", "a")
            ),
        )
    assert three.controller.volume_ids() == before


def test_capacity(three: Cluster) -> None:
    """Each node's capacity is its own; without a topology all of them count."""
    ask = three.controller.controller.GetCapacity
    for name, node in segments(three).items():
        three.nodes[name].reaped()
        for key in (TOPOLOGY, TOPOLOGY.upper()):
            asked = csi.GetCapacityRequest(accessible_topology=place(node, key=key)[0])
            own = three.nodes[name].controller.GetCapacity(asked)
            assert abs(ask(asked).available_capacity - own.available_capacity) < 64 * MIB
            assert own.available_capacity > 0
    with refused(grpc.StatusCode.UNAVAILABLE, "nowhere"):
        ask(csi.GetCapacityRequest(accessible_topology=place("nowhere")[0]))
    whole = ask(csi.GetCapacityRequest())
    assert whole.available_capacity > 2 * own.available_capacity
    assert 0 < whole.maximum_volume_size.value < whole.available_capacity
    assert whole.minimum_volume_size == own.minimum_volume_size


# What is advertised


OPTIONS: dict[str, tuple[str, ...]] = {
    "1.13": (),
    "1.12, attach": ("--csi-version=1.12", "--enable-attach"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_not_advertised(
    tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]
) -> None:
    """The controller advertises what its nodes do; all the rest is UNIMPLEMENTED."""
    with cluster(tmp_path_factory.mktemp("caps"), "a", options=options) as running:
        controller, node = running.controller, running.nodes["a"]
        has = rpc_types(controller.controller)
        assert has == rpc_types(node.controller)
        assert plugin(controller) == plugin(node)
        found = answers(controller.controller, "Controller")
        assert found == answers(node.controller, "Controller")
        for name, flag in NEEDS.items():
            assert (found[name] is UNIMPLEMENTED) == (flag not in has), name
        assert answers(controller.metadata, "SnapshotMetadata") == answers(
            node.metadata, "SnapshotMetadata"
        )
        assert set(answers(controller.identity, "Identity").values()) == {grpc.StatusCode.OK}
        assert set(answers(controller.node, "Node").values()) == {UNIMPLEMENTED}
        info = controller.identity.GetPluginInfo(csi.GetPluginInfoRequest())
        assert info.name == node.identity.GetPluginInfo(csi.GetPluginInfoRequest()).name


def test_attach(attaching: Cluster) -> None:
    """A volume is attached and detached on its own node, and to no other."""
    controller = attaching.controller
    volume_id = create(
        controller, "attached", accessibility_requirements=requirement(preferred=("b",))
    )
    asked = csi.ControllerPublishVolumeRequest(
        volume_id=volume_id,
        node_id="b",
        volume_capability=request("").volume_capabilities[0],
    )
    controller.controller.ControllerPublishVolume(asked)

    def attached_to() -> list[str]:
        entries = controller.controller.ListVolumes(csi.ListVolumesRequest()).entries
        (entry,) = [item for item in entries if item.volume.volume_id == volume_id]
        return list(entry.status.published_node_ids)

    assert attached_to() == ["b"]
    asked.node_id = "a"
    answer = ending(lambda: controller.controller.ControllerPublishVolume(asked))
    assert answer == ending(lambda: attaching.nodes["b"].controller.ControllerPublishVolume(asked))
    assert answer[0] is not grpc.StatusCode.OK
    controller.controller.ControllerUnpublishVolume(
        csi.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id="b")
    )
    assert attached_to() == []
    controller.delete(volume_id)


def size_of(device: Path) -> int:
    with device.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def test_growth_and_modification(filesystem: FilesystemFactory, tmp_path: Path) -> None:
    """A volume in use grows, and is modified, through the controller."""
    pools = [filesystem("xfs", 512 * MIB) for _ in range(2)]
    with cluster(tmp_path, "a", "b", pools=pools) as running:
        controller, node = running.controller, running.nodes["b"]
        volume_id = create(
            controller,
            "v",
            parameters={},
            volume_capabilities=[block_capability()],
            accessibility_requirements=requirement(preferred=("b",)),
        )
        with node.published(volume_id, tmp_path, block_capability()) as target:
            assert size_of(target) == 4 * MIB
            grown = controller.expand(volume_id, 64 * MIB)
            assert grown.capacity_bytes == 64 * MIB
            if grown.node_expansion_required:
                node.node_expand(volume_id, target, 64 * MIB)
            assert size_of(target) == 64 * MIB
            controller.modify(volume_id, onDelete="retain")
            with refused(grpc.StatusCode.INVALID_ARGUMENT):
                controller.modify(volume_id, onDelete="sometimes")
        controller.delete(volume_id)
        node.reaped()
        (kept,) = (pools[1] / "trash").iterdir()
        assert ".kept." in kept.name
