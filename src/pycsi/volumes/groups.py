"""Group snapshots, whose members may lie in several pools: whole even after a crash."""

import contextlib
import dataclasses
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


def settle(pools: list[Pool], of: Pool | None = None) -> None:
    """Settle what a crash has left of groups in `pools`; if given, only of those in `of`.

    Incomplete groups are deleted. A part of a group over several nodes that is committed in one
    pool is committed in all. The coordinator's part that is prepared only is deleted: nobody can
    have committed. Other nodes' parts stay as they are: their coordinator has decided. Errors are
    logged; the next start tries again.
    """
    try:
        for group in {group.id: group for pool in pools for group in pool.groups}.values():
            if of is None or of in pools_of(group, pools):
                _settle(group, pools)
        for pool in pools if of is None else [of]:
            for snapshot in (*pool.snapshots, *pool.snapshots.hidden()):
                # An unreadable record counts too: it is no reason to delete the members.
                if snapshot.group and not pool.groups.is_recorded(snapshot.group):
                    delete_snapshot(pool, snapshot.id)
    except (OSError, CsiError) as error:
        log.warning("parts of group snapshots cannot be settled now", error=str(error))


def _settle(group: Group, pools: list[Pool]) -> None:
    theirs = pools_of(group, pools)
    known = [found for pool in theirs if (found := pool.groups.get(group.id))]
    if not all(pool.groups.is_recorded(group.id) for pool in theirs):
        log.warning("a group snapshot is not whole and is deleted", group=group.id)
        delete(group, theirs)
    elif len(known) < len(theirs) or not any(found.prepared for found in known):
        return  # a record that cannot be read may be a committed one
    elif not all(found.prepared for found in known):
        commit(group, theirs)
    elif group.at_coordinator and not _lacks(group, pools):
        log.warning("a group snapshot was not committed and is deleted", group=group.id)
        delete(group, theirs)


def _lacks(group: Group, pools: list[Pool]) -> bool:
    """Tell whether a pool that is missing may have members of a group."""
    missing = set(pools[0].missing()) - {pool.name for pool in pools}
    return bool(missing) and not set(group.members.values()) <= {pool.uuid for pool in pools}


def commit(group: Group, pools: Iterable[Pool]) -> Group:
    """Commit the prepared part of a group in `pools`, durably: from then on its snapshots exist.

    If this fails it can be repeated. Return the part as it is then.
    """
    committed = dataclasses.replace(group, prepared=False)
    theirs = pools_of(group, pools)
    for pool in theirs:
        pool.check()
        with pool.room.explaining_full_disk():
            pool.groups.write(committed)
    for pool in theirs:
        for member, at in group.members.items():
            if at == pool.uuid:
                pool.snapshots.show(member)
        pool.groups.index(committed)
    return committed


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
