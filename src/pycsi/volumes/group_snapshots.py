"""Taking, finding, committing and deleting group snapshots, and parts of those of several nodes.

Of a group over several nodes each node holds a part: the snapshots of its own volumes. A part is
prepared first: durable, and hidden. The coordinator is the node that the group's id names. It
commits before the others; from then on the group exists, and theirs have to be committed too.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from pycsi.model import ids
from pycsi.model.errors import Aborted, AlreadyExists, PoolMissing
from pycsi.model.parameters import without_orchestrator_keys
from pycsi.model.records import Group, Snapshot
from pycsi.volumes import groups
from pycsi.volumes.locks import Locks, snapshot_key
from pycsi.volumes.pools import Pools
from pycsi.volumes.taking import NewSnapshot, Take, take, taking


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewGroup:
    """A group snapshot to be taken; the fields are those of `Group`."""

    id: str
    name: str
    sources: tuple[str, ...]
    parameters: Mapping[str, str]
    attempt: str | None = None

    def volumes_on(self, node: str) -> Iterator[str]:
        """Yield the sources on the node with this topology segment; of a group on one node all."""
        for volume_id in self.sources:
            if self.attempt is None or ids.node_of(volume_id) == node:
                yield volume_id

    def record(self, members: Mapping[str, str]) -> Group:
        """Return the record of the group, or of a part of it, with these members."""
        return Group(
            id=self.id,
            name=self.name,
            sources=self.sources,
            members=members,
            parameters=self.parameters,
            created=0,
            attempt=self.attempt,
        )

    def refuse_different(self, existing: Group) -> None:
        """Raise `AlreadyExists` unless an existing group matches this one."""
        same_volumes = set(existing.sources) == set(self.sources)
        before = without_orchestrator_keys(existing.parameters)
        if not same_volumes or before != without_orchestrator_keys(self.parameters):
            other = "parameters" if same_volumes else f"volumes ({', '.join(existing.sources)})"
            raise AlreadyExists(
                f"group snapshot {existing.name!r} exists, with other {other}; use another name"
            )


class GroupSnapshots:
    """The group snapshots of this node. Callers hold the group's lock."""

    def __init__(self, pools: Pools, locks: Locks) -> None:
        self._pools = pools
        self._locks = locks

    def refuse_other(self, new: NewGroup) -> None:
        """Raise `AlreadyExists` if there is a group of the same name with another id.

        Such a group has another coordinator. `Aborted` if it is not decided whether it exists.
        """
        for group in self._pools.groups():
            if group.name == new.name and group.id != new.id:
                if group.prepared:
                    raise undecided(group)
                raise AlreadyExists(
                    f"group snapshot {new.name!r} exists, with the id {group.id}, of other volumes "
                    f"({', '.join(group.sources)}); use another name"
                )

    def take(self, new: NewGroup) -> Group:
        """Take snapshots of this node's volumes at one point in time: all of them, or none."""
        with self._members(new) as snapshots:
            group = new.record({item.id: item.pool.uuid for item in snapshots})
            (first, *_) = take(self._pools, snapshots, group)
        return dataclasses.replace(group, created=first.created)

    @contextlib.contextmanager
    def taking(self, new: NewGroup) -> Iterator[Take]:
        """Hold the locks of this node's part of a group, and begin to take it."""
        with self._members(new) as snapshots, taking(self._pools, snapshots) as begun:
            yield begun

    def prepare(self, new: NewGroup, begun: Take, created: float) -> Group:
        """Prepare the captured part of a group, and return it; or leave nothing of it.

        `created` is the point in time, in seconds since the epoch.
        """
        part = dataclasses.replace(new.record(begun.members), created=created, prepared=True)
        begun.commit(created, part)
        return part

    @contextlib.contextmanager
    def _members(self, new: NewGroup) -> Iterator[list[NewSnapshot]]:
        """Hold the locks of this node's volumes and of their snapshots, for the `with` block."""
        with contextlib.ExitStack() as held:
            snapshots = []
            for volume_id in new.volumes_on(self._pools.node):
                member_id = ids.member_id(new.id, volume_id, self._pools.node)
                held.enter_context(self._locks.share(volume_id))
                held.enter_context(self._locks.hold(snapshot_key(member_id)))
                pool, volume = self._pools.need(volume_id)
                snapshots.append(
                    NewSnapshot(
                        pool=pool,
                        volume=volume,
                        id=member_id,
                        name=member_id,
                        parameters=new.parameters,
                        point_in_time=True,
                        group=new.id,
                    )
                )
            yield snapshots

    def snapshots(self, group: Group) -> list[Snapshot]:
        """Return the members of a group on this node, in the order of its volumes."""
        return [self._pools.need_snapshot(member)[1] for member in group.members]

    def commit(self, part: Group) -> Group:
        """Commit a prepared part, durably; return it as it is then. It can be repeated.

        `PoolMissing` if a pool with members may be missing.
        """
        self._refuse_missing(part)
        with self._holding(part):
            return groups.commit(part, self._pools)

    def delete(self, group: Group) -> None:
        """Delete a group or a part with its members, as far as their pools are configured.

        `PoolMissing` if a pool with members may be missing.
        """
        self._refuse_missing(group)
        with self._holding(group):
            groups.delete(group, groups.pools_of(group, self._pools))

    def _refuse_missing(self, group: Group) -> None:
        theirs = groups.pools_of(group, self._pools)
        missing = self._pools.missing
        if missing and set(group.members.values()) - {pool.uuid for pool in theirs}:
            raise PoolMissing(
                f"a part of group snapshot {group.id} may be in a pool that is missing: "
                f"{'; '.join(missing.values())}"
            )

    @contextlib.contextmanager
    def _holding(self, group: Group) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            for member in group.members:
                held.enter_context(self._locks.hold(snapshot_key(member)))
            yield


def undecided(part: Group) -> Aborted:
    """Return the error for a prepared part of a group: its coordinator has to be asked first."""
    return Aborted(
        f"it is not known on this node yet whether group snapshot {part.id} was taken: ask the "
        "driver's controller, which finds out; then try again"
    )
