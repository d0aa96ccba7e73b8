"""Every system call of an RPC fails once, with each error that the kernel might give."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from driver import MIB, Driver
from reliability.catalogue import PLAYED
from reliability.conftest import Counter, check_whole
from reliability.faults import Point, Worker, some, traced
from reliability.playing import Play
from reliability.scenes import Kind, Scene
from rpc.conftest import code_of

Code = grpc.StatusCode

_SHARE = 5

_NO_ROOM = {Code.OK, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION}
ANSWERS = {
    "EIO": {Code.OK, Code.FAILED_PRECONDITION},
    "ENOSPC": _NO_ROOM,
    "EDQUOT": _NO_ROOM,
    "ENOMEM": _NO_ROOM,
    "EINTR": {Code.OK, Code.UNAVAILABLE, Code.FAILED_PRECONDITION},
    "EBUSY": {Code.OK, Code.FAILED_PRECONDITION, Code.ABORTED, Code.NOT_FOUND},
}
"""How an RPC may end when a system call has failed so; OK where it could do without, or did it
again."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("scene", "kind"), PLAYED)
def test_failing_at_every_system_call(
    big_pool: Path,
    ground: str,
    serve: Callable[..., Driver],
    tmp_path: Path,
    thorough: bool,
    counted: Counter,
    scene: type[Scene],
    kind: Kind,
) -> None:
    """The answer is a clean one, nothing half made is left, and the RPC succeeds when repeated."""
    driver = serve(big_pool, options=("--enable-attach",))
    play = Play(driver, ground, tmp_path, scene, kind)
    errors: Iterator[str] = itertools.cycle(ANSWERS)
    found = play.points(asking=True)
    every = [(point, next(errors)) for point in found for _ in range(2 if thorough else 1)]
    chosen = every if thorough else some(every, _SHARE, len(tmp_path.name))
    failed = 0
    played: Scene | None = None
    for number, (point, name) in enumerate(chosen):
        # What has failed is tried again with the next fault, until it has been done.
        fresh = played is None
        played = played or play.begin(f"e{number}")
        code, reached = fail(play, played, point, name)
        if not (reached or fresh):
            play.end(played)
            played = play.begin(f"f{number}")
            code, reached = fail(play, played, point, name)
        failed += reached
        if code is Code.OK:
            play.end(played)
            played = None
    if played:
        play.end(played)
    assert failed >= len(chosen) // 2
    counted(f"errors in {scene.__name__}", failed)


def fail(play: Play, played: Scene, point: Point, name: str) -> tuple[grpc.StatusCode, bool]:
    """Let one call fail; return how the RPC ended, and whether it got as far as that."""
    with play.inject(played, point, f"error={name}"):
        code = code_of(played.act)
    try:
        assert code in ANSWERS[name]
        if played.worker is Worker.RPC:  # what could not be reaped waits until there is more
            check_whole(play.driver, play.pool)
    except AssertionError as error:
        error.add_note(f"after {name} at {point}: {code}")
        raise
    return code, "(INJECTED)" in play.log.read_text()


def test_program_that_is_started_in_want_of_memory(
    root: None, driver: Driver, tmp_path: Path
) -> None:
    """Where vfork(2) fails a program is started by fork(2), and gRPC does not crash it."""
    fault = ("-e", "trace=vfork", "-e", "inject=vfork:error=ENOMEM:when=1+")
    with traced(driver, Worker.RPC, tmp_path / "log", *fault):
        for number in range(20):
            driver.create(f"v{number}", 16 * MIB, type="image")
    assert "(INJECTED)" in (tmp_path / "log").read_text()
