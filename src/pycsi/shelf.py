"""All the volumes, or all the snapshots, of a pool: a directory with a record for each."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import structlog

from pycsi.errors import FailedPrecondition
from pycsi.ids import node_of
from pycsi.store import RecordError, read_record

log = structlog.get_logger()

UNREADABLE = (RecordError, OSError, TypeError, KeyError, ValueError)
"""What reading a record that is damaged, or of a newer version, raises."""


_TICK = 50_000_000


def changed_at(folder: Path) -> int | None:
    """Return when a folder has changed last, or None where it may change again at the same time.

    File times advance in ticks of up to 10 ms: two changes in one tick have one time. So a folder
    that has changed just now is to be read again.
    """
    changed = folder.stat().st_mtime_ns
    return changed if abs(time.time_ns() - changed) > _TICK else None


class Kept(Protocol):
    """What has an id: a volume or a snapshot."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Kept)


class Shelf(Generic[T]):
    """The directories in `folder`, whose records named `record` are read by `parse`.

    `size_of` says how many bytes of the pool one of them counts for. Where `adopts` is set, what
    others have put there since is found, if `adopts` agrees: `pycsi trash restore` does so while
    the driver runs.
    """

    def __init__(
        self,
        folder: Path,
        record: str,
        parse: Callable[[Mapping[str, Any]], T],
        size_of: Callable[[T], int],
    ) -> None:
        self.folder = folder
        self._record = record
        self._parse = parse
        self._size_of = size_of
        self.adopts: Callable[[T], bool] | None = None
        self._mutex = threading.RLock()
        self._items: dict[str, T] = {}
        self._unreadable: dict[str, str] = {}
        self._coming: set[str] = set()
        self._ignored: set[str] = set()
        self._held = 0
        self._changed: int | None = None

    @property
    def held(self) -> int:
        """How many bytes of the pool all of them count for."""
        self._adopt_all()
        return self._held

    def load(self) -> None:
        """Read the records. One that is damaged, or of a newer version, is left as it is."""
        for place in sorted(self.folder.iterdir()):
            if item := self._read(place):
                self.put(item)

    def _read(self, place: Path) -> T | None:
        try:
            item = self._parse(read_record(place / self._record))
            if item.id != place.name:
                raise RecordError(f"it is that of {item.id}")
        except UNREADABLE as error:
            self._unreadable[place.name] = f"its record cannot be read ({error})"
            log.warning("a record cannot be read", path=str(place), error=str(error))
            return None
        return item

    def _adopt(self, place: Path) -> T | None:
        """Take up what somebody else has put at `place`, if that is welcome."""
        item = self._read(place)
        if item is None or self.adopts is None:
            return None
        if not self.adopts(item):
            self.ignore(item.id)
            return None
        self.put(item)
        return item

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._items

    def get(self, object_id: str) -> T | None:
        """Return one, or None; `FailedPrecondition` where its record cannot be read."""
        if reason := self._unreadable.get(object_id):
            raise FailedPrecondition(
                f"{object_id} is there, but {reason}; restore the record, or move "
                f"{self.folder / object_id} away, and restart the driver"
            )
        with self._mutex:
            item = self._items.get(object_id)
            # Only what is an id may become a path.
            if item is None and self.adopts and node_of(object_id):
                place = self.folder / object_id
                if object_id not in self._coming | self._ignored and place.is_dir():
                    item = self._adopt(place)
            return item

    def all(self) -> list[T]:
        self._adopt_all()
        with self._mutex:
            return list(self._items.values())

    def _adopt_all(self) -> None:
        """Read what is new in the folder, if the kernel says that the folder has changed."""
        if self.adopts is None:
            return
        try:
            changed = changed_at(self.folder)
            if changed is not None and changed == self._changed:
                return
            with self._mutex:
                known = {*self._items, *self._unreadable, *self._coming, *self._ignored}
                for place in self.folder.iterdir():
                    if place.name not in known:
                        self._adopt(place)
                self._changed = changed
        except OSError:  # the pool's disk is away: `Pool.check` says so where it matters
            return

    @contextlib.contextmanager
    def coming(self, object_id: str) -> Iterator[Path]:
        """Keep what is made in the `with` block from being adopted: it is put here when it is done.

        Yields where it will be.
        """
        with self._mutex:
            self._coming.add(object_id)
        try:
            yield self.folder / object_id
        finally:
            with self._mutex:
                self._coming.remove(object_id)

    def put(self, item: T) -> None:
        """Remember a new one, or an old one with a new record."""
        with self._mutex:
            before = self._items.get(item.id)
            self._held += self._size_of(item) - (self._size_of(before) if before else 0)
            self._items[item.id] = item

    def read_again(self, object_id: str) -> None:
        """Remember what the record says, as far as it can be read: writing it has failed."""
        with contextlib.suppress(*UNREADABLE):
            self.put(self._parse(read_record(self.folder / object_id / self._record)))

    def ignore(self, object_id: str) -> None:
        """Forget one that lies there, and do not find it again: nobody may reach it by its id."""
        log.error(
            "ignored: another pool's, or another pool has one of its id",
            path=str(self.folder / object_id),
        )
        self.drop(object_id)
        self._ignored.add(object_id)

    def drop(self, object_id: str) -> None:
        """Forget one; absent is fine."""
        with self._mutex:
            self._unreadable.pop(object_id, None)
            if before := self._items.pop(object_id, None):
                self._held -= self._size_of(before)
