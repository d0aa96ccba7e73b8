"""Exports and imports, killed before system calls that write: nothing is lost, and nothing left."""

import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trees
from driver import MIB, Driver
from exports import bring, export, make_volume, same_image, to
from reliability.conftest import Counter, check_whole, names_in
from reliability.faults import CHANGING, Point, points, some
from reliability.test_kill_commands import KILL, run_traced
from terminal import PYCSI, environment

_TEN = 10


@pytest.fixture(params=["block", "directory"])
def exported(request: pytest.FixtureRequest, driver: Driver, tmp_path: Path) -> Path:
    """Return an export of a volume that has a snapshot; the volume is called v."""
    driver.snapshot("s", make_volume(driver, request.param, 32 * MIB))
    export(driver, "s", tmp_path / "file")
    return tmp_path / "file"


def chosen(log: Path, place: Path, *, thorough: bool) -> Sequence[Point]:
    """Return the points of a recording that are about a file below a place."""
    found = [point for point in points(log, asking=False) if str(place) in point.text]
    assert found
    return found if thorough else some(found, max(1, len(found) // _TEN), len(str(log)))


def same(driver: Driver, one: str, other: str) -> None:
    """Compare two volumes."""
    place = driver.folders[0] / "volumes"
    if (place / one / "disk.img").exists():
        same_image(place / one / "disk.img", place / other / "disk.img")
    else:
        assert trees.describe(place / one / "data") == trees.describe(place / other / "data")


def test_export(
    driver: Driver, exported: Path, tmp_path: Path, thorough: bool, counted: Counter
) -> None:
    """An export that was killed is not there; made again, it is the same."""
    folder, log = tmp_path / "out", tmp_path / "strace.log"
    folder.mkdir()
    command = ["export", "s", str(folder / "file"), to(driver)[0]]
    every: list[tuple[Point, list[str]]] = []
    for follow in ([], ["-f"]):  # the first thread, and the one that writes
        shutil.rmtree(folder)
        folder.mkdir()
        assert run_traced(command, log, *follow, "-e", f"trace={CHANGING}") == 0
        assert (folder / "file").read_bytes() == exported.read_bytes()
        every += [(point, follow) for point in chosen(log, folder, thorough=thorough)]
    for point, follow in every:
        shutil.rmtree(folder)
        folder.mkdir()
        assert run_traced(command, log, *follow, *point.inject(KILL)) == -signal.SIGKILL, point
        if not (folder / "file").exists():
            assert names_in(folder) <= {"file.partial"}
            export(driver, "s", folder / "file")
        assert (folder / "file").read_bytes() == exported.read_bytes()
    counted("kills in pycsi export", len(every))


def test_import(
    driver: Driver, exported: Path, tmp_path: Path, thorough: bool, counted: Counter
) -> None:
    """Of an import that was killed nothing is left, or the volume is whole."""
    log = tmp_path / "strace.log"
    command = ["import", str(exported), "w", *to(driver)]
    assert run_traced(command, log, "-e", f"trace={CHANGING}") == 0
    every = chosen(log, driver.folders[0], thorough=thorough)
    driver.delete("w@node-1")
    for point in every:
        assert run_traced(command, log, *point.inject(KILL)) == -signal.SIGKILL, point
        gone(driver)
        assert driver.volume_ids() == ["v@node-1"]
        same(driver, "v@node-1", bring(driver, exported, "w"))
        driver.delete("w@node-1")
    check_whole(driver, driver.folders[0])
    counted("kills in pycsi import", len(every))


def test_increment_of_a_directory(
    driver: Driver, tmp_path: Path, thorough: bool, counted: Counter
) -> None:
    """So it is with an increment: what was killed is made again, and makes the later snapshot."""
    make_volume(driver, "directory", 32 * MIB)
    data, log = driver.folders[0] / "volumes/v@node-1/data", tmp_path / "strace.log"
    driver.snapshot("s", "v@node-1")
    (data / "large").write_bytes(bytes(MIB) + b"changed")
    shutil.rmtree(data / "deep/er")
    (data / "empty").rename(data / "deep/moved")
    driver.snapshot("t", "v@node-1")
    full, whole, folder = tmp_path / "full", tmp_path / "whole", tmp_path / "out"
    export(driver, "s", full)
    export(driver, "t", whole, "--since", "s")
    folder.mkdir()
    taking = ["export", "t", str(folder / "file"), "--since", "s", to(driver)[0]]
    run_traced(taking, log, "-e", f"trace={CHANGING}")
    exports = chosen(log, folder, thorough=thorough)
    for point in exports:
        shutil.rmtree(folder)
        folder.mkdir()
        assert run_traced(taking, log, *point.inject(KILL)) == -signal.SIGKILL, point
        if not (folder / "file").exists():
            export(driver, "t", folder / "file", "--since", "s")
        assert (folder / "file").read_bytes() == whole.read_bytes()
    bringing = ["import", str(full), str(whole), "w", *to(driver)]
    run_traced(bringing, log, "-e", f"trace={CHANGING}")
    imports = chosen(log, driver.folders[0], thorough=thorough)
    for point in imports:
        same(driver, "v@node-1", "w@node-1")
        driver.delete("w@node-1")
        assert run_traced(bringing, log, *point.inject(KILL)) == -signal.SIGKILL, point
        gone(driver)
        assert driver.volume_ids() == ["v@node-1"]
        bring(driver, full, whole, "w")
    check_whole(driver, driver.folders[0])
    counted("kills in increments of a directory", len(exports) + len(imports))


def gone(driver: Driver) -> None:
    """Wait until the driver has seen that a command has gone, and removed what it had begun."""
    deadline = time.monotonic() + 10
    while names_in(driver.folders[0] / "tmp"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("who", ["driver killed", "driver stopped", "command stopped"])
def test_end_in_the_middle(
    driver: Driver, exported: Path, tmp_path: Path, counted: Counter, who: str
) -> None:
    """If the driver or the command ends in the middle, it says so, and nothing is left."""
    for part in range(4):
        with subprocess.Popen(
            [*PYCSI, "import", "-", "w", *to(driver)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as command:
            assert command.stdin
            assert command.stderr
            data = exported.read_bytes()
            command.stdin.write(data[: len(data) * (part + 1) // 5])
            command.stdin.flush()
            while not names_in(driver.folders[0] / "tmp"):
                assert command.poll() is None
            if who == "command stopped":
                command.send_signal(signal.SIGTERM)
            else:
                driver.stop(signal.SIGKILL if who == "driver killed" else signal.SIGTERM)
            command.stdin.close()
            said = command.stderr.read()
        assert command.returncode != 0
        assert b"Traceback" not in said
        if who != "command stopped":
            assert said.startswith(b"pycsi: ")
            driver.start()
        gone(driver)
        assert driver.volume_ids() == ["v@node-1"]
        check_whole(driver, driver.folders[0])
    same(driver, "v@node-1", bring(driver, exported, "w"))
    counted("ends in pycsi import", 4)
