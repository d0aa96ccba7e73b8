"""The Node service: protobuf in, one call of staging, protobuf out."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import grpc

from pycsi.backends import Backend
from pycsi.linux.mount import topmost
from pycsi.model import ids
from pycsi.model.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PoolMissing,
)
from pycsi.model.records import Usage, Volume
from pycsi.pool.pool import Pool
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import inline, node_request, reply
from pycsi.services import request as read
from pycsi.services.capabilities import Advertised
from pycsi.services.topology import NodeFacts
from pycsi.volumes import remains
from pycsi.volumes.health import condition_of
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.staging import remove_unused, resolved
from pycsi.volumes.volumes import (
    check_fits,
    check_usable,
    expand,
    noting,
    undoing,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A volume that is staged or published at a path, or has been and is `lost` there.

    Its pool may be `away`: then it cannot be measured.
    """

    pool: Pool
    volume: Volume
    backend: Backend
    lost: bool
    away: bool


class Node(csi_pb2_grpc.NodeServicer):
    """Stage, publish, measure and grow volumes on this node."""

    def __init__(self, says: Advertised, pools: Pools, locks: Locks, node: NodeFacts) -> None:
        self._says = says
        self._pools = pools
        self._locks = locks
        self._node = node

    def NodeGetCapabilities(
        self, request: csi.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetCapabilitiesResponse:
        kind = csi.NodeServiceCapability
        rpcs = [kind.RPC(type=item) for item in self._says.node]
        return csi.NodeGetCapabilitiesResponse(capabilities=[kind(rpc=rpc) for rpc in rpcs])

    def NodeGetInfo(
        self, request: csi.NodeGetInfoRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetInfoResponse:
        return csi.NodeGetInfoResponse(
            node_id=self._node.id,
            max_volumes_per_node=self._node.max_volumes,
            accessible_topology=self._node.topology,
        )

    # Stage

    def NodeStageVolume(
        self, request: csi.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeStageVolumeResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.staging_target_path, "staging_target_path")
        if not request.HasField("volume_capability"):
            raise InvalidArgument("volume_capability is missing")
        with self._locks.hold(request.volume_id):
            pool, volume = self._pools.need(request.volume_id)
            wanted = node_request.capability(request.volume_capability, self._says.access_modes)
            path = node_request.path(
                self._pools, request.staging_target_path, "staging_target_path"
            )
            _check_pool(pool, request.volume_context)
            pool.check()
            check_usable(pool, volume, wanted, path)
            with noting(pool, volume) as staging:
                staging.ensure_staged(path, wanted, node_request.arguments(request))
        return csi.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnstageVolumeResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.staging_target_path, "staging_target_path")
        with self._locks.hold(request.volume_id):
            path = node_request.path(
                self._pools, request.staging_target_path, "staging_target_path"
            )
            if found := self._pools.find(request.volume_id):
                undoing(*found).ensure_unstaged(path)
            elif not remains.undo(request.volume_id, path):
                self._need_unstaged(request.volume_id, path)
        return csi.NodeUnstageVolumeResponse()

    def _need_unstaged(self, volume_id: str, path: str) -> None:
        """Raise `NotFound`, unless the volume may be in a missing pool, and nothing is mounted."""
        try:
            self._pools.need(volume_id)
        except PoolMissing:
            if topmost(path):
                raise

    # Publish

    def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodePublishVolumeResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.target_path, "target_path")
        if not request.HasField("volume_capability"):
            raise InvalidArgument("volume_capability is missing")
        own_id = self._key(request.volume_id)
        with self._locks.hold(own_id):
            if inline.is_wanted(request):
                inline.publish(self._pools, request, own_id, self._says.access_modes)
            else:
                self._publish(request)
        return csi.NodePublishVolumeResponse()

    def _key(self, volume_id: str) -> str:
        """Return our own id of a volume: what an operation on it holds."""
        if ids.node_of(volume_id):
            return volume_id
        return ids.ephemeral_id(volume_id, self._node.id)

    def _publish(self, request: csi.NodePublishVolumeRequest) -> None:
        pool, volume = self._pools.need(request.volume_id)
        if not request.staging_target_path:
            raise FailedPrecondition(
                "staging_target_path is missing: call NodeStageVolume first, and say where"
            )
        wanted = node_request.capability(request.volume_capability, self._says.access_modes)
        source = node_request.path(self._pools, request.staging_target_path, "staging_target_path")
        target = node_request.path(self._pools, request.target_path, "target_path")
        _check_pool(pool, request.volume_context)
        pool.check()
        check_usable(pool, volume, wanted, target)
        with noting(pool, volume) as staging:
            staging.ensure_published(
                target,
                wanted,
                node_request.arguments(request),
                readonly=request.readonly,
                source=source,
            )

    def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnpublishVolumeResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.target_path, "target_path")
        with self._locks.hold(self._key(request.volume_id)):
            if ids.node_of(request.volume_id) is None:
                self._unpublish_inline(request)
            elif found := self._pools.find(request.volume_id):
                pool, volume = found
                target = node_request.path(self._pools, request.target_path, "target_path")
                undoing(pool, volume).ensure_unpublished(target)
            else:
                self._unpublish_lost(request)
        return csi.NodeUnpublishVolumeResponse()

    def _unpublish_lost(self, request: csi.NodeUnpublishVolumeRequest) -> None:
        """Undo what is left of a volume that is gone, as after a pool's disk was replaced.

        To NOT_FOUND an orchestrator would ask for ever, and never let the workload go. Of one that
        may lie in a pool that is missing, all is done where there is nothing at its target.
        """
        volume_id, target = self._key(request.volume_id), ""
        if not self._pools.elsewhere(volume_id):
            with contextlib.suppress(InvalidArgument):
                target = node_request.path(self._pools, request.target_path, "target_path")
                undone = remains.undo(volume_id, target)
                if remove_unused(target) or undone:
                    return
        try:
            self._pools.need(request.volume_id)
        except PoolMissing:
            if not target or topmost(target) or os.path.lexists(target):
                raise

    def _unpublish_inline(self, request: csi.NodeUnpublishVolumeRequest) -> None:
        """Unmount an inline volume and delete it; one that is gone already is fine."""
        if found := self._pools.find_inline(request.volume_id):
            inline.unpublish(self._pools, *found, request.target_path)
        elif _exists(request.target_path):
            self._unpublish_lost(request)
        else:
            self._pools.find_inline(request.volume_id, sure=True)

    # Measure and grow

    def NodeGetVolumeStats(
        self, request: csi.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetVolumeStatsResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.volume_path, "volume_path")
        found = self._at(request.volume_id, request.volume_path, lost=True)
        condition = condition_of(found.pool, found.volume, self._locks)
        usage = None
        try:
            if not (found.lost or found.away):
                usage = found.backend.usage(Path(request.volume_path))
        except OSError:
            if not condition.abnormal:  # otherwise that says why it cannot be measured
                self._at(request.volume_id, request.volume_path)
                raise
        # Nobody kept it from being unpublished: then what lies below was measured, or nothing.
        self._at(request.volume_id, request.volume_path, lost=True)
        return csi.NodeGetVolumeStatsResponse(
            usage=_usage(usage) if usage else None, volume_condition=reply.condition(condition)
        )

    def NodeExpandVolume(
        self, request: csi.NodeExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeExpandVolumeResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.volume_path, "volume_path")
        with self._locks.hold(self._key(request.volume_id)):
            found = self._at(request.volume_id, request.volume_path)
            pool, volume = found.pool, found.volume
            if request.HasField("volume_capability"):
                used = read.capability(request.volume_capability, self._says.access_modes)
                check_fits(pool, volume, used, InvalidArgument)
            if request.HasField("capacity_range"):
                volume = expand(pool, volume, read.capacity_range(request.capacity_range))
            pool.backend(volume).grow()
        return csi.NodeExpandVolumeResponse(capacity_bytes=volume.capacity)

    def _at(self, volume_id: str, path: str, *, lost: bool = False) -> "_Found":
        """Return the volume, persistent or inline, if it is staged or published at `path`.

        With `lost` also if it was, and something else is mounted there now; of a pool that is away
        it is not known what was.
        """
        ephemeral = None if ids.node_of(volume_id) else self._pools.find_inline(volume_id)
        pool, volume = ephemeral or self._pools.need(volume_id)
        staging = undoing(pool, volume)
        if staging.away and not lost:
            pool.check(writable=False)
        with contextlib.suppress(InvalidArgument):
            place = resolved(path, "volume_path")
            held = staging.holds(place)
            if held or (lost and staging.has_lost(place, known=not staging.away)):
                return _Found(
                    pool=pool,
                    volume=volume,
                    backend=staging.backend,
                    lost=not held,
                    away=staging.away,
                )
        raise NotFound(f"volume {volume_id} is neither staged nor published at {path!r}")


def _check_pool(pool: Pool, context: Mapping[str, str]) -> None:
    """Refuse a volume of a pool that was replaced: never an empty volume in place of a lost one."""
    wanted = context.get("poolUUID", pool.uuid)
    if wanted != pool.uuid:
        raise FailedPrecondition(
            f"pool {pool.name} is now {pool.uuid}; the volume was made in {wanted}: mount the old "
            "disk again, or delete the volume"
        )


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _usage(usage: Usage) -> list[csi.VolumeUsage]:
    measured = [
        csi.VolumeUsage(
            unit=csi.VolumeUsage.BYTES,
            total=usage.total,
            used=usage.used,
            available=usage.available,
        )
    ]
    if usage.inodes:
        measured.append(
            csi.VolumeUsage(
                unit=csi.VolumeUsage.INODES,
                total=usage.inodes,
                used=usage.inodes_used,
                available=usage.inodes_free,
            )
        )
    return measured
