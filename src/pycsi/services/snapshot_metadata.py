"""The SnapshotMetadata service: the allocated blocks of a snapshot, and those that changed.

The blocks are found in the extent maps of the snapshots' own images. No source volume, bitmap or
change tracking is needed, so every existing snapshot of an image can be queried.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator

import grpc

from pycsi.linux.descriptor import opened
from pycsi.model.errors import Cancelled, InvalidArgument, OutOfRange
from pycsi.model.records import Snapshot, VolumeType
from pycsi.pool.pool import Pool
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc
from pycsi.services import request as read
from pycsi.volumes import blocks
from pycsi.volumes.locks import Locks, snapshot_key
from pycsi.volumes.pools import Pools

_RESULTS = 1024
"""The default and the maximum number of block ranges in one message."""


class SnapshotMetadata(csi_pb2_grpc.SnapshotMetadataServicer):
    """Stream the allocated and the changed block ranges of image snapshots."""

    def __init__(self, pools: Pools, locks: Locks) -> None:
        self._pools = pools
        self._locks = locks

    def GetMetadataAllocated(
        self, request: csi.GetMetadataAllocatedRequest, context: grpc.ServicerContext
    ) -> Iterator[csi.GetMetadataAllocatedResponse]:
        read.require(request, "snapshot_id")
        results = _results(request.max_results)
        with contextlib.ExitStack() as files:
            _, snapshot, image = self._open(request.snapshot_id, files)
            _check_offset(request.starting_offset, snapshot)
            header = snapshot.volume.header
            start, end = request.starting_offset + header, snapshot.size + header
            found = blocks.allocated(image, start, end)
            for batch in _batches(found, header, results):
                yield csi.GetMetadataAllocatedResponse(
                    block_metadata_type=csi.VARIABLE_LENGTH,
                    volume_capacity_bytes=snapshot.size,
                    block_metadata=batch,
                )

    def GetMetadataDelta(
        self, request: csi.GetMetadataDeltaRequest, context: grpc.ServicerContext
    ) -> Iterator[csi.GetMetadataDeltaResponse]:
        read.require(request, "base_snapshot_id", "target_snapshot_id")
        results = _results(request.max_results)
        with contextlib.ExitStack() as files:
            base_pool, base, old = self._open(request.base_snapshot_id, files)
            pool, target, new = self._open(request.target_snapshot_id, files)
            if not base.volume.is_same(target.volume):
                raise InvalidArgument(
                    f"the snapshots are of different volumes, {base.volume.id} and "
                    f"{target.volume.id} (one that was deleted and made again is another); give "
                    "two of one volume"
                )
            by_extents = pool.reflinks and base_pool is pool
            _check_offset(request.starting_offset, target)

            def progress() -> None:
                if not context.is_active():
                    raise Cancelled("the caller has gone")

            header = target.volume.header
            start, end = request.starting_offset + header, target.size + header
            found = blocks.changed(old, new, start, end, progress, by_extents=by_extents)
            for batch in _batches(found, header, results):
                yield csi.GetMetadataDeltaResponse(
                    block_metadata_type=csi.VARIABLE_LENGTH,
                    volume_capacity_bytes=target.size,
                    block_metadata=batch,
                )

    def _open(self, snapshot_id: str, files: contextlib.ExitStack) -> tuple[Pool, Snapshot, int]:
        """Open a snapshot's image, which stays readable if the snapshot is deleted meanwhile.

        Return its pool, its record and the descriptor, which `files` closes.
        """
        with self._locks.share(snapshot_key(snapshot_id)):
            pool, snapshot = self._pools.need_snapshot(snapshot_id)
            if snapshot.volume.type is not VolumeType.IMAGE:
                raise InvalidArgument(
                    f"snapshot {snapshot_id} is of a directory, which has files and no blocks; "
                    "changed blocks are for volumes of type image"
                )
            pool.check(writable=False)
            image = files.enter_context(opened(pool.backend_of(snapshot).content, os.O_RDONLY))
        return pool, snapshot, image


def _results(wanted: int) -> int:
    if wanted < 0:
        raise InvalidArgument(f"max_results is {wanted}; it must not be negative")
    return min(wanted, _RESULTS) or _RESULTS


def _check_offset(offset: int, snapshot: Snapshot) -> None:
    if not 0 <= offset <= snapshot.size:
        raise OutOfRange(
            f"starting_offset is {offset}; snapshot {snapshot.id} has {snapshot.size} bytes"
        )


def _batches(
    found: Iterator[blocks.Range], header: int, size: int
) -> Iterator[list[csi.BlockMetadata]]:
    """Yield up to `size` ranges at a time, counted from the end of the image's `header`."""
    while batch := list(itertools.islice(found, size)):
        yield [
            csi.BlockMetadata(byte_offset=start - header, size_bytes=end - start)
            for start, end in batch
        ]
