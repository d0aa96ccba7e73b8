"""The Exchange service: what a node sends to others, and receives from them, by the controller."""

import itertools
import threading
from collections.abc import Callable, Iterator

import grpc

from pycsi.model import ids, parameters
from pycsi.model.errors import CsiError, InvalidArgument, Unavailable
from pycsi.model.ids import NodeInfo
from pycsi.model.request import Source, SourceKind, VolumeRequest
from pycsi.model.trace import about
from pycsi.pool.moves import Move
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import exchange_pb2 as exchange
from pycsi.proto import exchange_pb2_grpc
from pycsi.proto import transfers_pb2 as transfers
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.volumes.departing import Departures
from pycsi.volumes.exporting import Exporter
from pycsi.volumes.importing import Importer
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.provisioning import Provisioner
from pycsi.volumes.receiving import Coming, Receiver

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
        self._pools = pools
        self._locks = locks
        self._node = node
        self._stopping = stopping
        self._exporter = Exporter(pools, locks)
        self._receiver = Receiver(pools, node)
        attaches = csi.ControllerServiceCapability.RPC.PUBLISH_UNPUBLISH_VOLUME
        self._departures = Departures(
            pools, locks, node, attaches=attaches in capabilities.controller
        )
        self._importer = Importer(pools, node)
        self._provisioner = Provisioner(pools, locks, node)

    def Send(
        self, request: exchange.SendRequest, context: grpc.ServicerContext
    ) -> Iterator[exchange.SendResponse]:
        if bool(request.snapshot_id) is bool(request.source_volume_id):
            raise InvalidArgument("set snapshot_id or source_volume_id")
        if request.HasField("departing"):
            yield from self._sent(request)
            return
        kind = SourceKind.SNAPSHOT if request.snapshot_id else SourceKind.VOLUME
        source = Source(kind=kind, id=request.snapshot_id or request.source_volume_id)
        for data in self._exporter.exported(source, self._check):
            yield exchange.SendResponse(data=data)

    def _sent(self, request: exchange.SendRequest) -> Iterator[exchange.SendResponse]:
        """Send a volume that moves to another node."""
        read.require(request, "source_volume_id")
        read.require(request.departing, "to_node")
        self._need_own(request.source_volume_id)
        for data in self._departures.sent(
            request.source_volume_id,
            request.departing.to_node,
            point=request.departing.point,
            since=request.departing.since,
            progress=self._check,
        ):
            yield exchange.SendResponse(data=data)

    def Receive(
        self, request_iterator: Iterator[exchange.ReceiveRequest], context: grpc.ServicerContext
    ) -> Iterator[exchange.ReceiveResponse]:
        first = next(request_iterator)
        if first.HasField("arrival"):
            yield from self._received(first, request_iterator)
            return
        read.require(first, "begin")
        wanted = read.create_volume(first.begin, self._capabilities.access_modes)
        if not wanted.request.source:
            raise InvalidArgument("volume_content_source is missing")
        if not parameters.restores_anywhere(wanted.request.parameters):
            raise InvalidArgument(
                f"volume_content_source: it is on another node; with the parameter "
                f'{parameters.RESTORE_ANYWHERE}: "true" its data may be copied from there'
            )
        volume_id = self._own_id(first, wanted)
        with self._locks.hold(volume_id):
            volume = self._provisioner.existing(volume_id, wanted)
            if volume is None:
                yield _ANSWER(ready=_ANSWER.Ready())
                try:
                    arriving = _arriving(request_iterator)
                    volume = self._importer.receive(volume_id, wanted, arriving, self._check)
                except (CsiError, OSError):
                    yield _ANSWER(refused=_ANSWER.Refused())
                    _drain(request_iterator)
                    raise
        yield _ANSWER(volume=reply.volume(volume, self._node))  # without the lock, as in Import

    def _own_id(self, first: exchange.ReceiveRequest, wanted: VolumeRequest) -> str:
        """Return the id of the volume that is to be made; `InvalidArgument` if it is another."""
        volume_id = ids.object_id(wanted.name, self._node.id)
        if first.volume_id != volume_id:
            raise InvalidArgument(f"volume_id: that of this volume is {volume_id}")
        about(volume_id=volume_id)
        return volume_id

    def _received(
        self, first: exchange.ReceiveRequest, requests: Iterator[exchange.ReceiveRequest]
    ) -> Iterator[exchange.ReceiveResponse]:
        """Receive a volume that moves here."""
        read.require(first.arrival, "volume", "content", "original")
        original = first.arrival.original
        read.require(original, "volume_id", "pool_uuid")
        wanted = read.create_volume(first.arrival.volume, self._capabilities.access_modes)
        coming = Coming(
            id=self._own_id(first, wanted),
            wanted=wanted,
            content=read.content(first.arrival.content),
            move=Move(
                source=original.pool_uuid, created=original.created, origin=original.volume_id
            ),
        )
        with self._locks.hold(coming.id), self._receiver.receiving(coming) as reception:
            move = reception.move
            ready = _ANSWER.Ready(point=move.point, complete=move.complete, toward=move.toward)
            yield _ANSWER(ready=ready)
            begin = next(requests, None)
            if begin is None:  # all has arrived before
                return
            try:
                reception.take(_arriving(itertools.chain([begin], requests)), self._check)
            except (CsiError, OSError):
                yield _ANSWER(refused=_ANSWER.Refused())
                _drain(requests)
                raise
        yield _ANSWER(arrived=_ANSWER.Arrived())  # without the lock, as in Import

    # Moves

    def Depart(
        self, request: exchange.DepartRequest, context: grpc.ServicerContext
    ) -> exchange.DepartResponse:
        read.require(request, "volume_id", "to_node")
        self._need_own(request.volume_id)
        act = self._departures.depart if request.mark else self._departures.look
        found = act(request.volume_id, request.to_node)
        return exchange.DepartResponse(
            description=reply.description(found.volume, self._node),
            original=exchange.Original(
                volume_id=found.volume.id,
                pool_uuid=found.volume.pool_uuid,
                created=found.volume.created,
            ),
            in_use=found.in_use or "",
            point=found.point,
            left=found.left,
        )

    def Leave(
        self, request: exchange.LeaveRequest, context: grpc.ServicerContext
    ) -> exchange.LeaveResponse:
        read.require(request, "volume_id", "point")
        self._need_own(request.volume_id)
        self._departures.leave(request.volume_id, request.point)
        return exchange.LeaveResponse()

    def Discard(
        self, request: exchange.DiscardRequest, context: grpc.ServicerContext
    ) -> exchange.DiscardResponse:
        read.require(request, "volume_id")
        self._need_own(request.volume_id)
        self._departures.discard(request.volume_id)
        return exchange.DiscardResponse()

    def Stay(
        self, request: exchange.StayRequest, context: grpc.ServicerContext
    ) -> exchange.StayResponse:
        read.require(request, "volume_id")
        self._need_own(request.volume_id)
        self._departures.stay(request.volume_id)
        return exchange.StayResponse()

    def Settle(
        self, request: exchange.SettleRequest, context: grpc.ServicerContext
    ) -> transfers.Description:
        read.require(request, "volume_id", "original_id")
        self._need_own(request.volume_id)
        with self._locks.hold(request.volume_id):
            settled = self._receiver.settle(request.volume_id, request.original_id, request.point)
        return reply.description(settled, self._node)

    def Abandon(
        self, request: exchange.AbandonRequest, context: grpc.ServicerContext
    ) -> exchange.AbandonResponse:
        read.require(request, "volume_id")
        self._need_own(request.volume_id)
        with self._locks.hold(request.volume_id):
            point = self._receiver.abandon(request.volume_id, request.point)
        return exchange.AbandonResponse(point=point)

    def _need_own(self, volume_id: str) -> None:
        """Raise `InvalidArgument` or `FailedPrecondition` if it is no id of a volume here."""
        if ids.node_of(volume_id) is None:
            raise InvalidArgument(f"volume_id: {volume_id!r} is no id of a volume")
        self._pools.refuse_elsewhere("volume", volume_id)
        about(volume_id=volume_id)

    def _check(self) -> None:
        """Raise `Unavailable` if the driver has to stop."""
        if self._stopping.is_set():
            raise Unavailable("the driver is stopping; try again when it runs")


def _drain(requests: Iterator[exchange.ReceiveRequest]) -> None:
    """Read a stream of requests to its end."""
    for _ in requests:
        pass


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
