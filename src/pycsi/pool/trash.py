"""The trash of a pool: deleted volumes and snapshots that still occupy its disk.

An entry is the deleted directory itself, renamed to `<id>.<seconds since the epoch>.<fate>.<hex>`:
one rename deletes it and records when, and its fate. An entry is renamed before it is reaped or
restored, so that of two attempts only one succeeds; a leading dot marks one that is being reaped.
"""

import contextlib
import dataclasses
import enum
import errno
import functools
import itertools
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import structlog

from pycsi.backends.directory import Directory
from pycsi.backends.image import Image
from pycsi.backends.limits import Limiter
from pycsi.linux import luks
from pycsi.linux.libc import StrPath
from pycsi.linux.record import explained, read_record, rename_durably
from pycsi.linux.tree import empty, refuse_mounts
from pycsi.model.records import Snapshot, Volume
from pycsi.model.trace import phase
from pycsi.pool.catalog import UNREADABLE
from pycsi.pool.layout import SNAPSHOT_RECORD, VOLUME_RECORD, Layout

log = structlog.get_logger()

_ENTRY = re.compile(
    r"(?P<reaping>\.?)(?P<id>.+)\.(?P<deleted>\d{1,12})\.(?P<fate>gone|kept)\.[0-9a-f]{8}"
)
_REAPING = "."
_RETRY = 60.0
"""Seconds after which an entry that could not be removed is tried again."""


class Fate(enum.StrEnum):
    """Whether an entry is reaped soon, or kept for the pool's `retain-for`."""

    GONE = "gone"
    KEPT = "kept"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A deleted volume or snapshot. `deleted` is in seconds since the epoch."""

    path: Path
    id: str
    deleted: int
    fate: Fate
    reaping: bool

    @classmethod
    def parse(cls, path: Path) -> Self:
        """Return the entry at a path; one whose name has another form counts as being reaped."""
        match = _ENTRY.fullmatch(path.name)
        if match is None:
            return cls(path=path, id=path.name, deleted=0, fate=Fate.GONE, reaping=True)
        return cls(
            path=path,
            id=match["id"],
            deleted=int(match["deleted"]),
            fate=Fate(match["fate"]),
            reaping=bool(match["reaping"]),
        )

    def due(self, retain_for: float | None) -> float:
        """Return when the entry is to be reaped, in seconds since the epoch; infinity: never."""
        if self.reaping or self.fate is Fate.GONE:
            return 0
        return float("inf") if retain_for is None else self.deleted + retain_for

    def is_due(self, retain_for: float | None) -> bool:
        return self.due(retain_for) <= time.time()

    def record(self) -> Volume | Snapshot | None:
        """Return the entry's record, or None if it has gone already, or is damaged."""
        with contextlib.suppress(*UNREADABLE):
            return self._read()
        return None

    def _read(self) -> Volume | Snapshot:
        if (self.path / SNAPSHOT_RECORD).exists():
            return Snapshot.from_json(read_record(self.path / SNAPSHOT_RECORD))
        return Volume.from_json(read_record(self.path / VOLUME_RECORD))

    def fault(self) -> str | None:
        """Return why the record cannot be read; None if it can, or if there is none."""
        try:
            self._read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UNREADABLE as error:
            return f"its record cannot be read ({explained(error)})"
        return None

    def size(self) -> int:
        """Return the bytes of the pool that the entry counts for; 0 without a readable record."""
        match self.record():
            case Volume() as volume:
                return volume.held
            case Snapshot() as snapshot:
                return snapshot.held
        return 0


def entries(layout: Layout) -> list[Entry]:
    """Return the entries of the trash, the oldest first."""
    found = [Entry.parse(path) for path in layout.trash.iterdir()]
    return sorted(found, key=lambda entry: (entry.deleted, entry.path.name))


def new_entry(layout: Layout, object_id: str, fate: Fate) -> Entry:
    """Return an entry with a new name for an object that is being deleted now."""
    name = f"{object_id}.{int(time.time())}.{fate}.{os.urandom(4).hex()}"
    return Entry.parse(layout.trash / name)


def reaping_place(layout: Layout, name: str) -> Path:
    """Return a place in the trash for an unfinished build, which cannot be restored."""
    return layout.trash / f"{_REAPING}{name}.{os.urandom(4).hex()}"


def reap(
    entry: Entry,
    limiter: Limiter,
    interrupted: Callable[[], bool],
    emptied: Callable[[], None] = lambda: None,
) -> None:
    """Remove an entry for good; nothing is done if it was restored or reaped meanwhile.

    `InterruptedError` once `interrupted` returns True; a later call goes on with the rest.
    `emptied` is called when only an empty directory is left.
    """
    refuse_mounts(entry.path)
    reaping = entry.path
    if not entry.path.name.startswith(_REAPING):
        reaping = entry.path.with_name(f"{_REAPING}{entry.path.name}")
        try:
            entry.path.rename(reaping)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # The disk has no room for another name. Without a record the entry cannot be restored
            # either.
            reaping = entry.path
            for record in (SNAPSHOT_RECORD, VOLUME_RECORD):
                (reaping / record).unlink(missing_ok=True)
    destroy(reaping, limiter, interrupted, emptied)


def destroy(
    place: Path,
    limiter: Limiter,
    interrupted: Callable[[], bool] = lambda: False,
    emptied: Callable[[], None] = lambda: None,
) -> None:
    """Remove what is left of a volume or snapshot, its data first, its record last.

    The header of an encrypted image is wiped before, for the disk keeps what is only removed.
    """
    with contextlib.suppress(OSError):  # the disk fails, or another process has removed it
        wipe(place)
    volume = Entry.parse(place).record()
    project = volume.project if isinstance(volume, Volume) else None
    # Another process may be removing the same entry, so any step may find its files gone.
    with contextlib.suppress(FileNotFoundError):
        limiter.remove(place / Directory.NAME, project, interrupted)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        (place / Image.NAME).unlink()
    with contextlib.suppress(FileNotFoundError):
        empty(place, interrupted)
        emptied()
        place.rmdir()


def wipe(place: StrPath) -> None:
    """Overwrite the header of the encrypted image in a directory, durably; none is fine.

    Without it nobody can decrypt the image.
    """
    image = Path(place, Image.NAME)
    try:
        if not luks.has_header(image):
            return
    except (FileNotFoundError, NotADirectoryError):
        return
    with phase("wipe"):
        in_place = luks.wipe(image)
    if not in_place:
        log.warning(
            "the filesystem has written the zeros that wipe a header elsewhere; the old blocks are "
            "free, but keep it until they are used again",
            path=str(image),
        )


def image_blocks(place: Path) -> int:
    """Return the bytes of the disk that the image in a directory occupies; 0 without an image."""
    try:
        return (place / Image.NAME).stat().st_blocks * 512
    except OSError:
        return 0


class Trash:
    """The trash of an open pool, and the bytes of the pool that it occupies.

    The entries are kept in memory, so that a deletion takes the same time however many are kept.
    `filled` is set when an entry is added, `wanted` when a caller waits for room.
    """

    def __init__(self, layout: Layout, retain_for: float | None) -> None:
        self._layout = layout
        self._retain_for = retain_for
        self.filled = threading.Event()
        self.wanted = threading.Event()
        self._mutex = threading.Lock()
        self._gone: dict[str, Entry] = {}
        self._kept: dict[str, Entry] = {}
        self._sizes: dict[str, int] = {}
        self.held = 0
        """The bytes of the pool that the entries count for."""
        self.changed = float("-inf")
        """The time at which an entry last came or went, in seconds of the monotonic clock."""
        self.notices: Callable[[str], None] = lambda _id: None
        """Called with the id of each volume or snapshot that another process may have deleted."""
        self.removed: Callable[[float | None], None] = lambda _seconds: None
        """Called with the seconds that removing an entry has taken; None: it has failed."""
        layout.changes.follow(self.look)

    def look(self) -> bool:
        """Read the trash; return False if that fails."""
        with self._mutex, contextlib.suppress(OSError):  # the pool's disk is away
            found = {_name(entry): entry for entry in entries(self._layout)}
            sizes = self._sizes
            for name in found.keys() - sizes.keys():
                self.notices(found[name].id)
                self.filled.set()
            self._sizes = {
                name: sizes[name] if name in sizes else entry.size()
                for name, entry in found.items()
            }
            self._gone = {name: entry for name, entry in found.items() if entry.is_due(None)}
            self._kept = {name: entry for name, entry in found.items() if name not in self._gone}
            self.changed = time.monotonic()
            self.held = sum(self._sizes.values())  # in one step: it is read without the lock
            return True
        return False

    def __len__(self) -> int:
        return len(self._sizes)

    def overdue(self) -> float:
        """Return for how many seconds the entry that is due the longest has been; 0: none is."""
        with self._mutex:
            # Unfinished builds have no time of deletion. The oldest of those kept is the first.
            since = [float(entry.deleted) for entry in self._gone.values() if entry.deleted]
            since += [
                entry.due(self._retain_for) for entry in itertools.islice(self._kept.values(), 1)
            ]
        return max(0.0, time.time() - min(since, default=float("inf")))

    def written(self) -> int:
        """Return how many of the `held` bytes are known to be on the disk: those of images."""
        with self._mutex:
            places = {name: entry.path for name, entry in (self._gone | self._kept).items()}
            sizes = dict(self._sizes)
        # An entry that is being reaped has another name by now.
        return sum(
            min(size, image_blocks(places[name]) or image_blocks(self._layout.trash / f".{name}"))
            for name, size in sizes.items()
        )

    def _put(self, entry: Entry, size: int) -> None:
        self.changed = time.monotonic()
        of_its_fate = self._gone if entry.is_due(None) else self._kept
        of_its_fate[_name(entry)] = entry
        self.held += size - self._sizes.get(_name(entry), 0)
        self._sizes[_name(entry)] = size

    def _forget(self, entry: Entry) -> None:
        name = _name(entry)
        with self._mutex:
            self.changed = time.monotonic()
            self._gone.pop(name, None)
            self._kept.pop(name, None)
            self.held -= self._sizes.pop(name, 0)

    def _due(self) -> tuple[list[Entry], float]:
        """Return the entries that are due, and the seconds until the next one is, or infinity."""
        self._layout.changes.catch_up()
        with self._mutex:
            due = list(self._gone.values())
            for entry in self._kept.values():  # the oldest first
                if not entry.is_due(self._retain_for):
                    return due, entry.due(self._retain_for) - time.time()
                due.append(entry)
            return due, float("inf")

    def is_emptying(self) -> bool:
        """Tell whether entries are due, and have the reaper free them without further delay."""
        self.wanted.set()
        due, _ = self._due()
        return bool(due)

    def put(self, place: str, object_id: str, fate: Fate, size: int) -> None:
        """Delete an object by one rename of its directory `place`: durable when this returns.

        The entry counts for `size` bytes until it has been reaped.
        """
        entry = new_entry(self._layout, object_id, fate)
        rename_durably(place, entry.path)
        with self._mutex:
            self._put(entry, size)
        self.filled.set()

    def reap(self, limiter: Limiter, interrupted: Callable[[], bool]) -> float:
        """Remove the entries that are due; return the seconds until there is more, or infinity."""
        due, wait = self._due()
        for entry in due:
            begin = time.monotonic()
            try:
                # Forgotten before it disappears: then its room is already free.
                reap(entry, limiter, interrupted, functools.partial(self._forget, entry))
            except InterruptedError:
                self._look_again()  # the entry may have another name by now
                break
            except Exception as error:  # noqa: BLE001  (one entry must not stop the others)
                log.warning("cannot be deleted now", path=str(entry.path), error=str(error))
                wait = min(wait, _RETRY)
                self._look_again()
                self.removed(None)
            else:
                self._forget(entry)
                self.removed(time.monotonic() - begin)
        return wait

    def _look_again(self) -> None:
        self._layout.changes.look_again(self.look)


def _name(entry: Entry) -> str:
    """Return an entry's name without the dot that marks it as being reaped."""
    return entry.path.name.lstrip(_REAPING)
