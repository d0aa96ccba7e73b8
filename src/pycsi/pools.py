"""All pools of this process, and finding a volume among them."""

import contextlib
import functools
import heapq
import itertools
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import TypeVar

import structlog

from pycsi import ids
from pycsi.config import DEFAULT_POOL, ConfigError
from pycsi.errors import CsiError, FailedPrecondition, InvalidArgument, NotFound, insist
from pycsi.linux.descriptor import exists
from pycsi.model import Group, Snapshot, Volume
from pycsi.pool import Pool
from pycsi.turns import Turns

log = structlog.get_logger()

T = TypeVar("T", Volume, Snapshot)


class Pools:
    """The open pools, by name."""

    def __init__(self, pools: Iterable[Pool], node: str) -> None:
        self.node = ids.segment(node)
        self._pools = {pool.name: pool for pool in pools}
        self.turns = Turns()
        for pool in self:
            for other in self:
                if pool is not other and _lies_in(pool, other):
                    raise ConfigError(f"pool {pool.name} lies in pool {other.name}; use another")

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def recover(self) -> None:
        """Put right what a crash has left in the pools. Call once, before anything else."""
        failures = [failure for pool in self if (failure := pool.load())]
        if failures:  # not before what can be thawed is thawed
            raise ConfigError("; ".join(failures))
        for pool in self:
            pool.recover()
        self._ignore_doubles()
        for pool in self:
            pool.volumes.adopts = functools.partial(self._adopts, pool)
            pool.trash.notices = functools.partial(_forget_thrown_away, pool)
        try:
            self._delete_partial_groups()
        except (OSError, CsiError) as error:
            log.warning("parts of group snapshots cannot be deleted now", error=str(error))

    def _ignore_doubles(self) -> None:
        """Of two volumes with one id, which a person has made, keep to the one made last."""
        for pool in self:
            for other in self:
                for volume in other.volumes if other is not pool else []:
                    newer = pool.volumes.get(volume.id) if volume.id in pool.volumes else None
                    if newer and newer.created >= volume.created:
                        other.volumes.ignore(volume.id)

    def _adopts(self, pool: Pool, volume: Volume) -> bool:
        """Tell whether a volume that somebody has put into a pool is welcome."""
        elsewhere = any(volume.id in other.volumes for other in self if other is not pool)
        return volume.pool_uuid == pool.uuid and not elsewhere

    def _delete_partial_groups(self) -> None:
        for group in [group for pool in self for group in pool.groups.values()]:
            if not self._is_whole(group):
                log.warning("a group snapshot is not whole and is deleted", group=group.id)
                self.delete_group(group)
        for pool in self:
            for snapshot in pool.snapshots:
                # By the record's name: one that cannot be read is no reason to delete anything.
                if snapshot.group and not pool.layout.group(snapshot.group).exists():
                    pool.forget(snapshot.id)

    def _is_whole(self, group: Group) -> bool:
        """Tell whether every open pool that has members of the group has its record."""
        theirs = [pool for pool in self if pool.uuid in group.members.values()]
        return all(pool.layout.group(group.id).exists() for pool in theirs)

    def delete_group(self, group: Group) -> None:
        """Delete a group snapshot with its members, as far as the pools are open.

        The records go first: a member without its group's record is deleted at the next start.
        """
        theirs = {pool.uuid: pool for pool in self if pool.uuid in group.members.values()}
        members = [(theirs[at], member) for member, at in group.members.items() if at in theirs]
        try:
            for pool in theirs.values():
                pool.delete_group_record(group.id)
            for number, (pool, member) in enumerate(members):
                forget = functools.partial(pool.forget, member)
                if number:
                    insist(forget)  # the first one has gone, and does not come back
                else:
                    forget()
        except BaseException:
            if all(member in pool.snapshots for pool, member in members):
                with contextlib.suppress(OSError, CsiError):
                    for pool in theirs.values():
                        pool.write_group_record(group)
            raise
        for pool in theirs.values():  # only now: if a member cannot be deleted it is tried again
            pool.groups.pop(group.id, None)

    def check(self) -> None:
        """Raise `FailedPrecondition` unless every pool is there and the one it was."""
        for pool in self._pools.values():
            pool.check()

    def default(self) -> Pool | None:
        """Return the pool for requests that name none: `default`, or the only one."""
        if len(self._pools) == 1:
            return next(iter(self._pools.values()))
        return self._pools.get(DEFAULT_POOL)

    def named(self, name: str | None) -> Pool:
        """Return the pool that a request names, or the default one."""
        pool = self.default() if name is None else self._pools.get(name)
        if pool is None:
            there = ", ".join(sorted(self._pools))
            wanted = f"there is no pool {name!r} on node {self.node}" if name else "no pool named"
            raise InvalidArgument(f"{wanted}; set the parameter pool to one of: {there}")
        return pool

    def find(self, volume_id: str) -> tuple[Pool, Volume] | None:
        """Return a volume that an orchestrator created, and its pool, or None."""
        found = self._find(volume_id)
        return found if found and found[1].handle is None else None

    def find_inline(self, handle: str) -> tuple[Pool, Volume] | None:
        """Return the inline volume that the orchestrator calls `handle`, and its pool, or None."""
        found = self._find(ids.ephemeral_id(handle, self.node))
        if found and not exists(found[0].volumes.place(found[1].id)):
            with contextlib.suppress(FailedPrecondition):
                found[0].check(writable=False)  # otherwise its disk is away
                found[0].volumes.drop(found[1].id)
                return None
        return found

    def inline(self, text: str) -> Volume | None:
        """Return an inline volume by our id of it or by the orchestrator's, or None."""
        found = self._find(text) if ids.node_of(text) else self.find_inline(text)
        return found[1] if found and found[1].handle else None

    def _find(self, volume_id: str) -> tuple[Pool, Volume] | None:
        for pool in self._pools.values():
            if volume := pool.volumes.get(volume_id):
                return pool, volume
        return None

    def elsewhere(self, volume_id: str) -> str | None:
        """Return the node that an id names, if that is another one than this."""
        node = ids.node_of(volume_id)
        return node if node != self.node else None

    def need(self, volume_id: str) -> tuple[Pool, Volume]:
        """Return a volume and its pool, or raise `NotFound` that says where it would be."""
        if found := self.find(volume_id):
            return found
        if node := self.elsewhere(volume_id):
            raise NotFound(f"volume {volume_id} is on node {node}; this is node {self.node}")
        raise NotFound(f"there is no volume {volume_id!r} on node {self.node}")

    def located(self, after: str = "") -> Iterator[tuple[Pool, Volume]]:
        """Go through the volumes that the orchestrator created, with their pools, ordered by id.

        Those whose ids come `after` one.
        """
        for volume, pool in _merged((pool.volumes.following(after), pool) for pool in self):
            if volume.handle is None:
                yield pool, volume

    def attached(self) -> int:
        """Return how many volumes are attached."""
        return sum(volume.attachment is not None for _, volume in self.located())

    # Snapshots

    def find_snapshot(self, snapshot_id: str) -> tuple[Pool, Snapshot] | None:
        """Return a snapshot and its pool, or None."""
        for pool in self._pools.values():
            if snapshot := pool.snapshots.get(snapshot_id):
                return pool, snapshot
        return None

    def need_snapshot(self, snapshot_id: str) -> tuple[Pool, Snapshot]:
        """Return a snapshot and its pool, or raise `NotFound` that says where it would be."""
        if found := self.find_snapshot(snapshot_id):
            return found
        if node := self.elsewhere(snapshot_id):
            raise NotFound(f"snapshot {snapshot_id} is on node {node}; this is node {self.node}")
        raise NotFound(f"there is no snapshot {snapshot_id!r} on node {self.node}")

    def snapshots(self, after: str = "") -> Iterator[Snapshot]:
        """Go through all snapshots, ordered by id: those whose ids come `after` one."""
        for snapshot, _ in _merged((pool.snapshots.following(after), pool) for pool in self):
            yield snapshot

    def find_group(self, group_id: str) -> Group | None:
        """Return a group snapshot, or None."""
        for pool in self._pools.values():
            if group := pool.groups.get(group_id):
                return group
        return None

    def filesystems(self) -> set[str]:
        """Return the kinds of filesystem that there are images of."""
        return {
            kind
            for pool in self._pools.values()
            for shelf in (pool.volumes, pool.snapshots)
            for kind, number in shelf.filesystems.items()
            if number
        }


def _forget_thrown_away(pool: Pool, volume_id: str) -> None:
    """Forget a volume that somebody else has thrown away: `pycsi delete-inline`."""
    if volume_id in pool.volumes and not exists(pool.volumes.place(volume_id)):
        pool.volumes.drop(volume_id)


def _merged(streams: Iterable[tuple[Iterator[T], Pool]]) -> Iterator[tuple[T, Pool]]:
    """Merge what comes ordered by id from several pools; each with its pool."""
    tagged = (zip(items, itertools.repeat(pool)) for items, pool in streams)
    return heapq.merge(*tagged, key=lambda item: item[0].id)


def _lies_in(pool: Pool, other: Pool) -> bool:
    """Tell whether a pool is in another one's directory, by whatever path or bind mount."""
    here, there = pool.ground, other.ground
    return here.device == there.device and PurePath(here.root).is_relative_to(there.root)
