"""Waiting for what may never answer: nobody waits for long, and few threads hang."""

import contextlib
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pycsi.linux import waiting
from pycsi.linux.waiting import NoAnswerError, NotAskedError, call, collect

Hung = threading.Event


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a part of a second where the driver waits for seconds."""
    monkeypatch.setattr(waiting, "PATIENCE", 0.3)


@pytest.fixture
def hung() -> Iterator[Hung]:
    """Return what calls wait for, as for a disk that hangs; at the end it answers."""
    event = threading.Event()
    yield event
    event.set()


def asking() -> int:
    return sum(thread.name == "asking" for thread in threading.enumerate())


def answered_again(key: str) -> bool:
    """Tell whether a key is asked again, soon after what hung has answered."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(NoAnswerError, NotAskedError):
            return call(key, lambda: True)
        time.sleep(0.01)
    return False


def in_silence(key: str, hung: Hung) -> threading.Thread:
    """Return a thread that asks what hangs, and is told that it does not answer."""

    def ask() -> None:
        with pytest.raises(NoAnswerError):
            call(key, hung.wait)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_answers() -> None:
    assert collect("k", iter(range(3))) == [0, 1, 2]
    assert call("k", lambda: "x") == "x"
    assert collect("k", []) == []


def test_error() -> None:
    """What goes wrong is raised where it is waited for, and the key can be asked again."""
    with pytest.raises(ZeroDivisionError):
        call("k", lambda: 1 // 0)
    assert call("k", lambda: 1) == 1


def test_call_within_a_call() -> None:
    """Who asks already need not wait for its own turn."""
    assert call("k", lambda: call("k", lambda: call("other", lambda: 1))) == 1


def test_silence(hung: Hung) -> None:
    """What does not answer is waited for once; afterwards it is known, until it answers."""
    with pytest.raises(NoAnswerError):
        call("k", hung.wait)
    begin = time.monotonic()
    for _ in range(100):
        with pytest.raises(NoAnswerError):
            call("k", lambda: 1)
    assert time.monotonic() - begin < 0.2
    assert call("other", lambda: 2) == 2
    hung.set()
    assert answered_again("k")


def test_slow_but_steady() -> None:
    """The time counts from answer to answer, not for all of them."""

    def slowly() -> Iterator[int]:
        for number in range(5):
            time.sleep(0.15)
            yield number

    assert collect("k", slowly()) == [0, 1, 2, 3, 4]


def test_given_up(hung: Hung) -> None:
    """Who was given up asks for nothing more once it goes on."""
    asked = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            hung.wait()
            asked.append(number)
            yield number

    with pytest.raises(NoAnswerError):
        collect("k", items())
    hung.set()
    assert answered_again("k")
    assert len(asked) == 1


def test_one_thread_hangs_for_a_key(hung: Hung) -> None:
    """However many ask at the same time, each gets an answer soon, and one thread hangs."""
    before = asking()
    begin = time.monotonic()
    for asker in [in_silence("k", hung) for _ in range(50)]:
        asker.join(3)
    assert time.monotonic() - begin < 2
    assert asking() <= before + 1


def test_most_threads_that_hang(hung: Hung) -> None:
    """Beyond a number of threads that hang nothing more is asked; who has answered goes on."""
    for asker in [in_silence(str(number), hung) for number in range(waiting.MOST_STUCK)]:
        asker.join(3)
    with pytest.raises(NotAskedError):
        call("k", lambda: 1)
    with pytest.raises(NoAnswerError):
        call("0", lambda: 1)
    hung.set()
    assert answered_again("k")


def test_calls_of_a_key_take_turns() -> None:
    """None of those who ask at the same time is refused while answers come."""
    busy = threading.Lock()

    def answer() -> int:
        assert busy.acquire(blocking=False)
        time.sleep(0.01)
        busy.release()
        return 1

    answers: list[int] = []
    askers = [threading.Thread(target=lambda: answers.append(call("k", answer))) for _ in range(40)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(5)
    assert answers == [1] * 40


def test_no_thread() -> None:
    """While no thread can be started nothing is asked; afterwards the same key is asked again."""
    program = """
import threading
from pycsi.linux.waiting import NotAskedError, call

threading.stack_size(2**50)  # more than an address space has
for _ in range(2):
    try:
        call("k", lambda: 1)
    except NotAskedError as error:
        print(error)
threading.stack_size(0)
print(call("k", lambda: 2))
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert said.stdout.splitlines() == [*["no thread can be started"] * 2, "2"], said.stderr
