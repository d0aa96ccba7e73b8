"""What each mode advertises, and that all the rest answers UNIMPLEMENTED."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from driver import Driver
from rpc.conftest import OK, code_of, rpc_types

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc

UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED

NEEDS = {
    "CreateVolume": "CREATE_DELETE_VOLUME",
    "DeleteVolume": "CREATE_DELETE_VOLUME",
    "ControllerPublishVolume": "PUBLISH_UNPUBLISH_VOLUME",
    "ControllerUnpublishVolume": "PUBLISH_UNPUBLISH_VOLUME",
    "ListVolumes": "LIST_VOLUMES",
    "GetCapacity": "GET_CAPACITY",
    "CreateSnapshot": "CREATE_DELETE_SNAPSHOT",
    "DeleteSnapshot": "CREATE_DELETE_SNAPSHOT",
    "ListSnapshots": "LIST_SNAPSHOTS",
    "GetSnapshot": "GET_SNAPSHOT",
    "ControllerExpandVolume": "EXPAND_VOLUME",
    "ControllerGetVolume": "GET_VOLUME",
    "ControllerModifyVolume": "MODIFY_VOLUME",
    "ControllerGetVolumeHealth": "GET_VOLUME_HEALTH",
    "ControllerListVolumeHealth": "LIST_VOLUME_HEALTH",
}
NODE_NEEDS = {
    "NodeGetVolumeHealth": "GET_VOLUME_HEALTH",
    "NodeGetStorageHealth": "GET_STORAGE_HEALTH",
}
HEALTH = {"VOLUME_CONDITION", "GET_VOLUME_HEALTH", "LIST_VOLUME_HEALTH"}
NODE_HEALTH = {"VOLUME_CONDITION", "GET_VOLUME_HEALTH", "GET_STORAGE_HEALTH"}
OPTIONS: dict[str, tuple[str, ...]] = {
    "single-node": (),
    "single-node with attach": ("--enable-attach",),
    "node": ("--mode=node",),
    "single-node, CSI 1.12": ("--csi-version=1.12", "--enable-attach"),
    "node, CSI 1.12": ("--csi-version=1.12", "--mode=node"),
}


def methods(service: str) -> list[Any]:
    return list(csi.DESCRIPTOR.services_by_name[service].methods)


def node_types(driver: Driver) -> set[str]:
    answer = driver.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest())
    kind = csi.NodeServiceCapability.RPC.Type
    return {kind.Name(item.rpc.type) for item in answer.capabilities}


def plugin(driver: Driver) -> tuple[set[str], set[str]]:
    answer = driver.identity.GetPluginCapabilities(csi.GetPluginCapabilitiesRequest())
    service, growth = csi.PluginCapability.Service.Type, csi.PluginCapability.VolumeExpansion.Type
    return (
        {service.Name(i.service.type) for i in answer.capabilities if i.HasField("service")},
        {
            growth.Name(i.volume_expansion.type)
            for i in answer.capabilities
            if i.HasField("volume_expansion")
        },
    )


def answers(stub: Any, service: str) -> dict[str, grpc.StatusCode]:
    """Call every method that takes one request with an empty one."""
    found = {}
    for method in methods(service):
        message = getattr(csi, method.input_type.name)()
        call = getattr(stub, method.name)
        if method.server_streaming:
            found[method.name] = code_of(lambda: list(call(message)))  # noqa: B023
        else:
            found[method.name] = code_of(lambda: call(message))  # noqa: B023
    return found


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_not_advertised(
    serve: Callable[..., Driver], pool: Path, options: tuple[str, ...]
) -> None:
    """An RPC is UNIMPLEMENTED if and only if its capability is not advertised."""
    driver = serve(pool, options=options)
    has = rpc_types(driver.controller)
    services, expansions = plugin(driver)
    found = answers(driver.controller, "Controller")
    for name, flag in NEEDS.items():
        assert (found[name] is UNIMPLEMENTED) == (flag not in has), name
    found = answers(driver.node, "Node")
    for name, flag in NODE_NEEDS.items():
        assert (found[name] is UNIMPLEMENTED) == (flag not in node_types(driver)), name
    for service, flag in (
        ("GroupController", "GROUP_CONTROLLER_SERVICE"),
        ("SnapshotMetadata", "SNAPSHOT_METADATA_SERVICE"),
    ):
        stub = getattr(csi_pb2_grpc, f"{service}Stub")(driver.channel)
        if flag not in services:
            assert set(answers(stub, service).values()) == {UNIMPLEMENTED}
    assert set(answers(driver.identity, "Identity").values()) == {OK}
    if expansions:
        assert "EXPAND_VOLUME" in has | node_types(driver)
    if "LIST_VOLUME_HEALTH" in has:
        assert "GET_VOLUME_HEALTH" in has
    if "LIST_VOLUMES_PUBLISHED_NODES" in has:
        assert "PUBLISH_UNPUBLISH_VOLUME" in has
    if "PUBLISH_READONLY" in has:
        assert "PUBLISH_UNPUBLISH_VOLUME" in has


def test_single_node(shared: Driver) -> None:
    """The default mode advertises everything but attaching."""
    has = rpc_types(shared.controller)
    assert {
        "CREATE_DELETE_VOLUME",
        "LIST_VOLUMES",
        "GET_CAPACITY",
        "GET_VOLUME",
        "EXPAND_VOLUME",
        "SINGLE_NODE_MULTI_WRITER",
        *HEALTH,
    } <= has
    assert "PUBLISH_UNPUBLISH_VOLUME" not in has
    assert plugin(shared)[0] >= {
        "CONTROLLER_SERVICE",
        "VOLUME_ACCESSIBILITY_CONSTRAINTS",
        "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS",
    }
    assert plugin(shared)[1] == {"ONLINE"}
    assert {
        "STAGE_UNSTAGE_VOLUME",
        "GET_VOLUME_STATS",
        "EXPAND_VOLUME",
        "SINGLE_NODE_MULTI_WRITER",
        *NODE_HEALTH,
    } <= node_types(shared)


def test_node(serve: Callable[..., Driver], pool: Path, shared: Driver) -> None:
    """One node of many advertises what a single one does: its controller forwards all that."""
    driver = serve(pool, options=("--mode=node",))
    assert rpc_types(driver.controller) == rpc_types(shared.controller)
    assert node_types(driver) == node_types(shared)
    assert plugin(driver) == plugin(shared)
    driver.delete(driver.create("a", quota="none").volume_id)
