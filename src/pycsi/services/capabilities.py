"""The capabilities of each mode and CSI version, and the RPCs that therefore are UNIMPLEMENTED.

The modes differ in the access modes only: a volume can be used from many nodes if there is but one.
What the controller of many nodes forwards, each of the nodes can do.

CSI 1.13 has four health RPCs in place of 1.12's VolumeCondition, and the topology of snapshots. It
has reserved the numbers that it took away, so in version 1.13 those of both are advertised, and
callers of both versions see the health of volumes. A caller that fails on a number that it does not
know needs version 1.12.
"""

import dataclasses

from pycsi.model.config import CsiVersion, DriverMode
from pycsi.model.request import Mode
from pycsi.proto import csi_pb2 as csi

_PLUGIN = csi.PluginCapability.Service
_EXPANSION = csi.PluginCapability.VolumeExpansion
_CONTROLLER = csi.ControllerServiceCapability.RPC
_NODE = csi.NodeServiceCapability.RPC

_RPCS = {
    _CONTROLLER.CREATE_DELETE_VOLUME: {"CreateVolume", "DeleteVolume"},
    _CONTROLLER.PUBLISH_UNPUBLISH_VOLUME: {"ControllerPublishVolume", "ControllerUnpublishVolume"},
    _CONTROLLER.LIST_VOLUMES: {"ListVolumes"},
    _CONTROLLER.GET_CAPACITY: {"GetCapacity"},
    _CONTROLLER.CREATE_DELETE_SNAPSHOT: {"CreateSnapshot", "DeleteSnapshot"},
    _CONTROLLER.LIST_SNAPSHOTS: {"ListSnapshots"},
    _CONTROLLER.GET_SNAPSHOT: {"GetSnapshot"},
    _CONTROLLER.EXPAND_VOLUME: {"ControllerExpandVolume"},
    _CONTROLLER.GET_VOLUME: {"ControllerGetVolume"},
    _CONTROLLER.MODIFY_VOLUME: {"ControllerModifyVolume"},
    _CONTROLLER.GET_VOLUME_HEALTH: {"ControllerGetVolumeHealth"},
    _CONTROLLER.LIST_VOLUME_HEALTH: {"ControllerListVolumeHealth"},
}
"""The controller RPCs that each capability switches on. All other RPCs are always on."""

_NODE_RPCS = {
    _NODE.GET_VOLUME_HEALTH: "NodeGetVolumeHealth",
    _NODE.GET_STORAGE_HEALTH: "NodeGetStorageHealth",
}
"""The node RPC that each capability switches on. All others are on wherever the node is served."""

_SERVICES = {
    _PLUGIN.GROUP_CONTROLLER_SERVICE: "GroupController",
    _PLUGIN.SNAPSHOT_METADATA_SERVICE: "SnapshotMetadata",
}
"""The services that each plugin capability switches on."""


_OF_ONE_NODE = frozenset(mode for mode in Mode if not mode.many_nodes)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DriverCapabilities:
    """The advertised capabilities, as values of the CSI enums, and the supported access modes."""

    plugin: tuple[csi.PluginCapability.Service.Type, ...]
    expansion: tuple[csi.PluginCapability.VolumeExpansion.Type, ...]
    controller: tuple[csi.ControllerServiceCapability.RPC.Type, ...]
    node: tuple[csi.NodeServiceCapability.RPC.Type, ...]
    access_modes: frozenset[Mode] = _OF_ONE_NODE

    @property
    def snapshot_topology(self) -> bool:
        """Whether snapshots tell from where they are usable, and requests may ask for that."""
        return _PLUGIN.SNAPSHOT_ACCESSIBILITY_CONSTRAINTS in self.plugin

    @property
    def unimplemented(self) -> frozenset[str]:
        """The names of the RPCs that answer UNIMPLEMENTED."""
        off = {rpc for flag, rpcs in _RPCS.items() if flag not in self.controller for rpc in rpcs}
        off |= {rpc for flag, rpc in _NODE_RPCS.items() if flag not in self.node}
        for flag, name in _SERVICES.items():
            if flag not in self.plugin:
                off |= {rpc.name for rpc in csi.DESCRIPTOR.services_by_name[name].methods}
        return frozenset(off)


def driver_capabilities(
    mode: DriverMode, *, attach: bool, version: CsiVersion
) -> DriverCapabilities:
    """Return the capabilities of `mode` in a version of CSI.

    `attach` adds ControllerPublishVolume and ControllerUnpublishVolume.
    """
    controller = [
        _CONTROLLER.CREATE_DELETE_VOLUME,
        _CONTROLLER.LIST_VOLUMES,
        _CONTROLLER.GET_CAPACITY,
        _CONTROLLER.GET_VOLUME,
        _CONTROLLER.VOLUME_CONDITION,
        _CONTROLLER.CREATE_DELETE_SNAPSHOT,
        _CONTROLLER.LIST_SNAPSHOTS,
        _CONTROLLER.GET_SNAPSHOT,
        _CONTROLLER.CLONE_VOLUME,
        _CONTROLLER.SINGLE_NODE_MULTI_WRITER,
        _CONTROLLER.EXPAND_VOLUME,
        _CONTROLLER.MODIFY_VOLUME,
    ]
    plugin = [
        _PLUGIN.CONTROLLER_SERVICE,
        _PLUGIN.VOLUME_ACCESSIBILITY_CONSTRAINTS,
        _PLUGIN.SNAPSHOT_METADATA_SERVICE,
        _PLUGIN.GROUP_CONTROLLER_SERVICE,
    ]
    node = [
        _NODE.STAGE_UNSTAGE_VOLUME,
        _NODE.GET_VOLUME_STATS,
        _NODE.VOLUME_CONDITION,
        _NODE.EXPAND_VOLUME,
        _NODE.SINGLE_NODE_MULTI_WRITER,
    ]
    if attach:
        controller += [
            _CONTROLLER.PUBLISH_UNPUBLISH_VOLUME,
            _CONTROLLER.PUBLISH_READONLY,
            _CONTROLLER.LIST_VOLUMES_PUBLISHED_NODES,
        ]
    if version is CsiVersion.V1_13:
        plugin.append(_PLUGIN.SNAPSHOT_ACCESSIBILITY_CONSTRAINTS)
        controller += [_CONTROLLER.GET_VOLUME_HEALTH, _CONTROLLER.LIST_VOLUME_HEALTH]
        node += [_NODE.GET_VOLUME_HEALTH, _NODE.GET_STORAGE_HEALTH]
    return DriverCapabilities(
        plugin=tuple(plugin),
        expansion=(_EXPANSION.ONLINE,),
        controller=tuple(controller),
        node=tuple(node),
        access_modes=frozenset(Mode) if mode is DriverMode.SINGLE_NODE else _OF_ONE_NODE,
    )
