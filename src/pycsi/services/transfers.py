"""The Transfers service: volumes whose data a command of this machine fills in."""

import contextlib
import threading
from collections.abc import Iterator

import grpc

from pycsi.linux import mkfs
from pycsi.model import ids
from pycsi.model.errors import InvalidArgument, Unavailable
from pycsi.model.ids import NodeInfo
from pycsi.model.records import VolumeType
from pycsi.model.size import BLOCK, LARGEST
from pycsi.proto import transfers_pb2 as transfers
from pycsi.proto import transfers_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.services.capabilities import DriverCapabilities
from pycsi.services.steps import Steps
from pycsi.volumes.importing import Content, Importer
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools

_ANSWER = transfers.ImportResponse

_MOMENT = 0.5
"""Seconds after which an import looks again whether the driver has to stop."""


class Transfers(transfers_pb2_grpc.TransfersServicer):
    """Make volumes that a command fills."""

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

    def Import(
        self, request_iterator: Iterator[transfers.ImportRequest], context: grpc.ServicerContext
    ) -> Iterator[transfers.ImportResponse]:
        steps = Steps(request_iterator)
        begin = steps.take("begin").begin
        read.require(begin, "volume", "content")
        wanted = read.create_volume(begin.volume, self._capabilities.access_modes)
        if wanted.request.source:
            raise InvalidArgument("volume_content_source: its content is filled in; leave it out")
        content = _content(begin.content)
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


def _content(message: transfers.Content) -> Content:
    size = message.capacity_bytes
    if not 0 < size <= LARGEST or size % BLOCK:
        raise InvalidArgument(f"content: {size} bytes is no size of a volume")
    if message.fs_type not in {"", *mkfs.KINDS} or (message.directory and message.fs_type):
        raise InvalidArgument(f"content: fs_type cannot be {message.fs_type!r}")
    return Content(
        type=VolumeType.DIRECTORY if message.directory else VolumeType.IMAGE,
        filesystem=message.fs_type or None,
        capacity=size,
        thick=message.thick,
        mkfs_options=tuple(message.mkfs_options),
    )
