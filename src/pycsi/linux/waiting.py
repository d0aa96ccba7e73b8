"""Waiting a limited time for system calls that may never return.

A thread that waits for a disk, a FUSE or an NFS that hangs can be neither interrupted nor ended. So
calls that may hang are made by another thread, which is given up when it takes too long. Until it
returns, nothing with the same key is asked again: at most one thread hangs for each key.
"""

import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds within which each item has to come; otherwise what is asked does not answer."""

MOST_STUCK = 32
"""The number of threads that may hang, for all keys together; then nothing more is asked."""

_LONGEST_QUEUE = 2 * PATIENCE
"""Seconds to wait until the earlier calls of a key are done, if they do get answers."""

_MOST_IDLE = 8
"""The number of threads that are kept for the next calls."""


class NoAnswerError(Exception):
    """What is asked does not answer, and may never do so."""


class NotAskedError(Exception):
    """Nothing was asked: too many threads hang already, or too many calls of the key wait.

    Or no thread can be started.
    """


class _Key:
    """The calls of one key: `callers` are making one or waiting for their `turn`.

    `latest` is the time at which the current call began, or has got its latest answer; `asker` is
    the thread that makes it.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.asker = 0
        self.callers = 0
        self.latest = time.monotonic()

    def patience(self) -> float:
        """Return the seconds that are left for the next answer."""
        return max(0.0, self.latest + PATIENCE - time.monotonic())


_keys: dict[str, _Key] = {}
_mutex = threading.Lock()
_idle: list["SimpleQueue[Callable[[], None]]"] = []


def collect(key: str, items: Iterable[T]) -> list[T]:
    """Return all `items`, which another thread takes from the iterable.

    What the iterable raises is raised here. `NoAnswerError` if an item takes longer than `PATIENCE`
    seconds, and at once if one of the same key already does. `NotAskedError` as it says. A thread
    that already asks for the key takes the items itself.
    """
    current = _keys.get(key)
    if current and current.asker == threading.get_ident():
        return list(items)
    asked = _begin(key)
    collected: list[T] = []
    failures: list[BaseException] = []
    given_up = False
    over = threading.Lock()
    over.acquire()

    def ask() -> None:
        asked.asker = threading.get_ident()
        try:
            for item in items:
                asked.latest = time.monotonic()
                collected.append(item)
                if given_up:
                    break
        except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
            failures.append(error)
        finally:
            asked.asker = 0
            asked.turn.release()
            _leave(key, asked)
            over.release()

    try:
        _hand_over(ask)
    except RuntimeError:  # such as at the maximum of processes (pthread_create(3))
        asked.turn.release()
        _leave(key, asked)
        raise NotAskedError("no thread can be started") from None
    while not over.acquire(timeout=asked.patience()):
        if not asked.patience():
            given_up = True
            raise NoAnswerError(key)
    for failure in failures:
        raise failure
    return collected


def call(key: str, ask: Callable[[], T]) -> T:
    """Return what `ask` returns, under the conditions of `collect`."""
    return collect(key, (ask() for _ in range(1)))[0]


def _begin(key: str) -> _Key:
    """Wait until the calls of `key` are this one's, and return them."""
    with _mutex:
        if key not in _keys and _stuck() >= MOST_STUCK:
            raise NotAskedError(f"{MOST_STUCK} calls hang already")
        asked = _keys.setdefault(key, _Key())
        asked.callers += 1
    deadline = time.monotonic() + _LONGEST_QUEUE
    while not asked.turn.acquire(timeout=asked.patience()):
        if not asked.patience():
            _leave(key, asked)
            raise NoAnswerError(key)
        if time.monotonic() > deadline:
            _leave(key, asked)
            raise NotAskedError("too many others are asking")
    asked.latest = time.monotonic()
    return asked


def _stuck() -> int:
    """Return the number of threads that hang."""
    return sum(not asked.patience() for asked in _keys.values())


def _leave(key: str, asked: _Key) -> None:
    with _mutex:
        asked.callers -= 1
        if not asked.callers:
            del _keys[key]


def _hand_over(work: Callable[[], None]) -> None:
    """Have an idle thread do the work, or a new one; the process does not wait for its end."""
    try:
        queue = _idle.pop()
    except IndexError:
        queue = SimpleQueue()
        threading.Thread(target=_work, args=(queue,), name="asking", daemon=True).start()
    queue.put(work)


def _work(queue: "SimpleQueue[Callable[[], None]]") -> None:
    while True:
        queue.get()()
        if len(_idle) >= _MOST_IDLE:
            return
        _idle.append(queue)
