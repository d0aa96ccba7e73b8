"""Taking snapshots and filling volumes from them: one point in time, whole or not at all."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from pycsi.backends import Backend
from pycsi.model.errors import (
    Aborted,
    CsiError,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
)
from pycsi.model.records import Group, Snapshot, Volume
from pycsi.model.request import Source, SourceKind
from pycsi.model.size import show
from pycsi.pool.freezing import (
    Frozen,
    Moment,
    OverdueError,
    frozen,
)
from pycsi.pool.pool import Pool
from pycsi.volumes.locks import Locks, snapshot_key
from pycsi.volumes.pools import Pools

log = structlog.get_logger()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A snapshot to be taken of `volume`, and their pool.

    Without `steady` files of different moments will do.
    """

    pool: Pool
    volume: Volume
    id: str
    name: str
    parameters: Mapping[str, str]
    steady: bool
    group: str | None = None

    def snapshot(self, created: float, held: int) -> Snapshot:
        """Return the record of the snapshot that was taken."""
        return Snapshot(
            id=self.id,
            name=self.name,
            volume=dataclasses.replace(self.volume, project=None, attachment=None),
            parameters=self.parameters,
            created=created,
            held=held,
            group=self.group,
        )


def take(pools: Pools, member: Member) -> Snapshot:
    """Take a snapshot, durably. The caller shares the volume's lock, and holds the snapshot's."""
    (taken,) = _take(pools, [member], None)
    return taken


def take_group(pools: Pools, members: Sequence[Member], *, group_id: str, name: str) -> Group:
    """Take snapshots of one point in time, durably: all, or an error and nothing is left.

    The caller shares the locks of the volumes, and holds those of the snapshots and of the group.
    """
    group = Group(
        id=group_id,
        name=name,
        sources=tuple(member.volume.id for member in members),
        members={member.id: member.pool.uuid for member in members},
        parameters=members[0].parameters,
        created=0,
    )
    (first, *_) = _take(pools, members, group)
    return dataclasses.replace(group, created=first.created)


def _take(pools: Pools, members: Sequence[Member], group: Group | None) -> list[Snapshot]:
    sources = [member.pool.backend(member.volume) for member in members]
    for member in members:
        member.pool.check()
    with contextlib.ExitStack() as building:
        places = [
            building.enter_context(
                member.pool.taking(member.id, _room_for(source), thick=member.volume.thick)
            )
            for member, source in zip(members, sources, strict=True)
        ]
        copies = [
            member.pool.backend_at(place, member.snapshot(0, 0).volume)
            for member, place in zip(members, places, strict=True)
        ]
        limit = min(member.pool.config.freeze_limit for member in members)
        with still(pools, sources, limit) as moment:
            created = time.time()
            for member, source, copied in zip(members, sources, copies, strict=True):
                copied.capture(source, moment.check, steady=member.steady)
        return _keep(pools, list(zip(members, places, copies, strict=True)), created, group)


def _room_for(source: Backend) -> int:
    """Return how much room a snapshot takes while it is made.

    A thick volume in use may be written anew while it shares its blocks, until they are copied.
    """
    restless = source.volume.thick and source.shares and source.written_at() is not None
    return source.occupied() * (2 if restless else 1)


def _keep(
    pools: Pools,
    copied: Sequence[tuple[Member, Path, Backend]],
    created: float,
    group: Group | None,
) -> list[Snapshot]:
    """Put snapshots whose data is complete in their places, all or none, and make them known."""
    kept: list[Snapshot] = []
    try:
        for member, place, data in copied:
            data.make_durable()
            snapshot = member.snapshot(created, data.occupied())
            member.pool.keep(place, snapshot)
            kept.append(snapshot)
        if group:
            _record(pools, dataclasses.replace(group, created=created))
    except BaseException:
        for (member, _, _), snapshot in zip(copied, kept, strict=False):
            try:
                member.pool.forget(snapshot.id)
            except (OSError, CsiError) as error:
                log.warning("cannot be taken back now", snapshot=snapshot.id, error=str(error))
        raise
    for (member, _, _), snapshot in zip(copied, kept, strict=True):
        member.pool.remember(snapshot)
    if group:
        for pool in pools:
            if pool.uuid in group.members.values():
                pool.groups[group.id] = dataclasses.replace(group, created=created)
    return kept


def _record(pools: Pools, group: Group) -> None:
    """Record a group in each pool that has members of it, or in none."""
    try:
        for pool in pools:
            if pool.uuid in group.members.values():
                pool.write_group_record(group)
    except BaseException:
        for pool in pools:
            pool.delete_group_record(group.id)
        raise


@contextlib.contextmanager
def still(pools: Pools, sources: Sequence[Backend], limit: float) -> Iterator[Moment]:
    """Let nothing be written to the volumes through the `with` block, or at least not unnoticed.

    Filesystems in use are frozen, for `limit` seconds at most. Of volumes in use that cannot be
    frozen there may be one: it is copied at one point in time, at which the others stand still.
    """
    with contextlib.ExitStack() as turns:
        # In one order for all, or two could wait for each other.
        for source in sorted(sources, key=lambda item: item.volume.id):
            turns.enter_context(pools.turns.ready(source))
        _refuse_restless(sources)
        try:
            with frozen(list(_to_freeze(pools, sources)), limit) as moment:
                yield moment
        except OverdueError:
            raise FailedPrecondition(_overdue(pools, sources, limit)) from None


def _refuse_restless(sources: Sequence[Backend]) -> None:
    restless = [source for source in sources if not source.freezable() and source.written_at()]
    if len(restless) > 1:
        names = ", ".join(source.volume.id for source in restless)
        raise FailedPrecondition(
            f"volumes in use that cannot be frozen: {names}. There can be one in a group: the "
            "others need a filesystem of their own (type: image), or must not be in use"
        )


def _to_freeze(pools: Pools, sources: Sequence[Backend]) -> Iterator[Frozen]:
    for source in sources:
        if source.freezable():
            pool, _ = pools.need(source.volume.id)
            yield pool.to_freeze(source)


def _overdue(pools: Pools, sources: Sequence[Backend], limit: float) -> str:
    quick = [f"{pool.name} ({pool.mount.fstype})" for pool in pools if pool.reflinks]
    sizes = ", ".join(f"{item.volume.id} ({show(item.occupied())})" for item in sources)
    there = f"{' or '.join(quick)} would" if quick else "one on XFS or btrfs would"
    return (
        f"the copy of {sizes} took longer than freeze-limit, {limit:g} s, for which the filesystem "
        f"may be frozen: no blocks could be shared. In one and the same pool {there} do it at "
        "once. Or copy the volume while it is not staged, or raise the pool's freeze-limit"
    )


# Filling volumes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A source that was found: its pool, and the volume that it is, or was taken of."""

    pool: Pool
    volume: Volume


def find_source(pools: Pools, source: Source) -> Origin:
    """Return the source; `NotFound`, or `ResourceExhausted` where another node has it."""
    if source.kind is SourceKind.SNAPSHOT:
        if found := pools.find_snapshot(source.id, sure=True):
            return Origin(pool=found[0], volume=found[1].volume)
    elif held := pools.find(source.id, sure=True):
        return Origin(pool=held[0], volume=held[1])
    if node := pools.elsewhere(source.id):
        # So that a scheduler asks the driver on another node.
        raise ResourceExhausted(
            f"{source} is on node {node}, and data is copied on one node only; this is node "
            f"{pools.node}"
        )
    raise NotFound(f"volume_content_source: there is no {source} on node {pools.node}")


def room_to_fill(source: Source, origin: Origin) -> int:
    """Return how much room a volume takes while it is made from `source`, beside its own.

    A thick volume may be written anew while a clone shares its blocks, until they are copied.
    """
    shared = source.kind is SourceKind.VOLUME and origin.volume.thick and origin.pool.reflinks
    return origin.volume.capacity if shared else 0


def filler(
    pools: Pools, locks: Locks, source: Source, origin: Origin
) -> Callable[[Backend], int | None]:
    """Return what fills a new volume from `source`, which was found as `origin`.

    It returns the project id. `Aborted` where the source is not the same any more.
    """

    def from_snapshot(new: Backend) -> int | None:
        with locks.share(snapshot_key(source.id)):
            pool, snapshot = pools.need_snapshot(source.id)
            _refuse_changed(source, origin.volume, snapshot.volume)
            pool.check(writable=False)
            return new.restore(pool.backend_of(snapshot), lambda: None)

    def from_volume(new: Backend) -> int | None:
        with locks.share(source.id):
            pool, volume = pools.need(source.id)
            _refuse_changed(source, origin.volume, volume)
            pool.check()
            original = pool.backend(volume)
            with still(pools, [original], pool.config.freeze_limit) as moment:
                return new.restore(original, moment.check)

    def fill(new: Backend) -> int | None:
        fetch = from_snapshot if source.kind is SourceKind.SNAPSHOT else from_volume
        project = fetch(new)
        new.adapt(origin.volume, project)
        return project

    return fill


def _refuse_changed(source: Source, before: Volume, now: Volume) -> None:
    """Refuse a source that has grown, or was replaced, since the new volume's size was decided."""
    if (now.created, now.capacity) != (before.created, before.capacity):
        raise Aborted(f"{source} was changed meanwhile; try again")
