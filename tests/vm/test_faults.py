"""The driver is killed while it makes and deletes directories with a project quota."""

from collections.abc import Callable
from pathlib import Path

import pytest
from driver import Driver
from reliability.faults import some
from reliability.playing import Play
from reliability.scenes import DIRECTORY, Create, Reap, Scene

from pycsi.linux import quota
from pycsi.linux.record import read_record

_SHARE = 6


def check_projects(pool: Path, first: int) -> None:
    """Check that no project that the driver has ever used has a limit, or holds anything."""
    following = read_record(pool / "projects.json")["next"]
    assert following > first
    for project in range(first, following):
        usage = quota.usage(pool, project)
        assert (usage.limit, usage.used, usage.inodes) == (0, 0, 0), f"project {project} is left"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scene", [Create, Reap])
def test_killed_with_project_quota(
    pool: Path,
    serve: Callable[..., Driver],
    tmp_path: Path,
    thorough: bool,
    record_property: Callable[[str, object], None],
    scene: type[Scene],
) -> None:
    """Whatever was half done, no project keeps its limit or its files."""
    driver = serve(pool)
    driver.delete(driver.create("first").volume_id)
    first = read_record(pool / "projects.json")["next"] - 1
    play = Play(driver, "project quota", tmp_path, scene, DIRECTORY)
    found = play.points(asking=False)
    chosen = found if thorough else some(found, _SHARE, 0)
    killed = play.kill_at(chosen)
    assert killed >= len(chosen) / 2
    check_projects(pool, first)
    record_property("kills", killed)
