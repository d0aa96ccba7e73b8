"""The part of the Controller service that lists volumes, and tells what is wrong with them."""

import grpc

from pycsi.model.errors import Aborted, NotFound
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Volume
from pycsi.pool.pool import Pool
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import reply
from pycsi.services import request as read
from pycsi.volumes.health import Faults, examine, faults_if_examined, faults_of
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools


class ListingController(csi_pb2_grpc.ControllerServicer):
    """List volumes, and tell their health."""

    def __init__(self, pools: Pools, locks: Locks, node: NodeInfo) -> None:
        self._pools = pools
        self._locks = locks
        self._node = node

    def ListVolumes(
        self, request: csi.ListVolumesRequest, context: grpc.ServicerContext
    ) -> reply.Encoded:
        size, after = read.page(request.max_entries, request.starting_token)
        examined = examine(self._pools.located(after), self._locks)
        entries = (
            (volume.id, self._entry(pool, volume, faults)) for pool, volume, faults in examined
        )
        return reply.encoded_page(csi.ListVolumesResponse, entries, size)

    def _entry(self, pool: Pool, volume: Volume, faults: Faults | None) -> bytes:
        # Nearly all volumes are healthy and are listed again and again. With its encoded entry
        # cached, a volume takes a third of the time.
        if faults == ():
            return pool.volumes.derived(volume, self._healthy_entry)
        return self._new_entry(volume, faults)

    def _healthy_entry(self, volume: Volume) -> bytes:
        return self._new_entry(volume, ())

    def _new_entry(self, volume: Volume, faults: Faults | None) -> bytes:
        kind = csi.ListVolumesResponse
        entry = kind.Entry(
            volume=reply.volume(volume, self._node),
            status=kind.VolumeStatus(
                published_node_ids=_attached_to(volume),
                volume_condition=reply.condition(faults),
            ),
        )
        return kind(entries=[entry]).SerializeToString()

    def ControllerGetVolume(
        self, request: csi.ControllerGetVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetVolumeResponse:
        read.require(request, "volume_id")
        pool, volume = self._need(request.volume_id)
        faults = faults_if_examined(pool, volume, self._locks)
        return csi.ControllerGetVolumeResponse(
            volume=reply.volume(volume, self._node),
            status=csi.ControllerGetVolumeResponse.VolumeStatus(
                published_node_ids=_attached_to(volume),
                volume_condition=reply.condition(faults),
            ),
        )

    def _need(self, volume_id: str) -> tuple[Pool, Volume]:
        """Return a volume; while one is being made or deleted, no reply says that it is not there.

        It may be in a moment, and whoever was told would have another node make it, too.
        """
        with self._locks.watch(volume_id) as watch:
            try:
                return self._pools.need(volume_id)
            except NotFound:
                if watch.disturbed:
                    raise Aborted(f"{volume_id} is being created or deleted; try again") from None
                raise

    def ControllerListVolumeHealth(
        self, request: csi.ControllerListVolumeHealthRequest, context: grpc.ServicerContext
    ) -> reply.Encoded:
        size, after = read.page(request.max_entries, request.starting_token)
        kind = csi.ControllerListVolumeHealthResponse
        entries = (
            (volume.id, kind(entries=[reply.health(volume.id, faults)]).SerializeToString())
            for _, volume, faults in examine(self._pools.located(after), self._locks)
            if faults
        )
        return reply.encoded_page(kind, entries, size)

    def ControllerGetVolumeHealth(
        self, request: csi.ControllerGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetVolumeHealthResponse:
        read.require(request, "volume_id")
        pool, volume = self._pools.need_here(request.volume_id)
        faults = faults_of(pool, volume, self._locks)
        return csi.ControllerGetVolumeHealthResponse(volume_health=reply.health(volume.id, faults))


def _attached_to(volume: Volume) -> list[str]:
    return [volume.attachment.node] if volume.attachment else []
