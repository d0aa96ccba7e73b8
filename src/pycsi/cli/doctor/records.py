"""Records that cannot be read, data without them, and what lies in the wrong pool."""

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pycsi.backends import Backend
from pycsi.backends.directory import Directory
from pycsi.backends.image import Image
from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding, Mend
from pycsi.cli.doctor.look import Look
from pycsi.cli.doctor.mending import locked
from pycsi.cli.doctor.refusals import is_newer, raw
from pycsi.linux.record import read_record
from pycsi.model.errors import FailedPrecondition
from pycsi.model.ids import node_of
from pycsi.model.records import Attachment, Group, Volume
from pycsi.pool.catalog import UNREADABLE, Catalog
from pycsi.pool.layout import (
    ATTACHMENT_RECORD,
    NOTES_RECORD,
    SNAPSHOT_RECORD,
    VOLUME_RECORD,
    write_first_notes,
)
from pycsi.volumes.notes import Notes
from pycsi.volumes.staging import Staging

_DATA = frozenset({Directory.NAME, Image.NAME})


def check(look: Look) -> Iterator[Finding | None]:
    """Yield what is wrong with the records of a pool."""
    yield from _own(look)
    for what, catalog, record in (
        ("volume", look.seen.volumes, VOLUME_RECORD),
        ("snapshot", look.seen.snapshots, SNAPSHOT_RECORD),
    ):
        yield from _unknown(look, catalog)
        for name in filter(node_of, catalog.unreadable):
            place = Path(catalog.place(name))
            yield _covered(look, what, place) or _unreadable(look, what, place, record)
    for volume in look.volumes.values():
        yield from _of_volume(look, volume)
    yield from _snapshots(look)
    yield from _groups(look)
    yield from _trash(look)


def _damaged(look: Look, record: Path, command: str, what: str) -> Finding:
    data = raw(record)
    if is_newer(data):
        return look.finding(
            Code.RECORD_NEWER,
            record,
            f"{record} was written by a newer version; install that version",
            "pip install --upgrade pycsi-driver",
        )
    return look.finding(Code.RECORD_DAMAGED, record, f"{record} cannot be read; {what}", command)


def _own(look: Look) -> Iterator[Finding]:
    """Yield which of the pool's own records cannot be read; the driver makes them anew."""
    layout = look.seen.layout
    for record, what, key in (
        (layout.options, "the driver writes the pool's options again when it starts", "options"),
        (
            layout.root / "projects.json",
            "without it project ids are handed out from the first again, but for those in use",
            "next",
        ),
    ):
        try:
            read_record(record)[key]
        except FileNotFoundError:
            continue
        except (*UNREADABLE, IndexError):
            yield _damaged(look, record, commands.typed("rm", record), what)


def _unknown(look: Look, catalog: Catalog[Any]) -> Iterator[Finding]:
    for place in sorted(catalog.folder.iterdir()) if catalog.folder.is_dir() else ():
        if (node_of(place.name) and place.is_dir()) or not os.path.lexists(place):
            continue
        yield look.finding(
            Code.UNKNOWN_ENTRY,
            place,
            f"{place} is not the driver's; move it away; {commands.ELSEWHERE}",
            _move(place),
        )


def _move(place: Path) -> str:
    return f"mv {shlex.quote(str(place))} ELSEWHERE"


def _covered(look: Look, what: str, place: Path) -> Finding | None:
    """Return a finding if a record is not to be seen because something is mounted over it."""
    real = look.seen.location.real(str(place))
    seen = look.kernel.mounts.topmost(real)
    if seen is None:
        return None
    return look.finding(
        Code.MOUNT_REPLACED,
        place.name,
        f"{seen.fstype} {seen.source} is mounted over {what} {place.name}, at {real}",
        commands.typed("umount", real),
    )


def _unreadable(look: Look, what: str, place: Path, record: str) -> Finding | None:
    """Return what is wrong with a volume or snapshot whose record cannot be read."""
    try:
        names = {entry.name for entry in place.iterdir()}
    except (NotADirectoryError, FileNotFoundError):
        return None  # it is unknown, or deleted since
    if not names:
        return look.finding(
            Code.RECORD_MISSING,
            place.name,
            f"{place} is an empty directory: {what} {place.name} has neither record nor data",
            commands.typed("rmdir", place),
        )
    if record not in names or not names & _DATA:
        lacks = "record" if record not in names else "data, nor a record that can be read"
        return look.finding(
            Code.RECORD_MISSING,
            place.name,
            f"{what} {place.name} has no {lacks}: restore {place / record} from a backup, or move "
            f"the directory away; {commands.ELSEWHERE}",
            _move(place),
        )
    return _misnamed(look, what, place, raw(place / record)) or _damaged(
        look,
        place / record,
        _move(place),
        f"restore it from a backup, or move the directory of {what} {place.name} away, with its "
        f"data; {commands.ELSEWHERE}",
    )


def _misnamed(look: Look, what: str, place: Path, data: Mapping[str, Any]) -> Finding | None:
    """Return a finding if a directory has another name than the volume or snapshot in it."""
    owner = data.get("id")
    if not isinstance(owner, str) or not node_of(owner) or owner == place.name:
        return None
    home = place.parent / owner
    free = not os.path.lexists(home)
    taken = f"; that is there too, so move this away; {commands.ELSEWHERE}"
    return look.finding(
        Code.RECORD_DAMAGED,
        place,
        f"{place} is the directory of {what} {owner}, under another name{'' if free else taken}",
        commands.typed("mv", "-T", place, home) if free else _move(place),
    )


def _of_volume(look: Look, volume: Volume) -> Iterator[Finding | None]:
    place = Path(look.seen.volumes.place(volume.id))
    if volume.pool_uuid != look.seen.uuid:
        yield look.finding(
            Code.VOLUME_OF_ANOTHER_POOL,
            volume.id,
            f"volume {volume.id} was copied from pool {volume.pool_uuid}; move {place} away; "
            f"{commands.ELSEWHERE}",
            _move(place),
        )
    attachment = place / ATTACHMENT_RECORD
    try:
        Attachment.from_json(read_record(attachment))
    except FileNotFoundError:
        pass
    except UNREADABLE:
        what = f"volume {volume.id} counts as not attached"
        yield _damaged(look, attachment, commands.typed("rm", attachment), what)
    yield _lost_notes(look, look.seen.backend(volume, look.kernel))


def _lost_notes(look: Look, backend: Backend) -> Finding | None:
    notes = Notes(backend.where)
    if not notes.lost or notes.failure or not Path(backend.where).is_dir():
        return None
    record, volume_id = f"{backend.where}/{NOTES_RECORD}", backend.volume.id
    targets = [item.target for item in backend.mounts()]
    if targets or backend.is_staged(""):
        command, placeholder = commands.stage_anew(look.given, volume_id, targets)
        return look.finding(
            Code.NOTES_LOST,
            volume_id,
            f"the notes of volume {volume_id}, which is in use, are lost; stage it anew"
            f"{placeholder}",
            command,
        )

    def write() -> None:
        with locked(look.given):
            now = look.seen.backend(backend.volume)  # with what the kernel has mounted now
            if where := Staging(now).in_use():
                raise FailedPrecondition(f"it is in use at {where}")
            if Notes(backend.where).lost:
                write_first_notes(backend.where)

    return look.finding(
        Code.NOTES_LOST,
        volume_id,
        f"the notes of volume {volume_id}, which is not in use, are lost",
        commands.write_notes(record),
        None if look.served else Mend(text=f"write the notes of {volume_id} anew", act=write),
    )


def _snapshots(look: Look) -> Iterator[Finding | None]:
    """Yield the snapshots whose data is gone."""
    for snapshot in look.snapshots():
        place = Path(look.seen.snapshots.place(snapshot.id))
        if not place.is_dir() or any((place / name).exists() for name in _DATA):
            yield None
            continue
        command = look.pycsi("delete", "snapshot", snapshot.id, "--yes")
        if snapshot.group:
            command = commands.ungroup(look.given, look.seen.layout.group(snapshot.group))
        yield look.finding(
            Code.DATA_MISSING,
            snapshot.id,
            f"the data of snapshot {snapshot.id} is gone: {place}",
            command,
        )


def _groups(look: Look) -> Iterator[Finding]:
    folder = look.seen.layout.groups
    for record in sorted(folder.glob("[!.]*.json")) if folder.is_dir() else ():
        try:
            Group.from_json(read_record(record))
        except FileNotFoundError:
            continue
        except UNREADABLE:
            what = (
                "restore it from a backup; without it the driver deletes the group's members when "
                f"it starts; {commands.ELSEWHERE}"
            )
            yield _damaged(look, record, _move(record), what)


def _trash(look: Look) -> Iterator[Finding]:
    for entry in look.seen.trash:
        if not entry.reaping and entry.fault():
            yield look.finding(
                Code.RECORD_DAMAGED,
                entry.path.name,
                f"{entry.path.name} in the trash cannot be restored, for its record cannot be "
                "read; delete it for good, or restore the record from a backup",
                look.pycsi("trash", "empty", entry.path.name, "--yes"),
            )


def in_two_pools(looks: Iterable[Look]) -> Iterator[Finding]:
    """Yield the volumes whose id another pool has too; the driver serves the newest."""
    first: dict[str, Look] = {}
    for look in looks:
        for volume in look.volumes.values():
            other = first.setdefault(volume.id, look)
            if other is look:
                continue
            newer = volume.created > other.volumes[volume.id].created
            older = other if newer else look
            place = Path(older.seen.volumes.place(volume.id))
            yield older.finding(
                Code.VOLUME_IN_TWO_POOLS,
                volume.id,
                f"pools {other.name} and {look.name} both have a volume {volume.id}; the driver "
                f"ignores the older one, {place}: move it away; {commands.ELSEWHERE}",
                _move(place),
            )
