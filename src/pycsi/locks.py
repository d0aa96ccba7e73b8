"""One keyed try-lock for all services: who holds an id works on it, everybody else is told so."""

import contextlib
import threading
from collections.abc import Iterator

from pycsi.errors import Aborted


class Locks:
    """The ids on which an operation is under way. Only held ids take memory."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Hold `key` through the `with` block, or raise `Aborted` at once if it is held.

        The specification wants no waiting: "another operation pending for volume" is ABORTED, and
        the orchestrator tries again with a back-off.
        """
        with self._mutex:
            if key in self._held:
                raise Aborted(f"{key}: another operation is under way; try again")
            self._held.add(key)
        try:
            yield
        finally:
            with self._mutex:
                self._held.remove(key)
