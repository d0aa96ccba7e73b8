"""Taking, finding and deleting single snapshots."""

from collections.abc import Iterator, Mapping, Sequence

from pycsi.model.errors import AlreadyExists, InvalidArgument, PoolMissing
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Snapshot
from pycsi.pool.changing import delete_snapshot
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.taking import NewSnapshot, take


class Snapshotter:
    """Takes, finds and deletes snapshots."""

    def __init__(self, pools: Pools, locks: Locks, node: NodeInfo) -> None:
        self._pools = pools
        self._locks = locks
        self._node = node

    def create(
        self,
        snapshot_id: str,
        name: str,
        *,
        volume_id: str,
        parameters: Mapping[str, str],
        point_in_time: bool,
        topologies: Sequence[Mapping[str, str]] | None = None,
    ) -> Snapshot:
        """Return the snapshot of this id: the one that exists, or a new one, durable.

        Without `point_in_time` its files may be of different moments. `AlreadyExists` if the id's
        snapshot is of another volume; `ResourceExhausted` if `topologies`, where the snapshot has
        to be usable, are all of other nodes. The caller holds the snapshot's lock.
        """
        if found := self._pools.find_snapshot(snapshot_id):
            _, snapshot = found
            self._refuse_different(snapshot, volume_id)
            self._node.require(topologies)
            return snapshot
        with self._locks.share(volume_id):
            pool, volume = self._pools.need(volume_id)
            self._node.require(topologies)
            new = NewSnapshot(
                pool=pool,
                volume=volume,
                id=snapshot_id,
                name=name,
                parameters=parameters,
                point_in_time=point_in_time,
            )
            (taken,) = take(self._pools, [new])
            return taken

    def _refuse_different(self, snapshot: Snapshot, volume_id: str) -> None:
        """Raise `AlreadyExists` if an existing snapshot is not of the requested volume."""
        if snapshot.volume.id != volume_id:
            raise AlreadyExists(
                f"snapshot {snapshot.name!r} exists, of volume {snapshot.volume.id}; use another "
                "name"
            )
        found = self._pools.find(volume_id)
        if found and found[1].created != snapshot.volume.created:
            raise AlreadyExists(
                f"snapshot {snapshot.name!r} exists, of an earlier volume {volume_id} that was "
                "deleted; use another name"
            )

    def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot; absent is fine. The caller holds its lock.

        `InvalidArgument` if it belongs to a group snapshot.
        """
        if found := self._pools.find_snapshot(snapshot_id, sure=True):
            pool, snapshot = found
            if snapshot.group and self._pools.find_group(snapshot.group):
                raise InvalidArgument(
                    f"snapshot {snapshot.id} belongs to the group snapshot {snapshot.group}; "
                    "delete that"
                )
            delete_snapshot(pool, snapshot.id)
        else:
            self._pools.refuse_elsewhere("snapshot", snapshot_id)

    def listed(self, after: str, *, snapshot_id: str, volume_id: str) -> Iterator[Snapshot]:
        """Yield the snapshots in the order of ids; the first is the one that follows `after`.

        Unless they are "", `snapshot_id` and `volume_id` limit them to one snapshot, and to those
        of a volume. Then `PoolMissing` if they may lie in a pool that is missing; a volume's
        snapshots are in its pool, or where it was when they were taken.
        """
        if snapshot_id:
            found = self._pools.find_snapshot(snapshot_id, sure=True)
            every = iter([found[1]] if found and found[1].id > after else [])
        else:
            if volume_id:
                found_volume = self._pools.find(volume_id, sure=True)
                if found_volume and found_volume[1].origin and self._pools.missing:
                    raise PoolMissing(
                        f"volume {volume_id} was moved, and snapshots of it may be in a pool that "
                        f"is missing: {'; '.join(self._pools.missing.values())}"
                    )
            every = self._pools.snapshots(after)
        return (item for item in every if not volume_id or item.volume.id == volume_id)
