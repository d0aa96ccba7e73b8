"""The Identity service."""

import threading

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from pycsi import __version__
from pycsi.linux import mkfs
from pycsi.model.errors import FailedPrecondition
from pycsi.model.parameters import DEFAULT_FILESYSTEM
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.pools import Pools

_READY = csi.ProbeResponse(ready=BoolValue(value=True))


class Identity(csi_pb2_grpc.IdentityServicer):
    """Report the driver's name, capabilities and readiness.

    `ready` is set once the pools have been recovered; until then Probe answers not ready.
    """

    def __init__(
        self, name: str, capabilities: DriverCapabilities, pools: Pools, ready: threading.Event
    ) -> None:
        self._name = name
        self._capabilities = capabilities
        self._pools = pools
        self._ready = ready

    def GetPluginInfo(
        self, request: csi.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=self._name, vendor_version=__version__)

    def GetPluginCapabilities(
        self, request: csi.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.GetPluginCapabilitiesResponse:
        capability = csi.PluginCapability
        services = [capability.Service(type=item) for item in self._capabilities.plugin]
        expansions = [
            capability.VolumeExpansion(type=item) for item in self._capabilities.expansion
        ]
        return csi.GetPluginCapabilitiesResponse(
            capabilities=[
                *(capability(service=item) for item in services),
                *(capability(volume_expansion=item) for item in expansions),
            ]
        )

    def Probe(self, request: csi.ProbeRequest, context: grpc.ServicerContext) -> csi.ProbeResponse:
        if not self._ready.is_set():
            return csi.ProbeResponse(ready=BoolValue(value=False))
        self._check_programs()
        return _READY

    def _check_programs(self) -> None:
        if not self._capabilities.serves_node:
            return
        counts = [
            catalog.filesystems
            for pool in self._pools
            for catalog in (pool.volumes, pool.snapshots)
        ]
        used = {kind for counted in counts for kind, number in counted.items() if number}
        for kind in used | {DEFAULT_FILESYSTEM}:
            if missing := mkfs.missing_programs(kind):
                raise FailedPrecondition(
                    f"{', '.join(missing)}: not installed, and {kind} images need it; install it"
                )
