"""The driver is killed before every system call that changes something, and an RPC is repeated."""

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from driver import Driver
from reliability.catalogue import PLAYED
from reliability.conftest import Counter, check_unused, check_whole
from reliability.faults import died, record, some, traced
from reliability.scenes import Kind, Scene

_SHARE = 12


def revive(driver: Driver) -> None:
    """Start a driver that was killed."""
    assert driver.process is not None
    assert driver.process.returncode == -signal.SIGKILL
    driver.channel.close()
    driver.start()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("scene", "kind"), PLAYED)
def test_killed_at_every_system_call(
    big_pool: Path,
    ground: str,
    serve: Callable[..., Driver],
    tmp_path: Path,
    thorough: bool,
    counted: Counter,
    scene: type[Scene],
    kind: Kind,
) -> None:
    """After the next start the RPC succeeds, and there is what it made, once and whole."""
    driver = serve(f"default={big_pool}", options=("--enable-attach",))
    log = tmp_path / "strace.log"

    def play(tag: str) -> Scene:
        played = scene(driver, ground, tmp_path, tag, kind)
        played.prepare()
        return played

    def end(played: Scene) -> None:
        played.check()
        played.undo()
        check_whole(driver, big_pool)
        check_unused(big_pool)

    model = play("r")
    found = record(driver, scene.worker, log, model.act, asking=False)
    end(model)
    chosen = found if thorough else some(found, _SHARE, len(tmp_path.name))
    killed = 0
    for number, point in enumerate(chosen):
        played = play(f"k{number}")
        fault = ("-e", f"trace={point.name}", "-e", f"inject={point.inject('signal=KILL')}")
        with traced(driver, scene.worker, log, *fault), contextlib.suppress(grpc.RpcError):
            played.act()
        if died(driver):
            killed += 1
            revive(driver)
            check_whole(driver, big_pool)
        played.act()
        end(played)
    assert killed >= len(chosen) * 0.7, f"{killed} of {len(chosen)} points were reached"
    counted(f"kills in {scene.__name__}", killed)
