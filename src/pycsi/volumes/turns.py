"""Turns of the operations that copy one volume at the same time.

They share the volume's lock, so that it is not staged, grown or deleted meanwhile. An idle volume
is prepared once for all of them: preparing it again would change the data that the others are
copying. A volume that is frozen for the copy is copied by one operation at a time.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

from pycsi.backends import Backend
from pycsi.model.errors import Aborted
from pycsi.model.trace import phase

_PATIENCE = 10.0
"""Seconds to wait for a turn; a freeze takes milliseconds if blocks are shared."""


@dataclasses.dataclass(slots=True)
class _Copied:
    """A volume that is being copied; `prepared` is set once it is idle and was prepared."""

    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    copiers: int = 0
    prepared: bool = False


class Turns:
    """The volumes that are being copied, by id."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._copied: dict[str, _Copied] = {}

    @contextlib.contextmanager
    def prepared(self, source: Backend) -> Iterator[None]:
        """Prepare a volume for being copied in the `with` block, and keep it so.

        `Aborted` if another operation's turn takes longer than a freeze should.
        """
        name = source.volume.id
        with self._among_copiers(name) as copied, contextlib.ExitStack() as turn:
            with phase("turn"):
                if not copied.turn.acquire(timeout=_PATIENCE):
                    raise Aborted(f"volume {name}: it is being copied otherwise; try again")
            turn.callback(copied.turn.release)
            if not copied.prepared:
                with phase("prepare"):
                    source.prepare_copy()
                copied.prepared = source.written_at() is None
            if not source.freezable():
                turn.close()
            yield

    @contextlib.contextmanager
    def _among_copiers(self, name: str) -> Iterator[_Copied]:
        with self._mutex:
            copied = self._copied.setdefault(name, _Copied())
            copied.copiers += 1
        try:
            yield copied
        finally:
            with self._mutex:
                copied.copiers -= 1
                if not copied.copiers:
                    del self._copied[name]
