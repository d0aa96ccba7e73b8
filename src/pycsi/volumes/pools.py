"""All pools of this process, and finding volumes and snapshots in them.

A volume that is not found may lie in a pool that is missing. Then the reply is that this is not
known, and never NOT_FOUND, which an orchestrator takes to mean that the volume was deleted.
"""

import contextlib
import functools
import heapq
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import structlog

from pycsi.linux.descriptor import exists
from pycsi.model import ids
from pycsi.model.config import DEFAULT_POOL, PoolConfig
from pycsi.model.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PoolMissing,
)
from pycsi.model.records import Group, Snapshot, Volume
from pycsi.pool.pool import Pool
from pycsi.volumes import groups
from pycsi.volumes.locks import Locks
from pycsi.volumes.paths import resolved
from pycsi.volumes.presence import Presence
from pycsi.volumes.sharing import warn_of_shared_room
from pycsi.volumes.turns import Turns

log = structlog.get_logger()

T = TypeVar("T", Volume, Snapshot)
F = TypeVar("F")


class Pools:
    """The configured pools; iterating yields those that are open."""

    def __init__(self, configs: Iterable[PoolConfig], node: str, locks: Locks) -> None:
        self.node = ids.segment(node)
        self._node_id = node
        self.turns = Turns()
        self._presence = Presence(configs, locks, self._admit)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._presence.open.values())

    @property
    def names(self) -> Iterable[str]:
        """The names of all configured pools."""
        return self._presence.configs

    @property
    def missing(self) -> Mapping[str, str]:
        """The pools that could not be opened yet: why each is missing, by name."""
        return self._presence.missing

    def claim(self) -> None:
        """Open the pools that are there; `ConfigError` if the configuration cannot work."""
        self._presence.claim()

    def recover(self) -> None:
        """Load the pools, and clean up after a crash. Call once, after `claim`."""
        self._presence.load()
        self._presence.recover()
        self._ignore_doubles()
        for pool in self:
            self._follow(pool)
            pool.deletions.forget(other.name for other in self)
        groups.delete_partial(list(self))
        warn_of_shared_room(self)

    def start(self) -> None:
        """Start the background work; call it after `recover`."""
        self._presence.start()

    def close(self) -> None:
        """Stop the background work, and close the pools, which releases them."""
        self._presence.close()

    def _admit(self, pool: Pool) -> None:
        """Prepare a pool that was opened late; ids that are served already win over its own."""
        for volume in list(pool.volumes):
            if any(volume.id in other.volumes for other in self):
                pool.volumes.ignore(volume.id)
        for snapshot in list(pool.snapshots):
            if any(snapshot.id in other.snapshots for other in self):
                pool.snapshots.ignore(snapshot.id)
        self._follow(pool)
        for other in (*self, pool):
            other.deletions.forget([pool.name])
        # No RPC deletes these groups at the same time: without this pool it would be refused.
        groups.delete_partial([*self, pool], of=pool)
        warn_of_shared_room([*self, pool], late=pool)

    def _follow(self, pool: Pool) -> None:
        """Have a pool adopt the volumes that other processes add, and drop those they delete."""
        pool.missing = lambda: self.missing
        pool.volumes.adopts = functools.partial(self._adopts, pool)
        pool.trash.notices = functools.partial(_drop_deleted, pool)

    def _ignore_doubles(self) -> None:
        """Ignore all but the newest volume of an id that two pools have, as after a manual copy."""
        for pool in self:
            for other in self:
                for volume in other.volumes if other is not pool else []:
                    newer = pool.volumes.get(volume.id) if volume.id in pool.volumes else None
                    if newer and newer.created >= volume.created:
                        other.volumes.ignore(volume.id)

    def _adopts(self, pool: Pool, volume: Volume) -> bool:
        """Tell whether a volume that another process has added belongs to a pool, and no other."""
        elsewhere = any(volume.id in other.volumes for other in self if other is not pool)
        return volume.pool_uuid == pool.uuid and not elsewhere

    def delete_group(self, group: Group) -> None:
        """Delete a group snapshot with its members, as far as their pools are configured.

        `PoolMissing` if a pool with members may be missing.
        """
        theirs = self.of_group(group)
        missing = self.missing
        if missing and set(group.members.values()) - {pool.uuid for pool in theirs}:
            raise PoolMissing(
                f"a part of group snapshot {group.id} may be in a pool that is missing: "
                f"{'; '.join(missing.values())}"
            )
        groups.delete(group, theirs)

    def of_group(self, group: Group) -> list[Pool]:
        """Return the open pools that have members of a group snapshot."""
        return groups.having(group, self)

    def default(self) -> str | None:
        """Return the name of the only pool, or of the pool `default`; None if there is neither."""
        names = list(self.names)
        if len(names) == 1:
            return names[0]
        return DEFAULT_POOL if DEFAULT_POOL in names else None

    def named(self, name: str | None) -> Pool:
        """Return the pool that a request names, or the default pool if `name` is None.

        `InvalidArgument` if no such pool is configured, `PoolMissing` if it is missing.
        """
        wanted = self.default() if name is None else name
        if wanted is None or wanted not in self._presence.configs:
            there = ", ".join(sorted(self.names))
            refusal = f"there is no pool {name!r} on node {self.node}" if name else "no pool named"
            raise InvalidArgument(f"{refusal}; set the parameter pool to one of: {there}")
        self._presence.seek(wanted)
        pool = self._presence.open.get(wanted)
        if pool is None:
            raise PoolMissing(self.missing[wanted])
        return pool

    def _places(self) -> Iterator[tuple[str, str]]:
        """Yield all configured pools: the name, and the path without symbolic links."""
        for name, config in self._presence.configs.items():
            pool = self._presence.open.get(name)
            yield name, str(pool.location.real_path) if pool else os.path.realpath(config.path)

    def outside(self, text: str, field: str) -> str:
        """Return a staging or target path as the kernel lists it: see `resolved`.

        `InvalidArgument` if the path lies in a pool, or a pool in it; `field` names the path.
        """
        path = resolved(text, field)
        for name, pool in self._places():
            inside, place = f"{path}/", f"{pool}/"
            if inside.startswith(place) or place.startswith(inside):
                raise InvalidArgument(
                    f"{field} {text!r} lies in pool {name}, or the pool in it; use another"
                )
        return path

    def find(self, volume_id: str, *, sure: bool = False) -> tuple[Pool, Volume] | None:
        """Return a volume that is not inline, and its pool, or None.

        With `sure` raise `PoolMissing` if the volume may lie in a pool that is missing.
        """
        found = self._find(volume_id, sure=sure)
        return found if found and found[1].handle is None else None

    def own_id(self, volume_id: str) -> str:
        """Return the driver's id of a volume; for an inline volume the orchestrator has another."""
        if ids.node_of(volume_id):
            return volume_id
        return ids.ephemeral_id(volume_id, self._node_id)

    def find_inline(self, handle: str, *, sure: bool = False) -> tuple[Pool, Volume] | None:
        """Return the inline volume with the orchestrator's id `handle`, and its pool, or None.

        `sure` is as for `find`.
        """
        found = self._find(self.own_id(handle), sure=sure)
        if found:
            pool, volume = found
            with contextlib.suppress(OSError, FailedPrecondition):  # its disk fails, or is away
                if not exists(pool.volumes.place(volume.id)):
                    pool.check(writable=False)
                    pool.volumes.drop(volume.id)
                    return None
        return found

    def inline(self, text: str) -> Volume | None:
        """Return an inline volume by the driver's id or the orchestrator's, or None."""
        is_ours = ids.node_of(text)
        found = self._find(text, sure=False) if is_ours else self.find_inline(text)
        return found[1] if found and found[1].handle else None

    def _find(self, volume_id: str, *, sure: bool) -> tuple[Pool, Volume] | None:
        return self._search(
            "volume", volume_id, lambda pool: pool.volumes.get(volume_id), sure=sure
        )

    def _search(
        self, kind: str, object_id: str, look: Callable[[Pool], F | None], *, sure: bool
    ) -> tuple[Pool, F] | None:
        """Return the first object that `look` finds in a pool, and the pool, or None.

        With `sure` raise `PoolMissing` if the object may lie in a pool that is missing.
        """
        while True:
            missing, pools = self._presence.missing, self._presence.open
            for pool in pools.values():
                if (found := look(pool)) is not None:
                    return pool, found
            self._presence.seek()
            if self._presence.open is pools:
                break
        if (
            sure
            and missing
            and ids.node_of(object_id) == self.node
            and not any(pool.deletions.vouches(kind, object_id, missing) for pool in self)
        ):
            raise PoolMissing(
                f"{object_id} is in no pool that is there, but may be in one that is missing: "
                f"{'; '.join(missing.values())}; or take it out of the driver's configuration, if "
                "it does not come back"
            )
        return None

    def elsewhere(self, volume_id: str) -> str | None:
        """Return the node that an id names, or None if that is this node or there is none."""
        node = ids.node_of(volume_id)
        return node if node != self.node else None

    def refuse_elsewhere(self, what: str, object_id: str) -> None:
        """Raise `FailedPrecondition` if the id of a volume or snapshot names another node."""
        if node := self.elsewhere(object_id):
            raise FailedPrecondition(
                f"{what} {object_id} is on node {node}, this is node {self.node}; ask the driver "
                "there"
            )

    def refuse_inline(self, volume_id: str) -> None:
        """Raise `FailedPrecondition` if a volume is inline: only unpublishing deletes it."""
        if inline := self.inline(volume_id):
            raise FailedPrecondition(
                f"volume {inline.id} is inline, of pod {inline.name or 'unknown'}, for "
                f"{' and '.join(inline.targets) or 'an unknown target'}: it goes when "
                f"{inline.handle} is unpublished, or by: pycsi delete-inline {inline.id}"
            )

    def need(self, volume_id: str) -> tuple[Pool, Volume]:
        """Return a volume and its pool, or raise `NotFound` or `PoolMissing` with the reason."""
        if found := self.find(volume_id, sure=True):
            return found
        raise self._not_found("volume", volume_id)

    def _not_found(self, what: str, object_id: str) -> NotFound:
        if node := self.elsewhere(object_id):
            return NotFound(f"{what} {object_id} is on node {node}; this is node {self.node}")
        return NotFound(f"there is no {what} {object_id!r} on node {self.node}")

    def located(self, after: str = "") -> Iterator[tuple[Pool, Volume]]:
        """Yield the volumes that are not inline, with their pools, in the order of ids.

        The first is the one whose id follows `after`.
        """
        for volume, pool in _merged((pool.volumes.following(after), pool) for pool in self):
            if volume.handle is None:
                yield pool, volume

    def attached(self) -> int:
        """Return the number of attached volumes."""
        return sum(volume.attachment is not None for _, volume in self.located())

    # Snapshots

    def find_snapshot(
        self, snapshot_id: str, *, sure: bool = False
    ) -> tuple[Pool, Snapshot] | None:
        """Return a snapshot and its pool, or None; `sure` as for `find`."""
        return self._search(
            "snapshot", snapshot_id, lambda pool: pool.snapshots.get(snapshot_id), sure=sure
        )

    def need_snapshot(self, snapshot_id: str) -> tuple[Pool, Snapshot]:
        """Return a snapshot and its pool; otherwise raise an error as `need` does."""
        if found := self.find_snapshot(snapshot_id, sure=True):
            return found
        raise self._not_found("snapshot", snapshot_id)

    def snapshots(self, after: str = "") -> Iterator[Snapshot]:
        """Yield the snapshots in the order of ids; the first is the one that follows `after`."""
        for snapshot, _ in _merged((pool.snapshots.following(after), pool) for pool in self):
            yield snapshot

    def find_group(self, group_id: str, *, sure: bool = False) -> Group | None:
        """Return a group snapshot, or None; `sure` as for `find`."""
        found = self._search("group", group_id, lambda pool: pool.groups.get(group_id), sure=sure)
        return found[1] if found else None

    def filesystems(self) -> set[str]:
        """Return the kinds of filesystem that volumes' and snapshots' images have."""
        return {
            kind
            for pool in self
            for catalog in (pool.volumes, pool.snapshots)
            for kind, number in catalog.filesystems.items()
            if number
        }


def _drop_deleted(pool: Pool, volume_id: str) -> None:
    """Drop a volume that another process has deleted: `pycsi delete-inline`."""
    if volume_id in pool.volumes and not exists(pool.volumes.place(volume_id)):
        pool.volumes.drop(volume_id)


def _merged(streams: Iterable[tuple[Iterator[T], Pool]]) -> Iterator[tuple[T, Pool]]:
    """Merge the streams of pools, each in the order of ids; yield items with their pools."""
    tagged = (zip(items, itertools.repeat(pool)) for items, pool in streams)
    return heapq.merge(*tagged, key=lambda item: item[0].id)
