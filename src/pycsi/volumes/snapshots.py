"""Taking, finding and deleting snapshots, singly or as a group: all of a group's, or none."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence

import structlog

from pycsi.backends import Backend
from pycsi.model.errors import (
    AlreadyExists,
    CsiError,
    InvalidArgument,
    PoolMissing,
)
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Group, Snapshot, Volume
from pycsi.pool.changing import delete_snapshot
from pycsi.pool.pool import Build, Pool
from pycsi.volumes import groups
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.quiescing import quiesced

log = structlog.get_logger()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewSnapshot:
    """A snapshot to be taken of `volume`, in the pool of both.

    Without `point_in_time` the files in the snapshot may be of different moments.
    """

    pool: Pool
    volume: Volume
    id: str
    name: str
    parameters: Mapping[str, str]
    point_in_time: bool
    group: str | None = None

    @property
    def recorded(self) -> Volume:
        """The volume as the snapshot's record describes it."""
        return dataclasses.replace(self.volume, project=None, attachment=None)

    def record(self, created: float, held: int) -> Snapshot:
        """Return the record of the snapshot, taken at `created`, in seconds since the epoch.

        `held` are the bytes that it occupies.
        """
        return Snapshot(
            id=self.id,
            name=self.name,
            volume=self.recorded,
            parameters=self.parameters,
            created=created,
            held=held,
            group=self.group,
        )


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
            (taken,) = _take(self._pools, [new], None)
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
        snapshots are in its pool.
        """
        if snapshot_id:
            found = self._pools.find_snapshot(snapshot_id, sure=True)
            every = iter([found[1]] if found and found[1].id > after else [])
        else:
            if volume_id:
                self._pools.find(volume_id, sure=True)
            every = self._pools.snapshots(after)
        return (item for item in every if not volume_id or item.volume.id == volume_id)


def take_group(
    pools: Pools, snapshots: Sequence[NewSnapshot], *, group_id: str, name: str
) -> Group:
    """Take snapshots of one point in time, durably: either all, or none and an error.

    The caller shares the locks of the volumes, and holds those of the snapshots and of the group.
    """
    group = Group(
        id=group_id,
        name=name,
        sources=tuple(new.volume.id for new in snapshots),
        members={new.id: new.pool.uuid for new in snapshots},
        parameters=snapshots[0].parameters,
        created=0,
    )
    (first, *_) = _take(pools, snapshots, group)
    return dataclasses.replace(group, created=first.created)


def delete_group(pools: Pools, group: Group) -> None:
    """Delete a group snapshot with its members, as far as their pools are configured.

    `PoolMissing` if a pool with members may be missing.
    """
    theirs = groups.pools_of(group, pools)
    missing = pools.missing
    if missing and set(group.members.values()) - {pool.uuid for pool in theirs}:
        raise PoolMissing(
            f"a part of group snapshot {group.id} may be in a pool that is missing: "
            f"{'; '.join(missing.values())}"
        )
    groups.delete(group, theirs)


def _take(pools: Pools, snapshots: Sequence[NewSnapshot], group: Group | None) -> list[Snapshot]:
    """Build the snapshots, copy all volumes while they are quiesced, and commit the snapshots."""
    sources = [new.pool.backend(new.volume) for new in snapshots]
    for new in snapshots:
        new.pool.check()
    with contextlib.ExitStack() as stack:
        builds = [
            stack.enter_context(
                new.pool.build_snapshot(new.id, _room_for(source), thick=new.volume.thick)
            )
            for new, source in zip(snapshots, sources, strict=True)
        ]
        copies = [
            new.pool.backend(new.recorded, place=build.directory)
            for new, build in zip(snapshots, builds, strict=True)
        ]
        limit = min(new.pool.config.freeze_limit for new in snapshots)
        volumes = [(new.pool, source) for new, source in zip(snapshots, sources, strict=True)]
        with quiesced(pools, volumes, limit) as window:
            created = time.time()
            for new, source, copied in zip(snapshots, sources, copies, strict=True):
                copied.capture(source, window.check, point_in_time=new.point_in_time)
        return _commit(pools, list(zip(snapshots, builds, copies, strict=True)), created, group)


def _room_for(source: Backend) -> int:
    """Return the bytes of the pool that a snapshot needs while it is taken.

    A thick volume in use may be overwritten while the snapshot still shares its blocks, before they
    are copied, so it may need its own bytes twice.
    """
    written = source.volume.thick and source.shares_blocks and source.written_at() is not None
    return source.occupied() * (2 if written else 1)


def _commit(
    pools: Pools,
    copied: Sequence[tuple[NewSnapshot, Build, Backend]],
    created: float,
    group: Group | None,
) -> list[Snapshot]:
    """Commit snapshots whose data is complete, all or none, and index them."""
    committed: list[Snapshot] = []
    if group:
        group = dataclasses.replace(group, created=created)
    try:
        for new, build, data in copied:
            data.finish_capture()
            snapshot = new.record(created, data.occupied())
            new.pool.commit_snapshot(build, snapshot)
            committed.append(snapshot)
        if group:
            _record_group(pools, group)
    except BaseException:
        for (new, _, _), snapshot in zip(copied, committed, strict=False):
            try:
                delete_snapshot(new.pool, snapshot.id)
            except (OSError, CsiError) as error:
                log.warning("cannot be taken back now", snapshot=snapshot.id, error=str(error))
        raise
    for (new, build, _), snapshot in zip(copied, committed, strict=True):
        new.pool.index_snapshot(build, snapshot)
    if group:
        for pool in groups.pools_of(group, pools):
            pool.groups.index(group)
    return committed


def _record_group(pools: Pools, group: Group) -> None:
    """Record a group in each pool that has members of it; in none if one of them fails."""
    try:
        for pool in groups.pools_of(group, pools):
            pool.check()
            with pool.room.explaining_full_disk():
                pool.groups.write(group)
    except BaseException:
        for pool in pools:
            pool.check()
            pool.groups.delete(group.id)
        raise
