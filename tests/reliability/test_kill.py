"""The driver is killed before every system call that changes something, and an RPC is repeated.

After the next start the RPC succeeds; there is what it made, once and whole, and nothing else.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from driver import Driver
from reliability.catalogue import PLAYED
from reliability.conftest import Counter
from reliability.faults import some
from reliability.playing import Play
from reliability.scenes import Kind, Scene

_SHARE = 4


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
    driver = serve(big_pool, options=("--enable-attach",))
    play = Play(driver, ground, tmp_path, scene, kind)
    found = play.points(asking=False)
    chosen = found if thorough else some(found, _SHARE, len(tmp_path.name))
    killed = play.kill_at(chosen)
    assert killed >= len(chosen) / 2, f"{killed} of {len(chosen)} points were reached"
    counted(f"kills in {scene.__name__}", killed)
