"""Taking snapshots of volumes at one point in time, step by step: all of them, or none."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence

import structlog

from pycsi.backends import Backend
from pycsi.model.errors import CsiError
from pycsi.model.records import Group, Snapshot, Volume
from pycsi.model.trace import about, phase
from pycsi.pool.changing import delete_snapshot
from pycsi.pool.freezing import FreezeWindow
from pycsi.pool.pool import Build, Pool
from pycsi.volumes import groups
from pycsi.volumes.pools import Pools
from pycsi.volumes.quiescing import (
    held_still,
    prepared,
    refuse_unfreezable,
    unfreezable,
    write_back_freezable,
)

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


@dataclasses.dataclass(frozen=True, slots=True)
class _Copy:
    """A snapshot that is being taken of `source`; its own `data` is in the directory of `build`."""

    new: NewSnapshot
    source: Backend
    build: Build
    data: Backend


class Take:
    """Snapshots that are being taken: prepare the volumes, hold them still, capture, commit.

    The caller shares the locks of the volumes, and holds those of the snapshots.
    """

    def __init__(self, pools: Pools, copies: Sequence[_Copy]) -> None:
        self._pools = pools
        self._copies = copies
        self._volumes = [(copy.new.pool, copy.source) for copy in copies]
        self.limit = min(copy.new.pool.config.freeze_limit for copy in copies)
        """The seconds for which the volumes may be held still."""

    @property
    def members(self) -> dict[str, str]:
        """The ids of the snapshots, with the UUIDs of their pools."""
        return {copy.new.id: copy.new.pool.uuid for copy in self._copies}

    def prepared(self) -> contextlib.AbstractContextManager[None]:
        """Prepare the volumes for being copied in the `with` block."""
        return prepared(self._pools, self._volumes)

    def unfreezable(self) -> list[str]:
        """Return the ids of the prepared volumes that are in use and cannot be frozen."""
        return unfreezable(self._volumes)

    def write_back(self) -> None:
        """Write to disk what is dirty in the prepared volumes, to shorten the freeze."""
        write_back_freezable(self._volumes)

    def held_still(self) -> contextlib.AbstractContextManager[FreezeWindow]:
        """Keep the prepared volumes from being written to in the `with` block."""
        return held_still(self._pools, self._volumes, self.limit)

    def capture(self, window: FreezeWindow) -> None:
        """Copy the volumes, which are held still for the time of `window`."""
        for copy in self._copies:
            with phase("copy"):
                about(volume_id=copy.new.volume.id, pool=copy.new.pool.name)
                copy.data.capture(copy.source, window.check, point_in_time=copy.new.point_in_time)
        window.check()

    def commit(self, created: float, group: Group | None = None) -> list[Snapshot]:
        """Commit the captured snapshots and their group, durably: all, or none and an error.

        `created` is the point in time, in seconds since the epoch. The snapshots of a group that is
        prepared stay hidden.
        """
        committed: list[Snapshot] = []
        try:
            for copy in self._copies:
                with phase("commit"):
                    copy.data.finish_capture()
                    snapshot = copy.new.record(created, copy.data.occupied())
                    copy.new.pool.commit_snapshot(copy.build, snapshot)
                committed.append(snapshot)
            if group:
                _record_group(self._pools, group)
        except BaseException:
            self._take_back(committed)
            raise
        hidden = group is not None and group.prepared
        for copy, snapshot in zip(self._copies, committed, strict=True):
            copy.new.pool.index_snapshot(copy.build, snapshot, hidden=hidden)
        if group:
            for pool in groups.pools_of(group, self._pools):
                pool.groups.index(group)
        return committed

    def _take_back(self, committed: Sequence[Snapshot]) -> None:
        for copy, snapshot in zip(self._copies, committed, strict=False):
            try:
                delete_snapshot(copy.new.pool, snapshot.id)
            except (OSError, CsiError) as error:
                log.warning("cannot be taken back now", snapshot=snapshot.id, error=str(error))


@contextlib.contextmanager
def taking(pools: Pools, snapshots: Sequence[NewSnapshot]) -> Iterator[Take]:
    """Reserve the room for snapshots that are taken in the `with` block, and begin to build them.

    What is not committed when the block ends is deleted.
    """
    sources = [new.pool.backend(new.volume) for new in snapshots]
    for new in snapshots:
        new.pool.check()
    with contextlib.ExitStack() as builds:
        copies = []
        for new, source in zip(snapshots, sources, strict=True):
            build = builds.enter_context(
                new.pool.build_snapshot(new.id, _room_for(source), thick=new.volume.thick)
            )
            data = new.pool.backend(new.recorded, place=build.directory)
            copies.append(_Copy(new, source, build, data))
        yield Take(pools, copies)


def take(
    pools: Pools, snapshots: Sequence[NewSnapshot], group: Group | None = None
) -> list[Snapshot]:
    """Take snapshots of one point in time, durably: either all, or none and an error.

    They are members of `group`, if one is given; it gets their point in time. The caller holds the
    locks that `Take` names.
    """
    with taking(pools, snapshots) as begun:
        with begun.prepared():
            refuse_unfreezable(begun.unfreezable())
            with begun.held_still() as window:
                created = time.time()
                begun.capture(window)
        return begun.commit(created, group and dataclasses.replace(group, created=created))


def _room_for(source: Backend) -> int:
    """Return the bytes of the pool that a snapshot needs while it is taken.

    A thick volume in use may be overwritten while the snapshot still shares its blocks, before they
    are copied, so it may need its own bytes twice.
    """
    written = source.volume.thick and source.shares_blocks and source.written_at() is not None
    return source.occupied() * (2 if written else 1)


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
