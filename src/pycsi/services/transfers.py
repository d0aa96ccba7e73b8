"""The Transfers service: volumes that a command of this machine fills in, or moves."""

import contextlib
import contextvars
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from pycsi.model import ids
from pycsi.model.errors import Cancelled, FailedPrecondition, InvalidArgument, Unavailable
from pycsi.model.ids import NodeInfo
from pycsi.model.trace import about
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import transfers_pb2 as transfers
from pycsi.proto import transfers_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.services.steps import Steps
from pycsi.volumes.importing import Importer
from pycsi.volumes.locks import Locks
from pycsi.volumes.moving import Mover, Watch
from pycsi.volumes.pools import Pools

_ANSWER = transfers.ImportResponse

_MOMENT = 0.5
"""Seconds after which an import looks again whether the driver has to stop."""


class Transfers(transfers_pb2_grpc.TransfersServicer):
    """Make volumes that a command fills, and move volumes between pools."""

    def __init__(
        self,
        capabilities: DriverCapabilities,
        pools: Pools,
        locks: Locks,
        node: NodeInfo,
        stopping: threading.Event,
    ) -> None:
        self._stopping = stopping
        self._capabilities = capabilities
        self._locks = locks
        self._node = node
        self._importer = Importer(pools, node)
        attaches = csi.ControllerServiceCapability.RPC.PUBLISH_UNPUBLISH_VOLUME
        self._mover = Mover(pools, locks, attaches=attaches in capabilities.controller)

    def Import(
        self, request_iterator: Iterator[transfers.ImportRequest], context: grpc.ServicerContext
    ) -> Iterator[transfers.ImportResponse]:
        steps = Steps(request_iterator)
        begin = steps.take("begin").begin
        read.require(begin, "volume", "content")
        wanted = read.create_volume(begin.volume, self._capabilities.access_modes)
        if wanted.request.source:
            raise InvalidArgument("volume_content_source: its content is filled in; leave it out")
        content = read.content(begin.content)
        volume_id = ids.object_id(wanted.name, self._node.id)
        with self._locks.hold(volume_id):
            with self._importer.filling(volume_id, wanted, content) as filling:
                ready = _ANSWER.Ready(
                    pool_uuid=filling.pool.uuid,
                    pool_path=str(filling.pool.config.path),
                    data_path=str(filling.data),
                    capacity_bytes=filling.backend.volume.capacity,
                )
                yield _ANSWER(ready=ready)
                self._await_commit(steps)
                volume = self._importer.commit(filling)
            last = _ANSWER.Committed(volume=reply.volume(volume, self._node))
        yield _ANSWER(committed=last)  # without the lock: whoever reads it may go on at once

    def _await_commit(self, steps: Steps[transfers.ImportRequest]) -> None:
        """Wait until the data is complete; `Unavailable` if the driver has to stop before."""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                steps.take("commit", _MOMENT)
                return
        raise Unavailable("the driver is stopping; import it again when it runs")

    def Move(
        self, request: transfers.MoveRequest, context: grpc.ServicerContext
    ) -> Iterator[transfers.MoveResponse]:
        _refuse_node(request.to_node)
        read.require(request, "volume_id", "pool")
        about(volume_id=request.volume_id)
        act = self._mover.prepare if request.prepare else self._mover.move
        steps: queue.SimpleQueue[str] = queue.SimpleQueue()
        ended = threading.Event()

        def progress() -> None:
            if ended.is_set() or not context.is_active():
                raise Cancelled("the caller of a move has hung up; repeat it to go on")
            if self._stopping.is_set():
                raise Unavailable("the driver is stopping; repeat the move when it runs")

        def work() -> str | None:
            return act(request.volume_id, request.pool, Watch(progress, steps.put))

        with ThreadPoolExecutor(1, "move") as worker:
            moving = worker.submit(contextvars.copy_context().run, work)
            moving.add_done_callback(lambda _: steps.put(""))
            try:
                while step := steps.get():
                    yield transfers.MoveResponse(step=step)
            finally:
                ended.set()  # the caller may have hung up
        last = transfers.MoveResponse.Ended(from_pool=moving.result() or "")
        yield transfers.MoveResponse(ended=last)

    def CancelMove(
        self, request: transfers.CancelMoveRequest, context: grpc.ServicerContext
    ) -> transfers.CancelMoveResponse:
        _refuse_node(request.to_node)
        read.require(request, "volume_id")
        about(volume_id=request.volume_id)
        self._mover.cancel(request.volume_id)
        return transfers.CancelMoveResponse()


def _refuse_node(name: str) -> None:
    """Raise `FailedPrecondition` if a move to another node is asked for."""
    if name:
        raise FailedPrecondition(
            "volumes are moved to another node by the controller; give --endpoint with its socket"
        )
