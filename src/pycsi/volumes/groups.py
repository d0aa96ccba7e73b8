"""Deleting group snapshots, whose members may lie in several pools, whole even after a crash."""

import contextlib
import functools
from collections.abc import Iterable

import structlog

from pycsi.model.errors import CsiError, retry
from pycsi.model.records import Group
from pycsi.pool.changing import delete_snapshot
from pycsi.pool.pool import Pool

log = structlog.get_logger()


def pools_of(group: Group, pools: Iterable[Pool]) -> list[Pool]:
    """Return the pools, of `pools`, that have members of a group."""
    return [pool for pool in pools if pool.uuid in group.members.values()]


def delete_partial(pools: list[Pool], of: Pool | None = None) -> None:
    """Delete the incomplete groups that a crash has left in `pools`; if given, only those in `of`.

    Errors are logged; the next start tries again.
    """
    try:
        for group in [group for pool in pools for group in pool.groups]:
            theirs = pools_of(group, pools)
            whole = all(pool.groups.is_recorded(group.id) for pool in theirs)
            if not whole and (of is None or of in theirs):
                log.warning("a group snapshot is not whole and is deleted", group=group.id)
                delete(group, theirs)
        for pool in pools if of is None else [of]:
            for snapshot in pool.snapshots:
                # An unreadable record counts too: it is no reason to delete the members.
                if snapshot.group and not pool.groups.is_recorded(snapshot.group):
                    delete_snapshot(pool, snapshot.id)
    except (OSError, CsiError) as error:
        log.warning("parts of group snapshots cannot be deleted now", error=str(error))


def delete(group: Group, pools: Iterable[Pool]) -> None:
    """Delete a group snapshot with its members in `pools`.

    The records are deleted first: members without their group's record are deleted at the next
    start. If this fails while all members are there, the records are written again.
    """
    theirs = {pool.uuid: pool for pool in pools}
    members = [(theirs[at], member) for member, at in group.members.items() if at in theirs]
    try:
        for pool in theirs.values():
            pool.check()
            pool.deletions.note("group", group.id, pool.missing())
            pool.groups.delete(group.id)
        for number, (pool, member) in enumerate(members):
            delete = functools.partial(delete_snapshot, pool, member)
            if number:
                retry(delete)  # the first member is deleted, so the others have to follow
            else:
                delete()
    except BaseException:
        if all(member in pool.snapshots for pool, member in members):
            with contextlib.suppress(OSError, CsiError):
                for pool in theirs.values():
                    pool.check()
                    pool.groups.write(group)
        raise
    for pool in theirs.values():  # last: if a member cannot be deleted, the call can be repeated
        pool.groups.drop(group.id)
