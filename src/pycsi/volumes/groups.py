"""Group snapshots that lie in several pools: deleted whole, also after a crash."""

import contextlib
import functools
from collections.abc import Iterable

import structlog

from pycsi.model.errors import CsiError, retry
from pycsi.model.records import Group
from pycsi.pool.pool import Pool

log = structlog.get_logger()


def having(group: Group, pools: Iterable[Pool]) -> list[Pool]:
    """Return those of `pools` that have members of a group."""
    return [pool for pool in pools if pool.uuid in group.members.values()]


def delete_partial(pools: list[Pool], of: Pool | None = None) -> None:
    """Delete what a crash has left of groups in `pools`; only of groups in `of`, if given."""
    try:
        for group in [group for pool in pools for group in pool.groups]:
            theirs = having(group, pools)
            whole = all(pool.groups.is_recorded(group.id) for pool in theirs)
            if not whole and (of is None or of in theirs):
                log.warning("a group snapshot is not whole and is deleted", group=group.id)
                delete(group, theirs)
        for pool in pools if of is None else [of]:
            for snapshot in pool.snapshots:
                # By the record's name: one that cannot be read is no reason to delete anything.
                if snapshot.group and not pool.groups.is_recorded(snapshot.group):
                    pool.delete_snapshot(snapshot.id)
    except (OSError, CsiError) as error:
        log.warning("parts of group snapshots cannot be deleted now", error=str(error))


def delete(group: Group, pools: Iterable[Pool]) -> None:
    """Delete a group snapshot with its members in `pools`.

    The records go first: a member without its group's record is deleted at the next start.
    """
    theirs = {pool.uuid: pool for pool in pools}
    members = [(theirs[at], member) for member, at in group.members.items() if at in theirs]
    try:
        for pool in theirs.values():
            pool.check()
            pool.deletions.note("group", group.id, pool.missing())
            pool.groups.delete(group.id)
        for number, (pool, member) in enumerate(members):
            delete = functools.partial(pool.delete_snapshot, member)
            if number:
                retry(delete)  # the first one has gone, and does not come back
            else:
                delete()
    except BaseException:
        if all(member in pool.snapshots for pool, member in members):
            with contextlib.suppress(OSError, CsiError):
                for pool in theirs.values():
                    pool.check()
                    pool.groups.write(group)
        raise
    for pool in theirs.values():  # only now: if a member cannot be deleted it is tried again
        pool.groups.drop(group.id)
