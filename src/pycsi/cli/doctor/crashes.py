"""What a killed driver has left, and the next one cleans up; and what nobody has cleaned up."""

import functools
from collections.abc import Iterator

from pycsi.backends.filesystem import FilesystemImage
from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding, Mend
from pycsi.cli.doctor.look import Look
from pycsi.cli.doctor.mending import settle, sweep
from pycsi.model.errors import FailedPrecondition
from pycsi.model.ids import node_of
from pycsi.model.records import Group, Volume
from pycsi.pool.groups import recorded_groups
from pycsi.pool.trash import Entry

_OVERDUE = 3600.0
"""Seconds that a deletion may take to be carried out."""

_UNFROZEN = 60.0
"""Seconds after the longest freeze in which a driver has surely thawed."""


def check(look: Look) -> Iterator[Finding | None]:
    """Yield what is left of operations that did not end."""
    yield from _builds(look)
    yield from _frozen(look)
    yield from _growths(look)
    yield from _groups(look)
    for entry in look.seen.trash:
        yield _overdue(look, entry)


def _builds(look: Look) -> Iterator[Finding]:
    tmp = look.seen.layout.tmp
    left = sorted(tmp.iterdir()) if tmp.is_dir() and not look.served else []
    if left:
        count = f"{len(left)} unfinished build{'s' if len(left) > 1 else ''}"
        yield look.finding(
            Code.BUILD_UNFINISHED,
            tmp,
            f"pool {look.name}: {count} of a killed driver {'are' if left[1:] else 'is'} left in "
            f"{tmp}, such as {left[0].name}",
            commands.doctor(look.given),
            sweep(look.given),
        )


def _frozen(look: Look) -> Iterator[Finding]:
    folder = look.seen.layout.frozen
    for marker in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            since = marker.stat().st_mtime
        except FileNotFoundError:  # thawed since
            continue
        volume = look.volumes.get(marker.name)
        mounts = look.seen.backend(volume, look.kernel).mounts() if volume else []
        left = "the marker of the freeze is left"
        if mounts:
            left = f"its filesystem at {mounts[0].target} may still be frozen: whoever writes waits"
        if not look.served:
            yield look.finding(
                Code.FROZEN_AFTER_CRASH,
                marker.name,
                f"a driver was killed while it took a snapshot of volume {marker.name}, and {left}",
                commands.doctor(look.given),
                sweep(look.given),
            )
        elif look.now - since > look.seen.config.freeze_limit + _UNFROZEN:
            removed = commands.typed("rm", marker)
            thaw = commands.typed("fsfreeze", "--unfreeze", mounts[0].target) if mounts else ""
            yield look.finding(
                Code.FROZEN_AFTER_CRASH,
                marker.name,
                f"the driver runs, and does not end the freeze of volume {marker.name}: {left}",
                f"{thaw} && {removed}" if thaw else removed,
            )


def _growths(look: Look) -> Iterator[Finding | None]:
    for backend in look.backends():
        yield None
        if not isinstance(backend, FilesystemImage):
            continue
        since = backend.growth.interrupted_since()
        if since is None or not look.is_settled(since):
            continue
        volume_id = backend.volume.id
        yield look.finding(
            Code.GROWTH_INTERRUPTED,
            volume_id,
            f"the growth of the ext4 of volume {volume_id} was interrupted; it is undone before "
            "the volume is mounted next, and then tried again",
            commands.doctor(look.given),
            Mend(
                text=f"undo the interrupted growth of {volume_id}",
                act=functools.partial(_undo, look, backend.volume),
            ),
        )


def _undo(look: Look, volume: Volume) -> None:
    image = look.seen.backend(volume)
    if holder := image.holder():
        raise FailedPrecondition(f"it is in use as {holder}")
    if isinstance(image, FilesystemImage):
        image.growth.undo()


def _groups(look: Look) -> Iterator[Finding | None]:
    layout = look.seen.layout
    unrecorded = {
        snapshot.group
        for snapshot in look.snapshots()
        if snapshot.group
        and look.is_settled(snapshot.created)
        and not layout.group(snapshot.group).exists()
    }
    for group_id in sorted(unrecorded):
        yield look.finding(
            Code.GROUP_UNFINISHED,
            group_id,
            f"group snapshot {group_id} has members in pool {look.name}, but no record: it was "
            "never whole, or is half deleted, and the driver deletes its members when it starts",
            commands.doctor(look.given),
            None if look.served else settle(look.given),
        )
    there = {snapshot.id for snapshot in look.snapshots()} | look.seen.snapshots.unreadable.keys()
    for group in recorded_groups(layout) if layout.groups.is_dir() else ():
        yield _incomplete(look, group, there)
        if group.prepared and look.is_settled(group.created):
            yield _in_doubt(look, group)


def _incomplete(look: Look, group: Group, there: set[str]) -> Finding | None:
    """Return a finding if a group's record names members that this pool does not have."""
    ours = {member for member, pool in group.members.items() if pool == look.seen.uuid}
    lost = sorted(ours - there)
    record = look.seen.layout.group(group.id)
    if not lost or not record.exists():
        return None
    return look.finding(
        Code.GROUP_UNFINISHED,
        group.id,
        f"group snapshot {group.id} has lost {lost[0]}; to delete what is left of it, stop the "
        "driver first",
        commands.ungroup(look.given, record),
    )


def _in_doubt(look: Look, group: Group) -> Finding:
    if group.at_coordinator and not look.served:
        return look.finding(
            Code.GROUP_IN_DOUBT,
            group.id,
            f"group snapshot {group.id} was prepared and never committed; the driver deletes it "
            "when it starts",
            commands.doctor(look.given),
            settle(look.given),
        )
    return look.finding(
        Code.GROUP_IN_DOUBT,
        group.id,
        f"the part of group snapshot {group.id} on this node waits for a controller to tell what "
        f"node {node_of(group.id)} has decided",
        "kubectl -n pycsi-system rollout restart deployment/pycsi-controller",
    )


def _overdue(look: Look, entry: Entry) -> Finding | None:
    """Return a finding if an entry of the trash should have been freed long ago."""
    try:
        since = entry.deleted or entry.path.stat().st_ctime
    except FileNotFoundError:
        return None  # freed since
    due = max(entry.due(look.seen.config.retain_for), since)
    if look.now - due < _OVERDUE:
        return None
    return look.finding(
        Code.TRASH_NOT_EMPTIED,
        entry.path.name,
        f"{entry.path.name} in the trash of pool {look.name} should have been freed "
        f"{int(look.now - due) // 3600} h ago",
        look.pycsi("trash", "empty", entry.path.name, "--yes"),
    )
