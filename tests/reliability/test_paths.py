"""Paths that lead elsewhere, and who may reach what the driver keeps."""

import contextlib
import ctypes
import os
import random
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import run
from driver import MIB, Driver, block_capability, mount_capability, refused
from reliability.canary import mounted_in, untouched
from reliability.conftest import Counter
from rpc.conftest import OK, code_of

from pycsi.proto import csi_pb2 as csi

DIRECTORY = {"type": "directory", "quota": "none"}
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
AT_FDCWD = -100
RENAME_EXCHANGE = 2
NOBODY = 65534
LONGEST_PAUSE = 0.001
"""Seconds between two swaps, or what the call took before: one that is faster would be over."""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Return a directory with an empty directory and an empty file: what a driver might take."""
    place = tmp_path / "canary"
    (place / "staging").mkdir(parents=True)
    (place / "target").mkdir()
    (place / "device").touch()
    return place


def through_links(tmp_path: Path, canary: Path) -> list[tuple[Path, Path]]:
    """Return links to the canary: each with a path in which it is the last, or not."""
    (tmp_path / "above").symlink_to(canary.parent)
    (tmp_path / "link").symlink_to(canary)
    (tmp_path / "relative").symlink_to(canary.name)
    (tmp_path / "second").symlink_to(tmp_path / "link")
    names = ("link", "relative", "second")
    found = [(tmp_path / name, tmp_path / name) for name in names]
    return [*found, (tmp_path / "above", tmp_path / "above/canary")]


def test_path_through_a_link(driver: Driver, root: None, tmp_path: Path, canary: Path) -> None:
    """A link in the parents is refused by its name, and nothing is made, or removed, behind it."""
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    with driver.published(volume_id, tmp_path) as target, untouched(canary):
        staging = tmp_path / f"staging-{volume_id}"
        for link, folder in through_links(tmp_path, canary):
            words = (str(link), "symbolic link", "real path")
            for name in ("staging", "target", "device", "new"):
                with refused(INVALID, *words):
                    driver.node.NodeStageVolume(staging_request(volume_id, folder / name))
                with refused(INVALID, *words):
                    driver.publish(volume_id, staging, folder / name)
                with refused(INVALID, *words):
                    driver.publish(volume_id, folder / name, tmp_path / "new")
                with refused(INVALID, *words):
                    driver.unpublish(volume_id, folder / name)
                with refused(INVALID, *words):
                    driver.unstage(volume_id, folder / name)
                with refused(MISSING):
                    driver.unpublish("lost@node-1", folder / name)
                with refused(INVALID, *words):
                    inline = {"csi.storage.k8s.io/ephemeral": "true", "size": "4Mi"}
                    driver.publish("csi-1", None, folder / name, context=inline)
        (tmp_path / "here").symlink_to(tmp_path)
        for call in (driver.stats, driver.node_expand):
            with refused(MISSING):
                call(volume_id, tmp_path / "here" / target.name)
    assert not (tmp_path / "new").exists()
    assert driver.volume_ids() == [volume_id]


def staging_request(volume_id: str, path: Path) -> csi.NodeStageVolumeRequest:
    return csi.NodeStageVolumeRequest(
        volume_id=volume_id, staging_target_path=str(path), volume_capability=mount_capability()
    )


@contextlib.contextmanager
def exchanging(one: Path, other: Path, chance: random.Random, pause: float) -> Iterator[None]:
    """Swap two names all the time, after at most `pause` seconds; in the end they are as they were.

    They are swapped for a quarter of the time, whatever the pause.
    """
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    done = threading.Event()
    names = os.fsencode(one), os.fsencode(other)

    def swap() -> None:
        while not done.is_set():
            for longest in (pause, pause / 3):
                time.sleep(chance.uniform(0, longest))
                assert rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("kind", ["directory", "image", "block"])
def test_link_that_is_swapped_in(
    driver: Driver,
    tmp_path: Path,
    root: None,
    canary: Path,
    kind: str,
    *,
    thorough: bool,
    counted: Counter,
) -> None:
    """A parent that becomes a link between a look and the use of it leads nowhere either."""
    wanted = block_capability() if kind == "block" else mount_capability()
    more = {"directory": DIRECTORY, "image": {"type": "image"}, "block": {}}[kind]
    volume_id = driver.create("v", 16 * MIB, capability=wanted, parameters=more).volume_id
    folder, link = tmp_path / "folder", tmp_path / "link"
    (folder / "staging").mkdir(parents=True)
    link.symlink_to(canary)
    staging, target = folder / "staging", folder / ("device" if kind == "block" else "target")
    request = staging_request(volume_id, staging)
    request.volume_capability.CopyFrom(wanted)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("stage", lambda: driver.node.NodeStageVolume(request)),
        ("publish", lambda: driver.publish(volume_id, staging, target, wanted)),
        ("stats", lambda: driver.stats(volume_id, target)),
        ("unpublish", lambda: driver.unpublish(volume_id, target)),
        ("unstage", lambda: driver.unstage(volume_id, staging)),
    ]
    ends: dict[tuple[str, str], int] = {}
    took: dict[str, float] = {}
    chance = random.Random(0)  # noqa: S311
    rounds = 1000 if thorough else 60
    with untouched(canary):
        for number in range(rounds):
            for what, call in calls:
                with exchanging(folder, link, chance, min(took.get(what, 1), LONGEST_PAUSE)):
                    began = time.monotonic()
                    code = code_of(call)
                    took[what] = time.monotonic() - began
                assert code.name not in {"INTERNAL", "UNKNOWN"}, f"{what}: {code}"
                assert not mounted_in(canary), f"{what} in round {number}"
                assert code_of(call) is OK, f"{what}, when nobody swaps any more"
                ends[what, code.name] = ends.get((what, code.name), 0) + 1
    assert "Traceback" not in driver.log
    for what in ("stage", "publish", "unpublish", "unstage"):
        assert ends[what, "OK"], f"never in time: {ends}"
        assert ends[what, "INVALID_ARGUMENT"], f"never too late: {ends}"
    counted("calls while a link was swapped in", rounds * len(calls))
    driver.delete(volume_id)


REACH = f"""
import os, socket, sys
above, served, pool, *inside = sys.argv[1:]
os.chdir(above)
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
assert os.path.isdir(pool)
assert os.path.exists(served)
reached = [path for path in inside if os.path.lexists(path)]
try:
    reached += os.listdir(pool)
except PermissionError:
    pass
try:
    socket.socket(socket.AF_UNIX).connect(served)
    reached.append(served)
except PermissionError:
    pass
print(*reached, sep="|", end="")
"""
"""What somebody who is not root tries: the interpreter may lie where only root finds it.

So may the directory of the test, hence all paths are relative to it.
"""


def test_unprivileged_user(driver: Driver, root: None, tmp_path: Path, pool: Path) -> None:
    """Who is not root can neither call the driver nor reach files that all may write to."""
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    image_id = driver.create("i", 16 * MIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        assert stat.S_IMODE(target.stat().st_mode) == 0o755, "what a new volume's root has"
        (target / "file").write_text("content")
        (target / "file").chmod(0o666)
        target.chmod(0o777)
    driver.snapshot("s", volume_id)
    driver.snapshot("i", image_id)
    driver.delete(driver.create("kept", parameters=DIRECTORY, onDelete="retain").volume_id)
    inside = sorted(str(path.relative_to(tmp_path)) for path in pool.rglob("*"))
    assert any("/trash/kept" in path for path in inside)
    assert any(path.endswith("data/file") for path in inside)
    tmp_path.chmod(0o755)
    driver.folder.chmod(0o755)
    socket, tried = driver.socket.relative_to(tmp_path), pool.relative_to(tmp_path)
    assert run(sys.executable, "-c", REACH, tmp_path, socket, tried, *inside) == ""


def test_modes_are_the_tightest(driver: Driver, root: None, tmp_path: Path, pool: Path) -> None:
    """All that the driver makes for itself belongs to root and is for root only."""
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    image_id = driver.create("i", 16 * MIB, type="image").volume_id
    with driver.published(volume_id, tmp_path), driver.published(image_id, tmp_path):
        driver.snapshot_group("g", image_id)
    driver.snapshot("s", volume_id)
    driver.delete(driver.create("kept", parameters=DIRECTORY, onDelete="retain").volume_id)
    assert stat.S_IMODE(driver.socket.lstat().st_mode) in {0o600, 0o700}
    for path in (pool, *pool.rglob("*")):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        if path.name == "data":
            assert stat.S_IMODE(status.st_mode) == 0o755, path
        else:
            assert not stat.S_IMODE(status.st_mode) & 0o077, f"{path}: {status.st_mode:o}"
            assert not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111, path
