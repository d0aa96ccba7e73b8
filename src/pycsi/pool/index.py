"""An index of a pool's volumes, or of its snapshots: in memory, ordered by id, and counted."""

import bisect
import collections
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar, cast


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

_BATCH = 256
"""The number of items that an iteration copies under the lock at a time."""


class Index(Generic[T]):
    """Items by id. Frequent queries take the same time however many items there are.

    `held` is the sum of the items' promised bytes, `filesystems` counts the items by the kind of
    filesystem on their images. Both are updated as items come and go.
    """

    def __init__(self) -> None:
        self.held = 0
        self.filesystems: collections.Counter[str] = collections.Counter()
        self._mutex = threading.RLock()
        self._items: dict[str, T] = {}
        self._ids: list[str] = []
        self._derived: dict[str, dict[Callable[[T], Any], Any]] = {}
        self._changes = 0

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._items

    def __len__(self) -> int:
        return len(self._items)

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
        item = self._items.get(object_id)
        return item.held if item else 0

    def put(self, item: T) -> None:
        """Add an item, or replace the one that has its id."""
        with self._mutex:
            before = self._items.get(item.id)
            if before is None:
                bisect.insort(self._ids, item.id)
            self._items[item.id] = item
            self._count(before, item)
            self.touch(item.id)

    def drop(self, object_id: str) -> None:
        """Remove an item; absent is fine."""
        with self._mutex:
            self.touch(object_id)
            if before := self._items.pop(object_id, None):
                del self._ids[bisect.bisect_left(self._ids, object_id)]
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
