"""Every system call of an RPC fails once, with each error that the kernel might give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from driver import Driver
from reliability.catalogue import PLAYED
from reliability.conftest import Counter, check_unused, check_whole
from reliability.faults import Point, record, some, traced
from reliability.scenes import Kind, Scene

Code = grpc.StatusCode

_SHARE = 20

_NO_ROOM = {Code.OK, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION}
ANSWERS = {
    "EIO": {Code.OK, Code.INTERNAL, Code.FAILED_PRECONDITION},
    "ENOSPC": _NO_ROOM,
    "EDQUOT": _NO_ROOM,
    "ENOMEM": _NO_ROOM,
    "EINTR": {Code.OK, Code.UNAVAILABLE, Code.FAILED_PRECONDITION},
    "EBUSY": {Code.OK, Code.FAILED_PRECONDITION, Code.ABORTED, Code.NOT_FOUND},
}
"""How an RPC may end when a system call has failed so; OK where it could do without, or did it
again."""


def answer(act: Callable[[], None], name: str) -> grpc.StatusCode:
    """Return how an RPC ends; a refusal has to say what the kernel said."""
    try:
        act()
    except grpc.RpcError as error:
        failure: Any = error
        assert failure.details(), "a status message must not be empty"
        print(failure.details())  # noqa: T201
        return failure.code()  # type: ignore[no-any-return]
    return Code.OK


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
    driver = serve(f"default={big_pool}", options=("--enable-attach",))
    log = tmp_path / "strace.log"

    def play(tag: str) -> Scene:
        played = scene(driver, ground, tmp_path, tag, kind)
        played.prepare()
        return played

    def end(played: Scene) -> None:
        check_whole(driver, big_pool)
        played.act()
        played.check()
        played.undo()
        check_whole(driver, big_pool)
        check_unused(big_pool)

    def fail(point: Point, name: str, tag: str) -> bool:
        """Let one call fail; tell whether it was reached."""
        played = play(tag)
        fault = ("-e", f"trace={point.name}", "-e", f"inject={point.inject(f'error={name}')}")
        with traced(driver, scene.worker, log, *fault):
            code = answer(played.act, name)
        reached = "(INJECTED)" in log.read_text()
        assert code in ANSWERS[name], f"{name} at {point}: {code}"
        end(played)
        return reached

    model = play("r")
    found = record(driver, scene.worker, log, model.act, asking=True)
    end(model)
    chosen = found if thorough else some(found, _SHARE, len(tmp_path.name))
    names = list(ANSWERS)
    failed = 0
    for number, point in enumerate(chosen):
        for turn, name in enumerate(names if thorough else [names[number % len(names)]]):
            failed += fail(point, name, f"e{number}-{turn}")
    counted(f"errors in {scene.__name__}", failed)
