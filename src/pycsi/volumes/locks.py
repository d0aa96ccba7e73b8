"""A try-lock with keys, for all services: an operation holds a key, others are ABORTED meanwhile.

A volume's key is its id; `snapshot_key` and `group_key` return those of snapshots and groups.
"""

import contextlib
import threading
from collections.abc import Iterator

from pycsi.model.errors import Aborted
from pycsi.model.trace import phase

_EXCLUSIVE = -1

_PATIENCE = 10.0
"""Seconds to wait for a key that is lent; the work that it is lent for takes far less."""


def snapshot_key(snapshot_id: str) -> str:
    """Return the key that an operation on a snapshot holds."""
    return f"snapshot {snapshot_id}"


def group_key(group_id: str) -> str:
    """Return the key that an operation on a group snapshot holds."""
    return f"group snapshot {group_id}"


class Watch:
    """A watch on a key; `disturbed` tells whether an operation has held the key meanwhile."""

    def __init__(self, *, disturbed: bool) -> None:
        self.disturbed = disturbed


class Locks:
    """The keys that operations hold. Only held, lent and watched keys take memory."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._watches: dict[str, list[Watch]] = {}
        self._lent: set[str] = set()
        self._mutex = threading.Condition()

    @contextlib.contextmanager
    def hold(self, key: str, *, shared: bool = False) -> Iterator[None]:
        """Hold `key` for the `with` block, or raise `Aborted` at once if it is held or shared.

        The specification wants no waiting: "another operation pending for volume" is ABORTED, and
        the orchestrator tries again with a back-off. Only for a lent key does this wait. With
        `shared` the key may be shared: see `share`.
        """
        with self._mutex:
            returned = key not in self._lent or self._awaited(key)
            sharing = self._held.get(key, 0)
            if not returned or sharing == _EXCLUSIVE or (not shared and sharing):
                raise _pending(key)
            self._held[key] = sharing + 1 if shared else _EXCLUSIVE
            for watch in self._watches.get(key, ()):
                watch.disturbed = True
        try:
            yield
        finally:
            with self._mutex:
                left = self._held[key] - 1 if shared else 0
                if left:
                    self._held[key] = left
                else:
                    del self._held[key]

    def _awaited(self, key: str) -> bool:
        """Wait until a lent key is returned; tell whether it was."""
        with phase("lock"):
            return self._mutex.wait_for(lambda: key not in self._lent, _PATIENCE)

    def share(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Share `key` with other operations that only read, or raise `Aborted` if it is held."""
        return self.hold(key, shared=True)

    @contextlib.contextmanager
    def lend(self, key: str) -> Iterator[None]:
        """Hold `key` for a moment of background work, or raise `Aborted` at once if it is taken.

        An operation that asks for the key meanwhile waits for the end of the block, and is not
        refused; watches of the key are not disturbed.
        """
        with self._mutex:
            if key in self._held or key in self._lent:
                raise _pending(key)
            self._lent.add(key)
        try:
            yield
        finally:
            with self._mutex:
                self._lent.remove(key)
                self._mutex.notify_all()

    @contextlib.contextmanager
    def watch(self, key: str) -> Iterator[Watch]:
        """Watch whether operations hold `key` during the `with` block, without holding it."""
        with self._mutex:
            watch = Watch(disturbed=key in self._held)
            self._watches.setdefault(key, []).append(watch)
        try:
            yield watch
        finally:
            with self._mutex:
                self._watches[key].remove(watch)
                if not self._watches[key]:
                    del self._watches[key]


def _pending(key: str) -> Aborted:
    return Aborted(f"{key}: another operation is under way; try again")
