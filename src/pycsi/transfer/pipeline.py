"""A thread that turns what a function gives away, piece by piece, into an iterator."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_WAITING = 8
"""How many items wait between the two threads; each has a few MiB at most."""


class _EndedError(Exception):
    """Nobody wants what is produced any more."""


def produced(produce: Callable[[Callable[[Item], None]], None]) -> Iterator[Item]:
    """Yield what `produce` gives to the function that it gets; a thread runs it, somewhat ahead.

    An error of `produce` is raised when what came before it was yielded. If the iterator is closed,
    that function raises an error, which ends `produce`.
    """
    ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(_WAITING)
    ended = threading.Event()

    def give(item: Item) -> None:
        if ended.is_set():
            raise _EndedError
        ready.put((item,))

    def work() -> None:
        try:
            produce(give)
        except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits)
            ready.put(error)
        else:
            ready.put(None)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found[0]
    finally:
        ended.set()
        while thread.is_alive():  # it may wait for a place in the queue
            try:
                ready.get(timeout=0.01)
            except queue.Empty:
                continue
