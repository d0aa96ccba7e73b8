"""All pools of this process, and finding volumes and snapshots in them.

A volume that is not found may lie in a pool that is missing. Then the reply is that this is not
known, and never NOT_FOUND, which an orchestrator takes to mean that the volume was deleted.
"""

import heapq
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pycsi.backends.throttle import Throttle
from pycsi.model import ids
from pycsi.model.config import DEFAULT_POOL, PoolConfig
from pycsi.model.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PoolMissing,
)
from pycsi.model.records import Group, Snapshot, Volume
from pycsi.model.trace import about
from pycsi.pool.pool import Pool
from pycsi.volumes.locks import Locks
from pycsi.volumes.paths import resolved
from pycsi.volumes.presence import Presence
from pycsi.volumes.turns import Turns

T = TypeVar("T", Volume, Snapshot)
F = TypeVar("F")


class Pools(Presence):
    """The configured pools, and what is in those that are open."""

    def __init__(
        self, configs: Iterable[PoolConfig], node: str, locks: Locks, throttle: Throttle
    ) -> None:
        super().__init__(configs, locks, throttle)
        self.node = ids.segment(node)
        self._node_id = node
        self.turns = Turns()

    def default(self) -> str | None:
        """Return the name of the only pool, or of the pool `default`; None if there is neither."""
        names = list(self.configs)
        if len(names) == 1:
            return names[0]
        return DEFAULT_POOL if DEFAULT_POOL in names else None

    def named(self, name: str | None) -> Pool:
        """Return the pool that a request names, or the default pool if `name` is None.

        `InvalidArgument` if no such pool is configured, `PoolMissing` if it is missing.
        """
        wanted = self.default() if name is None else name
        if wanted is None or wanted not in self.configs:
            there = ", ".join(sorted(self.configs))
            refusal = f"there is no pool {name!r} on node {self.node}" if name else "no pool named"
            raise InvalidArgument(f"{refusal}; set the parameter pool to one of: {there}")
        self.seek(wanted)
        about(pool=wanted)
        pool = self.open.get(wanted)
        if pool is None:
            raise PoolMissing(self.missing[wanted])
        return pool

    def path_outside(self, text: str, field: str) -> str:
        """Return a staging or target path as the kernel lists it: see `resolved`.

        `InvalidArgument` if the path lies in a pool, or a pool in it; `field` names the path.
        """
        path = resolved(text, field)
        for name, config in self.configs.items():
            pool = self.open.get(name)
            place = pool.location.real_path if pool else os.path.realpath(config.path)
            if f"{path}/".startswith(f"{place}/") or f"{place}/".startswith(f"{path}/"):
                raise InvalidArgument(
                    f"{field} {text!r} lies in pool {name}, or the pool in it; use another"
                )
        return path

    def own_id(self, volume_id: str) -> str:
        """Return the driver's id of a volume; for an inline volume the orchestrator has another."""
        if ids.node_of(volume_id):
            return volume_id
        return ids.ephemeral_id(volume_id, self._node_id)

    def find(
        self, volume_id: str, *, sure: bool = False, inline: bool = False
    ) -> tuple[Pool, Volume] | None:
        """Return a volume and its pool, or None; an inline volume is found with `inline` only.

        With `inline` no other volume is found. With `sure` raise `PoolMissing` if the volume may
        lie in a pool that is missing.
        """
        found = self._search(
            "volume", volume_id, lambda pool: pool.volumes.get(volume_id), sure=sure
        )
        return found if found and (found[1].handle is not None) is inline else None

    def _search(
        self,
        kind: str,
        object_id: str,
        look: Callable[[Pool], F | None],
        *,
        sure: bool,
        foreign: bool = False,
    ) -> tuple[Pool, F] | None:
        """Return the first object that `look` finds in a pool, and the pool, or None.

        With `sure` raise `PoolMissing` if the object may lie in a pool that is missing. An object
        whose id names another node does not, unless `foreign` says that it can be here.
        """
        while True:
            missing, pools = self.missing, self.open
            places: Iterable[Pool] = pools.values()
            if len(pools) > 1:  # the pool that has it comes first: another's disk may not answer
                places = sorted(places, key=lambda pool: object_id not in pool.volumes)
            for pool in places:
                if (found := look(pool)) is not None:
                    about(pool=pool.name)
                    return pool, found
            self.seek()
            if self.open is pools:  # no missing pool has been opened, in which to look again
                break
        if (
            sure
            and missing
            and (foreign or ids.node_of(object_id) == self.node)
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

    def need(self, volume_id: str) -> tuple[Pool, Volume]:
        """Return a volume and its pool, or raise `NotFound` or `PoolMissing` with the reason."""
        if found := self.find(volume_id, sure=True):
            return found
        raise self._not_found("volume", volume_id)

    def need_here(self, volume_id: str) -> tuple[Pool, Volume]:
        """Return a volume and its pool as `need` does; `FailedPrecondition` for another node's.

        NOT_FOUND would say of a volume there that it does not exist, which only its node knows.
        """
        try:
            return self.need(volume_id)
        except NotFound:
            self.refuse_elsewhere("volume", volume_id)
            raise

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

    def find_group(self, group_id: str, *, sure: bool = False, part: bool = False) -> Group | None:
        """Return a group snapshot, or None; `sure` as for `find`.

        With `part` it may be this node's part of a group that another node coordinates.
        """
        found = self._search(
            "group", group_id, lambda pool: pool.groups.get(group_id), sure=sure, foreign=part
        )
        return found[1] if found else None

    def groups(self) -> Iterator[Group]:
        """Yield the group snapshots, and the parts of such, prepared or not."""
        for pool in self:
            yield from pool.groups


def _merged(streams: Iterable[tuple[Iterator[T], Pool]]) -> Iterator[tuple[T, Pool]]:
    """Merge the streams of pools, each in the order of ids; yield items with their pools."""
    tagged = (zip(items, itertools.repeat(pool)) for items, pool in streams)
    return heapq.merge(*tagged, key=lambda item: item[0].id)
