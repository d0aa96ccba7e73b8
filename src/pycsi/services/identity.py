"""The Identity service."""

import os
import threading

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from pycsi.linux import mkfs
from pycsi.model.errors import FailedPrecondition, Unavailable
from pycsi.model.ids import NodeInfo
from pycsi.model.parameters import DEFAULT_FILESYSTEM
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import reply
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.pools import Pools

INSTANCE = "pycsi-instance"
"""The key of the manifest with a random value, which another process does not have."""

_READY = csi.ProbeResponse(ready=BoolValue(value=True))


class Identity(csi_pb2_grpc.IdentityServicer):
    """Report the driver's name, capabilities and readiness.

    `ready` is set once the pools have been recovered; until then Probe answers not ready. The
    manifest tells a controller which node this is, and which process.
    """

    def __init__(
        self,
        capabilities: DriverCapabilities,
        pools: Pools,
        node: NodeInfo,
        ready: threading.Event,
    ) -> None:
        self._name = node.driver_name
        self._manifest = {**node.segments, INSTANCE: os.urandom(8).hex()}
        self._capabilities = capabilities
        self._pools = pools
        self._ready = ready

    def GetPluginInfo(
        self, request: csi.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> csi.GetPluginInfoResponse:
        return reply.plugin_info(self._name, self._manifest)

    def GetPluginCapabilities(
        self, request: csi.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.GetPluginCapabilitiesResponse:
        return reply.plugin_capabilities(self._capabilities)

    def Probe(self, request: csi.ProbeRequest, context: grpc.ServicerContext) -> csi.ProbeResponse:
        if not self._ready.is_set():
            return csi.ProbeResponse(ready=BoolValue(value=False))
        self._check_programs()
        return _READY

    def check(self) -> None:
        """Raise `Unavailable` before the driver is ready, `FailedPrecondition` if it cannot be."""
        if not self._ready.is_set():
            raise Unavailable("the driver is starting")
        self._check_programs()

    def _check_programs(self) -> None:
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
