"""Threads that read ahead and write behind, so that disks work while bytes are checked.

Reading, hashing, compressing and writing release the interpreter's lock, so each has a processor.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from pycsi.transfer.writer import Sink

Item = TypeVar("Item")

_WAITING = 8
"""How many items wait between two threads; each has a few MiB at most."""

_PATIENCE = 1.0
"""Seconds in which a write has to end that nobody wants any more: a pipe may not be read."""


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


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield what `items` yields, of which a thread prepares some in advance."""

    def produce(give: Callable[[Item], None]) -> None:
        for item in items:
            give(item)

    return produced(produce)


@contextlib.contextmanager
def behind(sink: Sink) -> Iterator[Sink]:
    """Yield a sink whose bytes a thread gives to `sink`; they must not change meanwhile.

    When the `with` block has ended, all were given, or the error of `sink` is raised, as it is by
    the calls after it. If the block fails, the rest is not given.
    """
    waiting: queue.Queue[bytes | memoryview | None] = queue.Queue(_WAITING)
    failures: list[BaseException] = []

    def work() -> None:
        while (data := waiting.get()) is not None:
            if not failures:
                try:
                    sink(data)
                except BaseException as error:  # noqa: BLE001  (it belongs to whoever gives bytes)
                    failures.append(error)

    def give(data: bytes | memoryview) -> None:
        if failures:
            raise failures[0]
        waiting.put(data)

    thread = threading.Thread(target=work, name="write-behind", daemon=True)
    thread.start()
    try:
        yield give
    except BaseException as error:
        failures.append(error)
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        waiting.put(None)
        thread.join(_PATIENCE)
        raise
    waiting.put(None)
    thread.join()
    if failures:
        raise failures[0]
