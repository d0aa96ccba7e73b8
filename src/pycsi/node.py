"""The Node service: protobuf in, one call of staging, protobuf out."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import grpc

from pycsi import ids, parameters, reply
from pycsi import request as read
from pycsi.backends import Backend
from pycsi.capabilities import Advertised
from pycsi.config import parse_size
from pycsi.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from pycsi.health import condition_of
from pycsi.locks import Locks
from pycsi.model import Access, Capability, CapacityRange, Request, Usage, Volume
from pycsi.pool import Pool
from pycsi.pools import Pools
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.staging import Staging, remove_unused, resolved
from pycsi.topology import NodeFacts
from pycsi.volumes import check_fits, delete, expand, new_volume, noting

_ENCODER = json.JSONEncoder(sort_keys=True)
_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_INLINE_KEYS = ("pool", "type", "size")
"""What a pod may say of its inline volume: neither mkfs options nor a directory without limit."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A volume that is staged or published at a path, or has been and is `lost` there."""

    pool: Pool
    volume: Volume
    backend: Backend
    lost: bool


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
            wanted = _capability(request.volume_capability)
            path = self._path(request.staging_target_path, "staging_target_path")
            _check_pool(pool, request.volume_context)
            check_fits(volume, wanted, FailedPrecondition)
            pool.check()
            with noting(pool, volume) as staging:
                staging.ensure_staged(path, wanted, _arguments(request))
        return csi.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnstageVolumeResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.staging_target_path, "staging_target_path")
        with self._locks.hold(request.volume_id):
            pool, volume = self._pools.need(request.volume_id)
            path = self._path(request.staging_target_path, "staging_target_path")
            pool.check(writable=False)
            Staging(pool.backend(volume)).ensure_unstaged(path)
        return csi.NodeUnstageVolumeResponse()

    # Publish

    def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodePublishVolumeResponse:
        read.required(request.volume_id, "volume_id")
        read.required(request.target_path, "target_path")
        if not request.HasField("volume_capability"):
            raise InvalidArgument("volume_capability is missing")
        inline = request.volume_context.get(_EPHEMERAL) == "true"
        with self._locks.hold(self._key(request.volume_id)):
            if inline:
                self._publish_inline(request)
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
        wanted = _capability(request.volume_capability)
        source = self._path(request.staging_target_path, "staging_target_path")
        target = self._path(request.target_path, "target_path")
        _check_pool(pool, request.volume_context)
        check_fits(volume, wanted, FailedPrecondition)
        pool.check()
        with noting(pool, volume) as staging:
            staging.ensure_published(
                target, wanted, _arguments(request), readonly=request.readonly, source=source
            )

    def _publish_inline(self, request: csi.NodePublishVolumeRequest) -> None:
        """Create the volume that a pod describes, and mount it at its target."""
        if ids.node_of(request.volume_id):
            raise InvalidArgument(
                f"volume_id {request.volume_id} is a persistent volume's; an inline one may not "
                "have it"
            )
        wanted = _capability(request.volume_capability)
        if wanted.access is Access.BLOCK:
            raise InvalidArgument("an inline volume is mounted; it cannot be a block device")
        target = self._path(request.target_path, "target_path")
        found = self._pools.find_inline(request.volume_id)
        pool, volume = found or self._create_inline(wanted, request)
        try:
            self._compare_inline(volume, request)
            check_fits(volume, wanted, FailedPrecondition)
            with noting(pool, volume) as staging:
                staging.ensure_published(
                    target, wanted, _arguments(request), readonly=request.readonly, source=None
                )
        except BaseException:
            if found is None:
                delete(pool, volume)
            raise

    @staticmethod
    def _compare_inline(volume: Volume, request: csi.NodePublishVolumeRequest) -> None:
        if parameters.deciding(request.volume_context) != volume.request.parameters:
            raise AlreadyExists(
                f"inline volume {request.volume_id} exists with other attributes; unpublish it"
            )

    def _create_inline(
        self, wanted: Capability, request: csi.NodePublishVolumeRequest
    ) -> tuple[Pool, Volume]:
        given = parameters.parse(request.volume_context, _INLINE_KEYS)
        pool = self._pools.named(given.pool)
        make = parameters.choose(given, [wanted], limiter=pool.limiter.name)
        size = parameters.size_for(_inline_size(request.volume_context), make.minimum)
        volume = new_volume(
            pool,
            make,
            Request(capabilities=(wanted,), parameters=parameters.deciding(request.volume_context)),
            volume_id=self._key(request.volume_id),
            name=request.volume_context.get("csi.storage.k8s.io/pod.name", ""),
            size=size,
            handle=request.volume_id,
        )
        return pool, pool.create(volume)

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
                target = self._path(request.target_path, "target_path")
                pool.check(writable=False)
                Staging(pool.backend(volume)).ensure_unpublished(target)
            else:
                self._unpublish_lost(request)
        return csi.NodeUnpublishVolumeResponse()

    def _unpublish_lost(self, request: csi.NodeUnpublishVolumeRequest) -> None:
        """Remove the empty target of a volume that is gone, as after a pool's disk was replaced.

        To NOT_FOUND an orchestrator would ask for ever, and never let the workload go.
        """
        if not self._pools.elsewhere(request.volume_id):
            with contextlib.suppress(InvalidArgument):
                if remove_unused(self._path(request.target_path, "target_path")):
                    return
        self._pools.need(request.volume_id)

    def _unpublish_inline(self, request: csi.NodeUnpublishVolumeRequest) -> None:
        """Unmount an inline volume and delete it; one that is gone already is fine."""
        found = self._pools.find_inline(request.volume_id)
        if found is None:
            if _exists(request.target_path):
                self._unpublish_lost(request)
            return
        pool, volume = found
        target = self._path(request.target_path, "target_path")
        pool.check(writable=False)
        staging = Staging(pool.backend(volume))
        staging.ensure_unpublished(target)
        if not staging.published():
            delete(pool, volume)

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
            if not found.lost:
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
                check_fits(volume, read.capability(request.volume_capability), InvalidArgument)
            if request.HasField("capacity_range"):
                volume = expand(pool, volume, read.capacity_range(request.capacity_range))
            pool.backend(volume).grow()
        return csi.NodeExpandVolumeResponse(capacity_bytes=volume.capacity)

    def _at(self, volume_id: str, path: str, *, lost: bool = False) -> "_Found":
        """Return the volume, persistent or inline, if it is staged or published at `path`.

        With `lost` also if it was, and something else is mounted there now; of a pool that is away
        it is not known what was.
        """
        inline = None if ids.node_of(volume_id) else self._pools.find_inline(volume_id)
        pool, volume = inline or self._pools.need(volume_id)
        away = False
        try:
            pool.check(writable=False)
        except FailedPrecondition:
            if not lost:
                raise
            away = True
        with contextlib.suppress(InvalidArgument):
            place = resolved(path, "volume_path")
            staging = Staging(pool.backend(volume))
            if staging.holds(place):
                return _Found(pool=pool, volume=volume, backend=staging.backend, lost=False)
            if lost and staging.has_lost(place, known=not away):
                return _Found(pool=pool, volume=volume, backend=staging.backend, lost=True)
        raise NotFound(f"volume {volume_id} is neither staged nor published at {path!r}")

    def _path(self, text: str, field: str) -> str:
        """Return a path to mount at, which must not lie in a pool."""
        path = resolved(text, field)
        for pool in self._pools:
            there, place = f"{path}/", f"{pool.ground.real_path}/"
            if there.startswith(place) or place.startswith(there):
                raise InvalidArgument(
                    f"{field} {text!r} lies in pool {pool.name}, or the pool in it; use another"
                )
        return path


def _capability(message: csi.VolumeCapability) -> Capability:
    """Read a capability; one that no volume here can have is FAILED_PRECONDITION on the node."""
    try:
        return read.capability(message)
    except read.UnsupportedCapability as error:
        raise FailedPrecondition(str(error)) from None


def _check_pool(pool: Pool, context: Mapping[str, str]) -> None:
    """Refuse a volume of a pool that was replaced: never an empty volume in place of a lost one."""
    wanted = context.get("poolUUID", pool.uuid)
    if wanted != pool.uuid:
        raise FailedPrecondition(
            f"pool {pool.name} is now {pool.uuid}; the volume was made in {wanted}: mount the old "
            "disk again, or delete the volume"
        )


def _arguments(request: csi.NodeStageVolumeRequest | csi.NodePublishVolumeRequest) -> str:
    """Digest what a repeated call must repeat: all but secrets and the orchestrator's own keys."""
    capability = request.volume_capability
    published, context = request.publish_context, request.volume_context
    data: dict[str, object] = {
        "access": capability.WhichOneof("access_type"),
        "mode": capability.access_mode.mode,
        "filesystem": capability.mount.fs_type,
        "flags": list(capability.mount.mount_flags),
        "publish_context": {key: published[key] for key in published},
        "volume_context": {
            key: context[key] for key in context if not key.startswith(parameters.ORCHESTRATOR)
        },
    }
    if isinstance(request, csi.NodePublishVolumeRequest):
        data |= {
            "readonly": request.readonly,
            "staged": os.path.normpath(request.staging_target_path),
        }
    return hashlib.sha256(_ENCODER.encode(data).encode()).hexdigest()


def _inline_size(context: Mapping[str, str]) -> CapacityRange | None:
    if "size" not in context:
        return None
    try:
        size = parse_size(context["size"])
    except ValueError as error:
        raise InvalidArgument(f"volume attribute size: {error}") from None
    if size <= 0:
        raise InvalidArgument(f"volume attribute size is {context['size']!r}; use a positive size")
    return CapacityRange(required=size)


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
