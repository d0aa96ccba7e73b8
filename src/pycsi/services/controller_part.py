"""What the parts of the Controller service have in common."""

from pycsi.model.ids import NodeInfo
from pycsi.proto import csi_pb2_grpc
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools


class ControllerPart(csi_pb2_grpc.ControllerServicer):
    """The base of the classes that each serve some RPCs of the Controller service.

    `Controller` inherits from all of them, because gRPC registers one object for a service.
    """

    def __init__(
        self, capabilities: DriverCapabilities, pools: Pools, locks: Locks, node: NodeInfo
    ) -> None:
        self._capabilities = capabilities
        self._pools = pools
        self._locks = locks
        self._node = node
