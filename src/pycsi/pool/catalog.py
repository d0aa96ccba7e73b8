"""The volumes, or the snapshots, of a pool: a directory with a record for each, and an index."""

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

from pycsi.linux.record import RecordError, explained, read_record
from pycsi.model.errors import FailedPrecondition
from pycsi.model.ids import node_of

log = structlog.get_logger()

UNREADABLE = (RecordError, OSError, TypeError, KeyError, ValueError)
"""The errors of reading a record that is damaged, or of a newer version."""

_BATCH = 256
"""The number of items that an iteration copies under the lock at a time."""


class Item(Protocol):
    """A volume or a snapshot."""

    @property
    def id(self) -> str: ...

    @property
    def held(self) -> int:
        """The bytes of the pool that are promised to it."""

    @property
    def filesystem(self) -> str | None:
        """The kind of filesystem on its image; None if it has none."""


T = TypeVar("T", bound=Item)
D = TypeVar("D")


class Index(Generic[T]):
    """Items by id. Frequent queries take the same time however many items there are.

    `held` is the sum of the items' promised bytes, `filesystems` counts the items by the kind of
    filesystem on their images. Both are updated as items come and go.

    A hidden item is in the index, counts, and keeps its id taken, but is neither found nor listed.
    """

    def __init__(self) -> None:
        self.held = 0
        self.filesystems: collections.Counter[str] = collections.Counter()
        self._mutex = threading.RLock()
        self._items: dict[str, T] = {}
        self._ids: list[str] = []
        self._hidden: dict[str, T] = {}
        self._derived: dict[str, dict[Callable[[T], Any], Any]] = {}
        self._changes = 0

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._items or object_id in self._hidden

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[T]:
        return self.following("")

    def following(self, after: str) -> Iterator[T]:
        """Yield the items whose ids come after `after`, in the order of ids."""
        while True:
            with self._mutex:
                first = bisect.bisect_right(self._ids, after)
                batch = [self._items[key] for key in self._ids[first : first + _BATCH]]
            yield from batch
            if len(batch) < _BATCH:
                return
            after = batch[-1].id

    def held_by(self, object_id: str) -> int:
        """Return the bytes of the pool that are promised to an item; 0 if there is no such item."""
        item = self._items.get(object_id) or self._hidden.get(object_id)
        return item.held if item else 0

    def put(self, item: T) -> None:
        """Add an item, or replace the one that has its id; a hidden one is shown by that."""
        with self._mutex:
            before = self._items.get(item.id)
            if before is None:
                bisect.insort(self._ids, item.id)
            self._items[item.id] = item
            self._count(before or self._hidden.pop(item.id, None), item)
            self.touch(item.id)

    def put_hidden(self, item: T) -> None:
        """Add a hidden item, or hide the one that has its id."""
        with self._mutex:
            self.drop(item.id)
            self._hidden[item.id] = item
            self._count(None, item)

    def show(self, object_id: str) -> None:
        """Show a hidden item; one that is absent or shown is fine."""
        with self._mutex:
            if item := self._hidden.get(object_id):
                self.put(item)

    def hidden(self) -> list[T]:
        """Return the hidden items."""
        with self._mutex:
            return list(self._hidden.values())

    def drop(self, object_id: str) -> None:
        """Remove an item, hidden or not; absent is fine."""
        with self._mutex:
            self.touch(object_id)
            if before := self._items.pop(object_id, None):
                del self._ids[bisect.bisect_left(self._ids, object_id)]
                self._count(before, None)
            elif before := self._hidden.pop(object_id, None):
                self._count(before, None)

    def _count(self, before: T | None, after: T | None) -> None:
        # In one statement: `held` is read without the lock.
        self.held += (after.held if after else 0) - (before.held if before else 0)
        if before and before.filesystem:
            self.filesystems[before.filesystem] -= 1
        if after and after.filesystem:
            self.filesystems[after.filesystem] += 1

    def derived(self, item: T, derive: Callable[[T], D]) -> D:
        """Return `derive(item)`, which is never None, from a cache until the item is touched.

        Always call this with the same few functions: the cache has an entry for each of them.
        """
        cached = self._derived.get(item.id)
        if cached and (known := cached.get(derive)) is not None:
            return cast("D", known)
        before = self._changes
        made = derive(item)
        with self._mutex:
            # Only if nothing has changed meanwhile: `item` may be older than the indexed one.
            if self._changes == before and self._items.get(item.id) is item:
                self._derived.setdefault(item.id, {})[derive] = made
        return made

    def touch(self, object_id: str) -> None:
        """Drop the cached results for an item, because something about it has changed."""
        with self._mutex:
            self._changes += 1
            self._derived.pop(object_id, None)


class Catalog(Index[T]):
    """The directories in `folder`; `parse` reads the record called `record` in each of them.

    If `adopts` is set, directories that other processes have put there are found too, and adopted
    if `adopts` agrees: `pycsi trash restore` puts one there while the driver runs. `catch_up` calls
    `look` if there may be such.
    """

    def __init__(self, folder: Path, record: str, parse: Callable[[Mapping[str, Any]], T]) -> None:
        super().__init__()
        self.folder = folder
        self._prefix = f"{folder}/"
        self._record = record
        self._parse = parse
        self.adopts: Callable[[T], bool] | None = None
        self.catch_up: Callable[[], None] = lambda: None
        self._unreadable: dict[str, str] = {}
        self._creating: set[str] = set()
        self._ignored: set[str] = set()

    def place(self, object_id: str) -> str:
        """Return the path of an item's directory."""
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
        """Return the item in a directory; None if its record is damaged, or it has gone.

        `OSError` if the record cannot be read now, but perhaps later.
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
        reason = explained(error)
        self._unreadable[name] = f"its record cannot be read ({reason})"
        log.warning("a record cannot be read", path=self.place(name), error=reason)

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The reasons why records cannot be read, by the names of their directories."""
        return self._unreadable

    def read_again(self, object_id: str) -> None:
        """Index an item from its record again, if that can be read, after writing it has failed."""
        with contextlib.suppress(*UNREADABLE):
            self.put(self._parse(read_record(f"{self.place(object_id)}/{self._record}")))

    # Adopting what other processes put there

    def get(self, object_id: str) -> T | None:
        """Return an item, or None; `FailedPrecondition` if its record cannot be read."""
        item = self._items.get(object_id)
        # Only a well-formed id may become a path. The lock is not held for the first look at it: a
        # slow disk may take long to answer.
        if (
            item is None
            and self.adopts
            and object_id not in self._unreadable
            and node_of(object_id)
            and os.path.isdir(self.place(object_id))
        ):
            with self._mutex:
                item = self._items.get(object_id)
                if item is None and not self._is_known(object_id):
                    item = self._adopt(object_id)
        if item is None and object_id in self._unreadable:
            item = self._mended(object_id)
        if item is None and (reason := self._unreadable.get(object_id)):
            raise FailedPrecondition(
                f"{object_id} is there, but {reason}; restore the record and restart the driver, "
                f"or move {self.place(object_id)} away"
            )
        return item

    def _mended(self, name: str) -> T | None:
        """Forget an item that somebody has moved away; return one whose record is whole again."""
        with self._mutex, contextlib.suppress(*UNREADABLE):
            if not os.path.lexists(self.place(name)):
                self.drop(name)
                return None
            item = self._parse(read_record(f"{self.place(name)}/{self._record}"))
            if item.id == name and self.adopts and self.adopts(item):
                self.drop(name)
                self.put(item)
                return item
        return None

    def _adopt(self, name: str) -> T | None:
        """Index an item that another process has put here, if `adopts` agrees."""
        item = self._read(name)
        if item is None or self.adopts is None:
            return None
        if not self.adopts(item):
            self.ignore(item.id)
            return None
        self.put(item)
        return item

    def __len__(self) -> int:
        self.catch_up()
        return super().__len__()

    def following(self, after: str) -> Iterator[T]:
        self.catch_up()
        return super().following(after)

    def indexed(self) -> Iterator[T]:
        """Yield the items in the order of ids, without looking for new ones as `__iter__` does."""
        return super().following("")

    def look(self) -> bool:
        """Look for new directories; return False if not all of them could be examined."""
        if self.adopts is None:
            return False
        try:
            names = os.listdir(self.folder)
        except OSError:  # the pool's disk is away, which `Pool.check` reports
            return False
        complete = True
        for name in names:
            with self._mutex:
                if name not in self and not self._is_known(name):
                    try:
                        self._adopt(name)
                    except OSError:
                        complete = False
        return complete

    def _is_known(self, name: str) -> bool:
        return name in self._creating or name in self._ignored or name in self._unreadable

    @contextlib.contextmanager
    def creating(self, object_id: str) -> Iterator[str]:
        """Keep the item that the `with` block creates from being adopted; yield its place."""
        # Without the lock: the item is indexed, under the lock, before the block ends.
        self._creating.add(object_id)
        try:
            yield self.place(object_id)
            self._ignored.discard(object_id)  # the ignored directory was another one
        finally:
            self._creating.remove(object_id)

    def ignore(self, object_id: str) -> None:
        """Drop an item whose directory stays there, and do not adopt it again."""
        log.error(
            "ignored: another pool's, or another pool has one of its id",
            path=self.place(object_id),
        )
        self.drop(object_id)
        self._ignored.add(object_id)

    def drop(self, object_id: str) -> None:
        self._unreadable.pop(object_id, None)
        super().drop(object_id)
