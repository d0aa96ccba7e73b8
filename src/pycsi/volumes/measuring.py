"""Volumes' usage and health where they are staged or published, also where that does not answer."""

import contextlib
import functools
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pycsi.backends.limits import LimitError, filesystem_usage
from pycsi.linux.kernel import KernelView
from pycsi.linux.waiting import PATIENCE, NoAnswerError, NotAskedError, call, collect
from pycsi.model.health import Fault, Reason, ranked
from pycsi.model.records import Usage, Volume, VolumeType
from pycsi.pool.pool import Pool
from pycsi.volumes.health import Faults, Located, asked, faults_if_examined, faults_of
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.publishing import Publisher

_LONGEST_WAIT = 2 * PATIENCE
"""Seconds to wait for mounts that do not answer, for all volumes together."""


def measure(
    pools: Pools, publisher: Publisher, locks: Locks, volume_id: str, path: str
) -> tuple[Usage | None, Faults | None]:
    """Return a volume's usage at `path`, and its faults as `faults_if_examined` does.

    The usage is None if a fault keeps it from being measured. `NotFound` if the volume is not
    staged or published there.
    """
    own_id = pools.own_id(volume_id)
    known = pools.find(own_id, inline=own_id != volume_id)
    faults = faults_if_examined(*known, locks) if known else ()
    if faults and any(fault.reason is Reason.POOL_NOT_RESPONDING for fault in faults):
        return None, faults
    try:
        usage = asked(path, lambda: _usage(publisher, volume_id, path, well=not faults))
    except NoAnswerError:
        return None, ranked([*(faults or ()), _silent(path)])
    return usage, faults


def faults_at(pools: Pools, locks: Locks, volume_id: str, paths: Mapping[str, str]) -> Faults:
    """Return the faults of a volume, persistent or inline, also that a path does not answer.

    `paths` are those of the request, by field; the volume need not be there. `InvalidArgument` for
    a path at which no volume can be. Other errors as `Pools.need_here` and `faults_of` raise them.
    """
    silent = []
    for field, path in paths.items():
        try:
            asked(path, functools.partial(pools.path_outside, path, field))
        except NoAnswerError:
            silent.append(_silent(path))
    own_id = pools.own_id(volume_id)
    found = pools.find(own_id, sure=True, inline=own_id != volume_id)
    return ranked([*faults_of(*(found or pools.need_here(volume_id)), locks), *silent])


def _silent(path: str) -> Fault:
    return Fault(Reason.NOT_RESPONDING, f"it does not answer at {path}")


def _usage(publisher: Publisher, volume_id: str, path: str, *, well: bool) -> Usage | None:
    """Return a volume's usage at `path`; None if it was lost there, or cannot be measured.

    `OSError` if it cannot be measured although it is `well`.
    """
    found, usage = publisher.locate(volume_id, path, lost=True), None
    try:
        if not (found.lost or found.away):
            usage = found.backend.usage(Path(path))
    except OSError:
        if well:
            publisher.locate(volume_id, path)
            raise
    # The volume is not locked here. If it was unpublished in the meantime, the usage may be that of
    # another filesystem at this path, so look again.
    publisher.locate(volume_id, path, lost=True)
    return usage


def usages(volumes: Iterable[Located], kernel: KernelView) -> dict[str, Usage]:
    """Return the usage of volumes, which come with their pools, by id, wherever they are mounted.

    It is known of directories with a limit, and of images whose filesystem is mounted; of others,
    and of what does not answer, there is none.
    """
    found: dict[str, Usage] = {}
    mounts: dict[str, Path] = {}
    for pool, those in _by_pool(volumes).values():
        with contextlib.suppress(NoAnswerError, NotAskedError, OSError):
            for volume_id, seen in collect(str(pool.config.path), _seen(pool, those, kernel)):
                if isinstance(seen, Usage):
                    found[volume_id] = seen
                elif seen:
                    mounts[volume_id] = seen
    waited = 0.0
    for volume_id, place in mounts.items():
        begin = time.monotonic()
        try:
            found[volume_id] = call(str(place), functools.partial(filesystem_usage, place))
        except NoAnswerError:
            waited += time.monotonic() - begin
        except (NotAskedError, OSError):
            continue
        if waited > _LONGEST_WAIT:
            break
    return found


def _by_pool(volumes: Iterable[Located]) -> dict[str, tuple[Pool, list[Volume]]]:
    found: dict[str, tuple[Pool, list[Volume]]] = {}
    for pool, volume in volumes:
        found.setdefault(pool.name, (pool, []))[1].append(volume)
    return found


def _seen(
    pool: Pool, volumes: Iterable[Volume], kernel: KernelView
) -> Iterator[tuple[str, Usage | Path | None]]:
    """Yield the volumes' usage, or where to ask their own filesystems.

    The pool's thread runs this.
    """
    counts = pool.limiter.fault() is None
    for volume in volumes:
        backend = pool.backend(volume, kernel)
        seen: Usage | Path | None = None
        with contextlib.suppress(OSError, LimitError):  # gone, or nothing counts it
            if volume.filesystem:
                mounts = (item.target for item in backend.mounts() if backend.is_seen(item.target))
                seen = next(map(Path, mounts), None)
            elif volume.type is VolumeType.DIRECTORY and volume.enforced and counts:
                seen = pool.limiter.usage(backend.content, volume.project, volume.capacity)
        yield volume.id, seen
