"""All the volumes, or all the snapshots, of a pool: a directory with a record for each."""

import bisect
import collections
import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import structlog

from pycsi.linux.record import RecordError, read_record
from pycsi.model.errors import FailedPrecondition
from pycsi.model.ids import node_of

log = structlog.get_logger()

UNREADABLE = (RecordError, OSError, TypeError, KeyError, ValueError)
"""What reading a record that is damaged, or of a newer version, raises."""


class Kept(Protocol):
    """A volume or a snapshot: what a pool keeps."""

    @property
    def id(self) -> str: ...

    @property
    def held(self) -> int:
        """How many bytes of the pool it counts for."""

    @property
    def filesystem(self) -> str | None:
        """The kind of the filesystem that its image has, if it has one."""


T = TypeVar("T", bound=Kept)
D = TypeVar("D")

_BATCH = 256
"""How many are taken at a time: nobody waits for who goes through all of them."""


class Catalog(Generic[T]):
    """The directories in `folder`, whose records named `record` are read by `parse`.

    All that is asked often is counted or kept in order as things come and go, so that it costs the
    same however many there are. Where `adopts` is set, what others have put there since is found,
    if `adopts` agrees: `pycsi trash restore` does so while the driver runs, and says so by
    `change_count_of`, whose number then is another one.
    """

    def __init__(self, folder: Path, record: str, parse: Callable[[Mapping[str, Any]], T]) -> None:
        self.folder = folder
        self._prefix = f"{folder}/"
        self._record = record
        self._parse = parse
        self.adopts: Callable[[T], bool] | None = None
        self.change_count_of: Callable[[], int] = int
        self.filesystems: collections.Counter[str] = collections.Counter()
        self._mutex = threading.RLock()
        self._items: dict[str, T] = {}
        self._ids: list[str] = []
        self._derived: dict[str, dict[Callable[[T], Any], Any]] = {}
        self._touched = 0
        self._unreadable: dict[str, str] = {}
        self._creating: set[str] = set()
        self._ignored: set[str] = set()
        self.held = 0
        """How many bytes of the pool all of them count for."""
        self._seen = 0

    def place(self, object_id: str) -> str:
        """Return where one is, as text: a Path costs as much as a system call."""
        return self._prefix + object_id

    def load(self) -> None:
        """Read the records. One that is damaged, or of a newer version, is left as it is."""
        for name in sorted(os.listdir(self.folder)):
            try:
                if item := self._read(name):
                    self.put(item)
            except OSError as error:
                self._give_up(name, error)

    def _read(self, name: str) -> T | None:
        """Read a record; None where it is damaged, or where there is none, nor a directory.

        `OSError` where it cannot be read now, and perhaps later.
        """
        place = self.place(name)
        try:
            item = self._parse(read_record(f"{place}/{self._record}"))
            if item.id != name:
                raise RecordError(f"it is that of {item.id}")
        except UNREADABLE as error:
            if not os.path.lexists(place):
                return None  # deleted since it was listed
            if isinstance(error, OSError) and error.errno != errno.ENOENT:
                raise
            self._give_up(name, error)
            return None
        return item

    def _give_up(self, name: str, error: Exception) -> None:
        self._unreadable[name] = f"its record cannot be read ({error})"
        log.warning("a record cannot be read", path=self.place(name), error=str(error))

    def _adopt(self, name: str) -> T | None:
        """Take up what somebody else has put here by this name, if that is welcome."""
        item = self._read(name)
        if item is None or self.adopts is None:
            return None
        if not self.adopts(item):
            self.ignore(item.id)
            return None
        self.put(item)
        return item

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Why the records of some cannot be read, by their names."""
        return self._unreadable

    def held_by(self, object_id: str) -> int:
        """How many bytes of the pool one counts for; absent ones for none."""
        item = self._items.get(object_id)
        return item.held if item else 0

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._items

    def get(self, object_id: str) -> T | None:
        """Return one, or None; `FailedPrecondition` where its record cannot be read."""
        self._refuse_unreadable(object_id)
        item = self._items.get(object_id)
        # Only what is an id may become a path.
        if item is None and self.adopts and node_of(object_id) and self._lies_there(object_id):
            with self._mutex:
                item = self._items.get(object_id)
                if item is None and not self._is_known(object_id):
                    item = self._adopt(object_id)
            self._refuse_unreadable(object_id)
        return item

    def _refuse_unreadable(self, object_id: str) -> None:
        if reason := self._unreadable.get(object_id):
            raise FailedPrecondition(
                f"{object_id} is there, but {reason}; restore the record, or move "
                f"{self.place(object_id)} away, and restart the driver"
            )

    def _lies_there(self, object_id: str) -> bool:
        # Asked without the lock: a disk may take long.
        return os.path.isdir(self.place(object_id))

    def __len__(self) -> int:
        self.refresh(self.change_count_of())
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return self.following("")

    def following(self, after: str) -> Iterator[T]:
        """Go through all of them whose ids come after `after`, in the order of ids."""
        self.refresh(self.change_count_of())
        while True:
            with self._mutex:
                first = bisect.bisect_right(self._ids, after)
                batch = [self._items[key] for key in self._ids[first : first + _BATCH]]
            yield from batch
            if len(batch) < _BATCH:
                return
            after = batch[-1].id

    def refresh(self, change_count: int) -> None:
        """Look for what is new if somebody has announced it since."""
        if self.adopts and change_count != self._seen and self.look():
            self._seen = change_count

    def look(self) -> bool:
        """Look for what others have put here, announced or not; tell whether all could be seen."""
        if self.adopts is None:
            return True
        try:
            names = os.listdir(self.folder)
        except OSError:  # the pool's disk is away: `Pool.check` says so
            return False
        seen = True
        for name in names:
            with self._mutex:
                if name not in self._items and not self._is_known(name):
                    try:
                        self._adopt(name)
                    except OSError:
                        seen = False
        return seen

    def _is_known(self, name: str) -> bool:
        return name in self._creating or name in self._ignored or name in self._unreadable

    @contextlib.contextmanager
    def creating(self, object_id: str) -> Iterator[str]:
        """Keep what is made in the `with` block from being adopted: it is put here when it is done.

        Yields where it will be.
        """
        # Without the lock: it is put here, under the lock, before it is no longer being created.
        self._creating.add(object_id)
        try:
            yield self.place(object_id)
        finally:
            self._creating.remove(object_id)

    def put(self, item: T) -> None:
        """Remember a new one, or an old one with a new record."""
        with self._mutex:
            before = self._items.get(item.id)
            if before is None:
                bisect.insort(self._ids, item.id)
                self._ignored.discard(item.id)  # it was another one's
            self._items[item.id] = item
            self._count(before, item)
            self.touch(item.id)

    def _count(self, before: T | None, after: T | None) -> None:
        # At once: whoever reads it does not wait.
        self.held += (after.held if after else 0) - (before.held if before else 0)
        if before and before.filesystem:
            self.filesystems[before.filesystem] -= 1
        if after and after.filesystem:
            self.filesystems[after.filesystem] += 1

    def derived(self, item: T, make: Callable[[T], D]) -> D:
        """Return what `make` makes of one, never None; it is kept until that one is touched.

        Ask always with the same few functions: what each has made is kept.
        """
        kept = self._derived.get(item.id)
        if kept and (known := kept.get(make)) is not None:
            return cast("D", known)
        before = self._touched
        made = make(item)
        with self._mutex:
            # Not what may have been made of something older.
            if self._touched == before and self._items.get(item.id) is item:
                self._derived.setdefault(item.id, {})[make] = made
        return made

    def touch(self, object_id: str) -> None:
        """Keep nothing that was derived from one: it has changed."""
        with self._mutex:
            self._touched += 1
            self._derived.pop(object_id, None)

    def read_again(self, object_id: str) -> None:
        """Remember what the record says, as far as it can be read: writing it has failed."""
        with contextlib.suppress(*UNREADABLE):
            self.put(self._parse(read_record(f"{self.place(object_id)}/{self._record}")))

    def ignore(self, object_id: str) -> None:
        """Forget one that lies there, and do not find it again: nobody may reach it by its id."""
        log.error(
            "ignored: another pool's, or another pool has one of its id",
            path=self.place(object_id),
        )
        self.drop(object_id)
        self._ignored.add(object_id)

    def drop(self, object_id: str) -> None:
        """Forget one; absent is fine."""
        with self._mutex:
            self._unreadable.pop(object_id, None)
            self.touch(object_id)
            if before := self._items.pop(object_id, None):
                del self._ids[bisect.bisect_left(self._ids, object_id)]
                self._count(before, None)
