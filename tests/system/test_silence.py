"""A disk or a mount that neither answers nor fails: it is told, and nobody waits for it.

The silence is that of a FUSE on the way to the pool, or to where a volume is mounted.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import FilesystemFactory, needs, run
from driver import GIB, MIB, Driver
from health import storage, unwell, well
from silent import SilentFilesystem

from pycsi.cli import rows as lists
from pycsi.linux import mount, waiting
from pycsi.linux.waiting import PATIENCE
from pycsi.model.config import PoolConfig
from pycsi.proto import csi_pb2 as csi

SOON = PATIENCE + 3
"""Seconds for an answer about what was not known to be silent."""

AT_ONCE = 1.0
"""Seconds for an answer about what is known to be, or does answer."""


@pytest.fixture
def silent(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SilentFilesystem]:
    """Return a filesystem that can fall silent."""
    needs("/dev/fuse", met=Path("/dev/fuse").exists())
    with SilentFilesystem(tmp_path_factory.mktemp("silent")) as made:
        yield made


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


def conditions(driver: Driver) -> dict[str, csi.VolumeCondition]:
    entries = driver.controller.ListVolumes(csi.ListVolumesRequest(), timeout=60).entries
    return {entry.volume.volume_id: entry.status.volume_condition for entry in entries}


def hanging(driver: Driver) -> int:
    """Return the number of the driver's threads that wait for the silent filesystem."""
    assert driver.process
    tasks = Path(f"/proc/{driver.process.pid}/task")
    return sum("request_wait_answer" in (task / "wchan").read_text() for task in tasks.iterdir())


def test_pool_that_falls_silent(
    silent: SilentFilesystem,
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
) -> None:
    """Its volumes are out of reach; those of another pool are as before, and so are all calls."""
    disk, healthy = filesystem("ext4", GIB), tmp_path / "pool"
    shown = silent.place / "disk"
    shown.mkdir()
    run("mount", "--bind", disk, shown)
    healthy.mkdir()
    try:
        driver = serve(f"slow={shown}", f"other={healthy}")
        slow = {
            driver.create("d", type="directory", quota="none", pool="slow").volume_id,
            driver.create("i", type="image", pool="slow").volume_id,
        }
        fit = {
            driver.create("e", type="directory", quota="none", pool="other").volume_id,
            driver.create("z", type="image", pool="other").volume_id,
        }
        assert not any(item.abnormal for item in conditions(driver).values())
        image, other = "i@node-1", "z@node-1"
        with driver.published(image, tmp_path) as target, driver.published(other, tmp_path) as fine:
            silent.fall_silent()
            try:
                with within(SOON):
                    found = conditions(driver)
                assert found.keys() == slow | fit
                assert all("not answered" in found[name].message for name in slow)
                assert not any(found[name].abnormal for name in fit)
                with within(AT_ONCE):
                    assert conditions(driver) == found
                    assert driver.condition(image) == found[image]
                    stats = driver.stats(image, target)
                    assert stats.volume_condition == found[image]
                    assert not stats.usage
                    assert driver.stats(other, fine).usage
                    unwell(driver, image, "PoolNotResponding", "slow")
                    well(driver, other)
                    assert storage(driver)["PoolNotResponding"].message.startswith("pool slow: ")
                    assert len(driver.unwell()) == len(slow)
                many_ask(driver, [*slow, *fit])
                assert hanging(driver) <= 4  # for health, for the reaper, the trimmer, the watch
            finally:
                silent.speak()
            all_is_well_again(driver)
            assert driver.stats(image, target).usage
    finally:
        mount.umount2(shown, mount.MNT_DETACH)


def many_ask(driver: Driver, volumes: list[str]) -> None:
    """Ask for conditions more often at the same time than the driver has threads for calls."""
    with ThreadPoolExecutor(64) as threads, within(20):
        asked = list(threads.map(driver.condition, volumes * 100))
    assert len(asked) == 100 * len(volumes)
    with within(AT_ONCE):
        driver.identity.Probe(csi.ProbeRequest(), timeout=5)


def all_is_well_again(driver: Driver) -> None:
    deadline = time.monotonic() + 10
    while any(item.abnormal for item in conditions(driver).values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_mount_that_falls_silent(silent: SilentFilesystem, driver: Driver, tmp_path: Path) -> None:
    """A volume whose mount cannot be reached is told; its neighbours are well."""
    volume_id = driver.create("v", type="image").volume_id
    other = driver.create("w", type="image").volume_id
    with driver.published(volume_id, silent.place) as target:
        assert not driver.condition(volume_id).abnormal
        silent.fall_silent()
        try:
            with within(SOON):
                condition = driver.condition(volume_id)
            assert condition.abnormal
            assert "does not answer" in condition.message
            with within(AT_ONCE):
                assert conditions(driver)[volume_id] == condition
                assert [item.volume_id for item in driver.unwell()] == [volume_id]
                well(driver, other)
                assert storage(driver) == {}
            with within(2 * SOON):
                unwell(driver, volume_id, "NotResponding", "does not answer")
                staging = silent.place / f"staging-{volume_id}"
                health = driver.node_health(volume_id, staging, target)
                assert health == driver.health(volume_id)
            with within(SOON):
                stats = driver.stats(volume_id, target)
            assert stats.volume_condition.abnormal
            assert not stats.usage
        finally:
            silent.speak()
        all_is_well_again(driver)
        assert driver.stats(volume_id, target).usage


def test_many_mounts_that_fall_silent(
    silent: SilentFilesystem, driver: Driver, tmp_path: Path
) -> None:
    """A listing does not wait for each of them: the others are not examined this time."""
    with contextlib.ExitStack() as published:
        for number in range(3):
            volume_id = driver.create(f"v{number}", 16 * MIB, type="image").volume_id
            published.enter_context(driver.published(volume_id, silent.place))
        published.callback(silent.speak)
        silent.fall_silent()
        with within(2 * PATIENCE + SOON):
            messages = [item.message for item in conditions(driver).values()]
        assert "does not answer" in messages[0]
        assert "not examined" in messages[-1]
        while not all(item.abnormal for item in conditions(driver).values()):
            pass
        assert hanging(driver) <= 3
        with within(AT_ONCE):
            conditions(driver)


def tells(silent: SilentFilesystem, driver: Driver, text: str, *words: str) -> int:
    """Expect a command on the driver's pool to say something while a filesystem is silent.

    Return its status, once the filesystem has answered.
    """
    command = [sys.executable, "-m", "pycsi", *words, f"--pool={driver.pools[0]}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            with within(2 * SOON):
                assert process.stdout
                said = any(text in line for line in process.stdout)
        finally:
            silent.speak()
    assert said
    return process.returncode


def test_command(silent: SilentFilesystem, driver: Driver) -> None:
    """`pycsi get volumes` tells of a mount that is silent; its process ends when that answers."""
    volume_id = driver.create("v", type="image").volume_id
    with driver.published(volume_id, silent.place):
        silent.fall_silent()
        assert tells(silent, driver, "NotResponding", "get", "volumes") == 0


def test_doctor(
    silent: SilentFilesystem,
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
) -> None:
    """A pool whose disk is silent is a finding, and keeps nobody waiting."""
    disk, shown = filesystem("ext4", GIB), silent.place / "disk"
    shown.mkdir()
    run("mount", "--bind", disk, shown)
    try:
        driver = serve(shown)
        silent.fall_silent()
        assert tells(silent, driver, "(PoolNotResponding)", "doctor") == 1
        driver.stop()
    finally:
        silent.speak()
        run("umount", shown)


def test_command_when_too_much_hangs(
    silent: SilentFilesystem, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pycsi get volumes` lists what cannot be examined too, or says that it could not look."""
    monkeypatch.setattr(waiting, "PATIENCE", 0.3)
    monkeypatch.setattr(waiting, "MOST_STUCK", 1)
    pool = PoolConfig.parse(driver.pools[0])
    with contextlib.ExitStack() as published:
        for name in ("v", "w"):
            volume_id = driver.create(name, 16 * MIB, type="image").volume_id
            published.enter_context(driver.published(volume_id, silent.place))
        published.callback(silent.speak)
        silent.fall_silent()
        rows, faults = lists.look("volumes", [pool])
        reasons = [fault["reason"] for row in rows for fault in row["faults"]]
        assert (reasons, faults) == (["NotResponding", "Unreadable"], [])
        rows, faults = lists.look("volumes", [pool])
        assert rows == []
        assert faults == [f"pool {pool.name}: 1 calls hang already; try again"]
