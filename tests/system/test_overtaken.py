"""What is asked of a volume while that is changed: system calls are delayed, so that it happens."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, needs
from driver import GIB, MIB, Driver, refused

from pycsi.linux.descriptor import DIRECTORY, opened
from pycsi.proto import csi_pb2 as csi

DELAY = 1.0


@contextlib.contextmanager
def delayed(driver: Driver, call: str, when: str = "1+") -> Iterator[None]:
    """Let those system calls of each of the driver's threads begin late through the block."""
    needs("strace", met=shutil.which("strace") is not None)
    assert driver.process is not None
    inject = f"inject={call}:delay_enter={DELAY * 1_000_000:.0f}:when={when}"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    tracer = subprocess.Popen([*command, "-p", str(driver.process.pid)])
    threads = Path(f"/proc/{driver.process.pid}/task")
    try:
        while any("TracerPid:\t0\n" in (it / "status").read_text() for it in threads.iterdir()):
            time.sleep(0.01)
        yield
    finally:
        tracer.terminate()
        tracer.wait()


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def conditions(driver: Driver) -> list[csi.VolumeCondition]:
    listed = driver.controller.ListVolumes(csi.ListVolumesRequest())
    return [entry.status.volume_condition for entry in listed.entries]


@pytest.mark.parametrize("parameters", [{"quota": "none"}, {"type": "image"}])
def test_examined_while_it_is_deleted(
    driver: Driver, pool: Path, parameters: dict[str, str]
) -> None:
    """A volume of which only the record is left in memory is not called damaged."""
    volume_id = driver.create("v", 16 * MIB, parameters=parameters).volume_id
    with ThreadPoolExecutor() as threads:
        with delayed(driver, "fsync"):
            deletion = threads.submit(driver.delete, volume_id)
            wait_for(lambda: not (pool / "volumes" / volume_id).exists())
            assert not any(item.abnormal for item in conditions(driver))
            assert not driver.condition(volume_id).abnormal
            assert not deletion.done(), "it was looked at too late"
        deletion.result()
    assert conditions(driver) == []


def test_examined_while_it_grows(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """A limit that is raised before that is recorded is no fault of the volume."""
    driver = serve(filesystem("btrfs", GIB))
    volume_id = driver.create("v", 16 * MIB).volume_id
    with ThreadPoolExecutor() as threads:
        with delayed(driver, "fsync"):
            growth = threads.submit(driver.expand, volume_id, 32 * MIB)
            while not growth.done():
                assert not driver.condition(volume_id).abnormal
        growth.result()
    assert driver.condition(volume_id).message == "healthy"


def test_examination_keeps_nobody_waiting(driver: Driver, pool: Path) -> None:
    """Whoever looks at a damaged volume, for however long, does not abort what is done to it."""
    volume_id = driver.create("v", 16 * MIB, type="image").volume_id
    image = pool / "volumes" / volume_id / "disk.img"
    image.rename(image.with_name("elsewhere"))
    with ThreadPoolExecutor() as threads, delayed(driver, "statfs"):
        seen = threads.submit(driver.condition, volume_id)
        time.sleep(DELAY * 1.5)  # it was found damaged, and is looked at again
        driver.modify(volume_id, onDelete="retain")
        assert not seen.done(), "it was looked at too fast"
        assert not seen.result().abnormal
    assert driver.condition(volume_id).abnormal


def test_measured_while_it_is_unpublished(root: None, driver: Driver, tmp_path: Path) -> None:
    """A volume that has gone from its path is not there, and what is below is not measured."""
    volume_id = driver.create("v", 4 * MIB, quota="none").volume_id
    with (
        driver.published(volume_id, tmp_path) as target,
        ThreadPoolExecutor() as threads,
        delayed(driver, "statfs", when="2"),  # the first of a thread looks at the pool
    ):
        measured = threads.submit(driver.stats, volume_id, target)
        time.sleep(DELAY / 3)
        driver.unpublish(volume_id, target)
        with refused(grpc.StatusCode.NOT_FOUND):
            measured.result()


def test_unmounted_while_somebody_looks(root: None, driver: Driver, tmp_path: Path) -> None:
    """Whoever has a directory open for a moment, as this driver does itself, keeps nothing."""
    volume_id = driver.create("v", 16 * MIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target, ThreadPoolExecutor() as threads:
        with opened(target, DIRECTORY):
            unpublished = threads.submit(driver.unpublish, volume_id, target)
            time.sleep(0.3)
        unpublished.result()
        assert not target.exists()
        with opened(tmp_path / f"staging-{volume_id}", DIRECTORY):
            unstaged = threads.submit(driver.unstage, volume_id, tmp_path / f"staging-{volume_id}")
            time.sleep(0.3)
        unstaged.result()
    driver.delete(volume_id)
