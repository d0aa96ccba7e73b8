"""The paths in a pool's directory, what changes there, and reading and writing its records."""

import contextlib
import dataclasses
import functools
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from pycsi.linux.descriptor import exists, opened, sync_directory
from pycsi.linux.record import (
    RecordError,
    encoded,
    explained,
    read_record,
    rewrite_record,
    write_file,
    write_record,
)
from pycsi.linux.waiting import NoAnswerError, NotAskedError, call
from pycsi.model.records import Attachment, Snapshot, Volume
from pycsi.pool.catalog import Catalog

log = structlog.get_logger()

_POOL_RECORD = "pool.json"
VOLUME_RECORD = "volume.json"
SNAPSHOT_RECORD = "snapshot.json"
ATTACHMENT_RECORD = "attachment.json"
NOTES_RECORD = "node.json"

NO_NOTES: Mapping[str, Any] = {"staged": {}, "published": {}}
"""The notes of a new volume."""

_FIRST_NOTES = encoded(NO_NOTES)
"""`NO_NOTES` as written to the file; all other notes are longer."""

_HARMLESS = frozenset({"lost+found", f".{_POOL_RECORD}.new"})


class Changes:
    """The changes of a pool's content by other processes, which touch the file `announcement`.

    What keeps a part of the content in memory is a follower: a function that looks at it again.
    """

    def __init__(self, announcement: Path) -> None:
        self._announcement = announcement
        self._followers: list[Callable[[], bool]] = []
        self._seen: dict[Callable[[], bool], int] = {}

    def announce(self) -> None:
        """Tell a running driver that this process has changed the pool's content."""
        with opened(self._announcement, os.O_WRONLY | os.O_CREAT):
            now = time.time_ns()
            os.utime(self._announcement, ns=(now, now))

    def follow(self, look: Callable[[], bool]) -> None:
        """Have `catch_up` call `look`, which returns False if it has to be called again."""
        self._followers.append(look)

    def catch_up(self) -> None:
        """Call the followers that have not looked since the last announcement, or never."""
        try:
            announced = os.stat(self._announcement).st_mtime_ns
        except OSError:
            announced = 0
        for look in self._followers:
            if self._seen.get(look) != announced and look():
                self._seen[look] = announced

    def look_again(self, look: Callable[[], bool]) -> None:
        """Have the next `catch_up` call the follower `look`, whatever is announced."""
        self._seen.pop(look, None)


class Layout:
    """The paths in the pool at `root`, and the changes that are announced in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / _POOL_RECORD
        self.options = root / "options.json"
        self.volumes = root / "volumes"
        self.snapshots = root / "snapshots"
        self.groups = root / "groups"
        self.frozen = root / "frozen"
        self.tmp = root / "tmp"
        self.trash = root / "trash"
        self.deletions = root / "deletions"
        self.adoptions = root / "adoptions"
        self.arriving = root / "arriving"
        self.leaving = root / "leaving"
        self.changes = Changes(root / "announcement")

    @property
    def folders(self) -> tuple[Path, ...]:
        """The directories that every pool has."""
        return (
            self.volumes,
            self.snapshots,
            self.groups,
            self.frozen,
            self.tmp,
            self.trash,
            self.deletions,
            self.arriving,
            self.leaving,
        )

    def group(self, group_id: str) -> Path:
        """Return the path of a group snapshot's record."""
        return self.groups / f"{group_id}.json"

    def read_uuid(self) -> str:
        """Return the pool's UUID from its record.

        `FileNotFoundError` if there is no record, `RecordError` if it is damaged.
        """
        try:
            return str(uuid.UUID(read_record(self.record)["uuid"]))
        except (KeyError, ValueError, TypeError, AttributeError):
            raise RecordError(f"{self.record} is damaged: it has no UUID") from None

    def foreign(self) -> str | None:
        """Return the name of a file in the directory that a new pool may not contain, or None."""
        names = (entry.name for entry in list(self.root.iterdir()))
        return next((name for name in names if name not in _HARMLESS), None)

    def make_uuid(self) -> str:
        """Make an empty directory a pool; return the new pool's UUID."""
        made = str(uuid.uuid4())
        write_record(self.record, {"uuid": made, "created": time.time()})
        return made


def write_new_volume(place: str, volume: Volume) -> None:
    """Write the record and the first, empty notes of a volume that is being built."""
    # Notes are of mounts, which a power cut ends.
    write_file(f"{place}/{NOTES_RECORD}", _FIRST_NOTES, durable=False)
    write_file(f"{place}/{VOLUME_RECORD}", encoded(volume.to_json()), durable=True)


def write_first_notes(where: str) -> None:
    """Write the notes of a volume that is staged and published nowhere, over any that are there."""
    rewrite_record(f"{where}/{NOTES_RECORD}", NO_NOTES)


def never_noted(where: str) -> bool:
    """Tell whether the volume in a directory still has its first notes: never staged or published.

    `FileNotFoundError` if there are no notes; then it is not known.
    """
    return os.lstat(f"{where}/{NOTES_RECORD}").st_size == len(_FIRST_NOTES)


def write_volume(place: str, volume: Volume) -> None:
    """Write a volume's record into its directory, durably.

    The record of its attachment is written first if it is missing: older versions kept the
    attachment in the volume's record, and there may have been no room for it.
    """
    if volume.attachment and not exists(f"{place}/{ATTACHMENT_RECORD}"):
        write_attachment(place, volume.attachment)
    write_record(Path(place, VOLUME_RECORD), volume.to_json())


def write_attachment(place: str, attachment: Attachment) -> None:
    """Record in a volume's directory that it is attached, durably or not at all."""
    record = Path(place, ATTACHMENT_RECORD)
    try:
        write_record(record, attachment.to_json())
    except BaseException:
        with contextlib.suppress(OSError):
            record.unlink(missing_ok=True)
        raise


def delete_attachment(place: str) -> None:
    """Delete the record of a volume's attachment, durably; absent is fine.

    That takes no free block.
    """
    Path(place, ATTACHMENT_RECORD).unlink(missing_ok=True)
    sync_directory(place)


def is_attached_by_record(place: str) -> bool:
    """Tell whether a volume's own record holds an attachment, as older versions wrote it."""
    return read_record(f"{place}/{VOLUME_RECORD}")["attachment"] is not None


def _read_volume(layout: Layout, data: Mapping[str, Any]) -> Volume:
    """Return the volume with the record `data`, and with its attachment, if it has one."""
    volume = Volume.from_json(data)
    record = layout.volumes / volume.id / ATTACHMENT_RECORD
    try:
        return dataclasses.replace(volume, attachment=Attachment.from_json(read_record(record)))
    except FileNotFoundError:
        return volume  # older versions kept the attachment in the volume's record
    except (RecordError, KeyError, TypeError, ValueError) as error:
        log.warning(
            "the record of an attachment is damaged", path=str(record), error=explained(error)
        )
        return volume


def write_new_snapshot(place: str, snapshot: Snapshot) -> None:
    """Write the record of a snapshot that is being built."""
    write_file(f"{place}/{SNAPSHOT_RECORD}", encoded(snapshot.to_json()), durable=True)


def _catch_up(layout: Layout) -> None:
    """Look for what other processes have announced, unless the pool's disk does not answer."""
    with contextlib.suppress(NoAnswerError, NotAskedError):
        call(str(layout.root), layout.changes.catch_up)


def volume_catalog(layout: Layout) -> Catalog[Volume]:
    """Return the catalog of the pool's volumes, still to be loaded."""
    read = functools.partial(_read_volume, layout)
    catalog = Catalog(layout.volumes, VOLUME_RECORD, read)
    catalog.catch_up = functools.partial(_catch_up, layout)
    layout.changes.follow(catalog.look)
    return catalog


def snapshot_catalog(layout: Layout) -> Catalog[Snapshot]:
    """Return the catalog of the pool's snapshots, still to be loaded."""
    return Catalog(layout.snapshots, SNAPSHOT_RECORD, Snapshot.from_json)
