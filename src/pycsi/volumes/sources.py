"""Sources of volumes: the snapshot or the volume that a new volume is filled from."""

import dataclasses
from collections.abc import Callable

from pycsi.backends import Backend
from pycsi.model.errors import Aborted, NotFound, ResourceExhausted
from pycsi.model.records import Volume
from pycsi.model.request import Source, SourceKind
from pycsi.model.trace import phase
from pycsi.pool.pool import Pool
from pycsi.volumes.locks import Locks, snapshot_key
from pycsi.volumes.pools import Pools
from pycsi.volumes.quiescing import quiesced


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoundSource:
    """A source that was found: its pool, and the volume that it is, or that it is a snapshot of."""

    source: Source
    pool: Pool
    volume: Volume


def find_source(pools: Pools, source: Source) -> FoundSource:
    """Return a source; `NotFound`, or `ResourceExhausted` if it is on another node."""
    if source.kind is SourceKind.SNAPSHOT:
        if found := pools.find_snapshot(source.id, sure=True):
            return FoundSource(source=source, pool=found[0], volume=found[1].volume)
    elif held := pools.find(source.id, sure=True):
        return FoundSource(source=source, pool=held[0], volume=held[1])
    if node := pools.elsewhere(source.id):
        # On this status a scheduler tries another node.
        raise ResourceExhausted(
            f"{source} is on node {node}, and data is copied on one node only; this is node "
            f"{pools.node}"
        )
    raise NotFound(f"volume_content_source: there is no {source} on node {pools.node}")


def extra_room(found: FoundSource) -> int:
    """Return the bytes that a volume needs beyond its size while it is made from its source.

    A thick source volume may be overwritten while the clone still shares its blocks, before they
    are copied, so it may need its own bytes twice.
    """
    is_clone = found.source.kind is SourceKind.VOLUME
    shared = is_clone and found.volume.thick and found.pool.reflinks
    return found.volume.held if shared else 0


def filler(pools: Pools, locks: Locks, found: FoundSource) -> Callable[[Backend], int | None]:
    """Return the function that fills a new volume from its source, for `Pool.create`.

    It returns the project id, and raises `Aborted` if the source has changed since it was found.
    """
    source = found.source

    def from_snapshot(new: Backend) -> int | None:
        with locks.share(snapshot_key(source.id)):
            pool, snapshot = pools.need_snapshot(source.id)
            _refuse_changed(source, found.volume, snapshot.volume)
            pool.check(writable=False)
            return new.restore(pool.backend_of(snapshot), lambda: None)

    def from_volume(new: Backend) -> int | None:
        with locks.share(source.id):
            pool, volume = pools.need(source.id)
            _refuse_changed(source, found.volume, volume)
            pool.check()
            original = pool.backend(volume)
            with quiesced(pools, [(pool, original)], pool.config.freeze_limit) as window:
                return new.restore(original, window.check)

    def fill(new: Backend) -> int | None:
        restore = from_snapshot if source.kind is SourceKind.SNAPSHOT else from_volume
        with phase("copy"):
            project = restore(new)
        with phase("adapt"):
            new.finish_restore(found.volume, project)
        return project

    return fill


def _refuse_changed(source: Source, before: Volume, now: Volume) -> None:
    """Raise `Aborted` if a source has grown or was replaced since the new size was chosen."""
    if (now.created, now.capacity) != (before.created, before.capacity):
        raise Aborted(f"{source} was changed meanwhile; try again")
