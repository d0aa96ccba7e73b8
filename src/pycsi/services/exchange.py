"""The Exchange service: what a node sends to others, and receives from them, by the controller."""

import threading
from collections.abc import Callable, Iterator

import grpc

from pycsi.model import ids, parameters
from pycsi.model.errors import CsiError, InvalidArgument, Unavailable
from pycsi.model.ids import NodeInfo
from pycsi.model.request import Source, SourceKind
from pycsi.model.trace import about
from pycsi.proto import exchange_pb2 as exchange
from pycsi.proto import exchange_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.exporting import Exporter
from pycsi.volumes.importing import Importer
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.provisioning import Provisioner

_ANSWER = exchange.ReceiveResponse


class Exchange(exchange_pb2_grpc.ExchangeServicer):
    """Send snapshots and volumes as exports, and make volumes of such exports."""

    def __init__(
        self,
        capabilities: DriverCapabilities,
        pools: Pools,
        locks: Locks,
        node: NodeInfo,
        stopping: threading.Event,
    ) -> None:
        self._capabilities = capabilities
        self._locks = locks
        self._node = node
        self._stopping = stopping
        self._exporter = Exporter(pools, locks)
        self._importer = Importer(pools, node)
        self._provisioner = Provisioner(pools, locks, node)

    def Send(
        self, request: exchange.SendRequest, context: grpc.ServicerContext
    ) -> Iterator[exchange.SendResponse]:
        if bool(request.snapshot_id) is bool(request.source_volume_id):
            raise InvalidArgument("set snapshot_id or source_volume_id")
        kind = SourceKind.SNAPSHOT if request.snapshot_id else SourceKind.VOLUME
        source = Source(kind=kind, id=request.snapshot_id or request.source_volume_id)
        for data in self._exporter.exported(source, self._check):
            yield exchange.SendResponse(data=data)

    def Receive(
        self, request_iterator: Iterator[exchange.ReceiveRequest], context: grpc.ServicerContext
    ) -> Iterator[exchange.ReceiveResponse]:
        first = next(request_iterator)
        read.require(first, "begin")
        wanted = read.create_volume(first.begin, self._capabilities.access_modes)
        if not wanted.request.source:
            raise InvalidArgument("volume_content_source is missing")
        if not parameters.restores_anywhere(wanted.request.parameters):
            raise InvalidArgument(
                f"volume_content_source: it is on another node; with the parameter "
                f'{parameters.RESTORE_ANYWHERE}: "true" its data may be copied from there'
            )
        volume_id = ids.object_id(wanted.name, self._node.id)
        if first.volume_id != volume_id:
            raise InvalidArgument(f"volume_id: that of this volume is {volume_id}")
        about(volume_id=volume_id)
        with self._locks.hold(volume_id):
            volume = self._provisioner.existing(volume_id, wanted)
            if volume is None:
                yield _ANSWER(ready=_ANSWER.Ready())
                try:
                    arriving = _arriving(request_iterator)
                    volume = self._importer.receive(volume_id, wanted, arriving, self._check)
                except (CsiError, OSError):
                    yield _ANSWER(refused=_ANSWER.Refused())
                    for _ in request_iterator:
                        pass
                    raise
        yield _ANSWER(volume=reply.volume(volume, self._node))  # without the lock, as in Import

    def _check(self) -> None:
        """Raise `Unavailable` if the driver has to stop."""
        if self._stopping.is_set():
            raise Unavailable("the driver is stopping; try again when it runs")


def _arriving(requests: Iterator[exchange.ReceiveRequest]) -> Callable[[int], bytes]:
    """Return what reads the data in the messages of a stream, as a `transfer.reader.Source`."""
    here = memoryview(b"")

    def read_some(count: int) -> bytes:
        nonlocal here
        while not here:
            message = next(requests, None)
            if message is None:
                return b""
            if message.WhichOneof("step") != "data":
                raise InvalidArgument("a stream has something else where data is next")
            here = memoryview(message.data)
        part, here = here[:count], here[count:]
        return bytes(part)

    return read_some
