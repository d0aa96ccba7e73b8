"""Who may make a volume ready to be copied, where several copy it at the same time.

They share the volume's lock, so nobody stages, grows or deletes it meanwhile. An idle volume is
made ready once for all of them: doing that again would change what the others are copying. One
that is frozen to be copied is had by one at a time.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

from pycsi.backends import Backend
from pycsi.model.errors import Aborted

_PATIENCE = 10.0
"""Seconds to wait for one's turn: a freeze takes milliseconds where blocks are shared."""


@dataclasses.dataclass(slots=True)
class _Copied:
    """A volume that is being copied; `ready` is set once it is idle and needs nothing more."""

    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    copiers: int = 0
    ready: bool = False


class Turns:
    """The volumes that are being copied, by id."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._copied: dict[str, _Copied] = {}

    @contextlib.contextmanager
    def ready(self, source: Backend) -> Iterator[None]:
        """Let a volume be ready to be copied through the `with` block.

        `Aborted` where it is another's turn for longer than a freeze should take.
        """
        name = source.volume.id
        with self._among_copiers(name) as copied, contextlib.ExitStack() as turn:
            if not copied.turn.acquire(timeout=_PATIENCE):
                raise Aborted(f"volume {name}: it is being copied otherwise; try again")
            turn.callback(copied.turn.release)
            if not copied.ready:
                source.prepare_capture()
                copied.ready = source.written_at() is None
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
