"""A volume's usage and health where it is staged or published, also where that does not answer."""

import functools
from collections.abc import Mapping
from pathlib import Path

from pycsi.linux.waiting import NoAnswerError
from pycsi.model.health import Fault, Reason, ranked
from pycsi.model.records import Usage
from pycsi.volumes.health import Faults, asked, faults_if_examined, faults_of
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools
from pycsi.volumes.publishing import Publisher


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
