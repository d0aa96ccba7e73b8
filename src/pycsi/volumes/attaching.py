"""Attaching volumes to this node, for orchestrators that ask for it; it only writes a record."""

import contextlib
import dataclasses
import threading

import structlog

from pycsi.linux.descriptor import NO_ROOM
from pycsi.model.errors import AlreadyExists, NotFound, ResourceExhausted
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Attachment, Volume
from pycsi.pool import changing, layout
from pycsi.pool.pool import Pool
from pycsi.volumes.pools import Pools

log = structlog.get_logger()


class Attacher:
    """Attaches volumes to this node and detaches them. Callers hold the volume's lock."""

    def __init__(self, pools: Pools, node: NodeInfo) -> None:
        self._pools = pools
        self._node = node
        self._attaching = threading.Lock()

    def check_node(self, node_id: str) -> None:
        """Raise `NotFound` if `node_id` is not this node's."""
        if node_id != self._node.id:
            raise NotFound(f"there is no node {node_id!r}; this is {self._node.id!r}")

    def attach(self, pool: Pool, volume: Volume, wanted: Attachment) -> None:
        """Attach a volume to this node; a repeated call does nothing.

        `AlreadyExists` if the volume is attached in another way, `ResourceExhausted` if the node
        has its maximum of volumes.
        """
        if volume.attachment == wanted:
            return
        if volume.attachment:
            raise AlreadyExists(
                f"volume {volume.id} is attached to {wanted.node} with another capability or "
                "readonly flag; detach it first"
            )
        with self._attaching:  # or two concurrent calls could exceed the maximum
            most = self._node.max_volumes
            if most and sum(bool(item.attachment) for _, item in self._pools.located()) >= most:
                raise ResourceExhausted(
                    f"node {self._node.id} has its {most} volumes; detach one, or raise "
                    "--max-volumes-per-node"
                )
            _record(pool, volume, wanted)

    def detach(self, volume_id: str, node_id: str) -> None:
        """Detach a volume from a node, or from all if `node_id` is ""; not attached is fine."""
        found = self._pools.find(volume_id, sure=True)
        if found and found[1].attachment and node_id in {"", self._node.id}:
            pool, volume = found
            _delete_record(pool, volume)


def _record(pool: Pool, volume: Volume, attachment: Attachment) -> None:
    """Record that a volume is attached, durably.

    On a full disk that is known only until the driver ends; the volume can be used nevertheless, if
    only to delete files from it. Unlike the notes of where it is mounted, nothing depends on it but
    the refusal to delete an attached volume.
    """
    pool.check()
    try:
        layout.write_attachment(pool.volumes.place(volume.id), attachment)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        log.warning("attached without a record", volume=volume.id, error=str(error))
    pool.volumes.put(dataclasses.replace(volume, attachment=attachment))


def _delete_record(pool: Pool, volume: Volume) -> None:
    """Record that a volume is not attached, durably; this needs no free block."""
    pool.check()
    place = pool.volumes.place(volume.id)
    detached = dataclasses.replace(volume, attachment=None)
    if layout.is_attached_by_record(place):
        changing.update(pool, detached)
    try:
        layout.delete_attachment(place)
    except BaseException:
        # The record may be deleted, but not durably: then it is written again.
        with contextlib.suppress(OSError):
            if volume.attachment:
                layout.write_attachment(place, volume.attachment)
        raise
    pool.volumes.put(detached)
