"""The commands that look at pools, where something is missing, damaged, or cannot be written."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FilesystemFactory, needs, run
from driver import MIB, Driver

LISTS = [("get", "volumes"), ("get", "snapshots"), ("get", "pools"), ("get", "trash")]


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of pycsi; what it says is never a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "pycsi", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture
def filled(driver: Driver) -> Driver:
    """Return a driver with two volumes, two snapshots, and two things in the trash."""
    for name in ("a", "b"):
        volume_id = driver.create(name, quota="none").volume_id
        driver.snapshot(f"s{name}", volume_id)
        driver.delete(driver.create(f"t{name}", quota="none", onDelete="retain").volume_id)
    return driver


@pytest.mark.parametrize("words", LISTS)
def test_one_pool_of_two_is_missing(
    filled: Driver, pool: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """What is there is shown; what is missing is said, and ends the command with 1."""
    both = f"--pool=gone={tmp_path}/nope", f"--pool=default={pool}"
    done = command(*words, *both, "-o", "json")
    assert done.returncode == 1
    assert len(rows(done)) == (1 if words == ("get", "pools") else 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pycsi: pool gone is missing: {tmp_path}/nope does not exist")
    assert command(*words, *both).stdout.count("default") >= 1
    assert command(*words, both[1]).returncode == 0


@pytest.mark.parametrize("words", LISTS)
@pytest.mark.parametrize(
    ("what", "says"),
    [("nothing", "does not exist"), ("directory", "no pool.json"), ("file", "not a directory")],
)
def test_no_pool(tmp_path: Path, words: tuple[str, ...], what: str, says: str) -> None:
    """Nobody promises to make a pool, or to be root, where that does not help."""
    place = tmp_path / "place"
    if what == "directory":
        place.mkdir()
    if what == "file":
        place.touch()
    done = command(*words, f"--pool=default={place}")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert says in line
    assert "root" not in line
    assert "starts" not in line


def test_pool_of_another_uuid(filled: Driver, pool: Path) -> None:
    """A wrong disk is not shown for the right one."""
    wrong = "00000000-0000-0000-0000-000000000000"
    done = command("get", "volumes", f"--pool=default={pool},uuid={wrong}")
    assert done.returncode == 1
    assert f"not {wrong}" in done.stderr


@pytest.mark.parametrize(
    ("words", "record", "name"),
    [
        (("get", "volumes"), "volumes/a@node-1/volume.json", "a@node-1"),
        (("get", "snapshots"), "snapshots/sa@node-1/snapshot.json", "sa@node-1"),
        (("get", "trash"), "trash/ta@node-1.*/volume.json", "ta@node-1"),
    ],
)
def test_damaged_record(
    filled: Driver, pool: Path, words: tuple[str, ...], record: str, name: str
) -> None:
    """What has a damaged record is shown as far as it is known."""
    (path,) = pool.glob(record)
    path.write_text("{")
    done = command(*words, f"--pool=default={pool}", "-o", "json")
    assert done.returncode == 1
    found = {row["id"]: row for row in rows(done)}
    assert len(found) == 2
    assert found[name]["condition"].startswith("its record cannot be read (")
    assert found[name]["pool"] == "default"
    (line,) = done.stderr.splitlines()
    assert str(path.parent) in line
    table = command(*words, f"--pool=default={pool}")
    assert "its record cannot be read" in table.stdout
    assert command("get", "pools", f"--pool=default={pool}").returncode == 1


def test_trash_of_a_missing_pool(filled: Driver, pool: Path, tmp_path: Path) -> None:
    """The trash of the others is emptied, and the command says that this is not all."""
    both = f"--pool=gone={tmp_path}/nope", f"--pool=default={pool}"
    kept = next(path.name for path in (pool / "trash").glob("ta@*"))
    assert command("trash", "restore", *both, kept).stdout == "ta@node-1\n"
    assert "nope does not exist" in command("trash", "restore", *both, kept).stderr
    done = command("trash", "empty", *both, "--all", "--yes")
    assert done.returncode == 1
    assert done.stdout.startswith("tb@node-1.")
    assert "nope does not exist" in done.stderr
    assert list((pool / "trash").iterdir()) == []


def test_disk_that_is_not_mounted(filled: Driver, pool: Path, root: None) -> None:
    """Nothing is shown of a pool in the bare mount point of a disk, and nothing done to it."""
    option = f"--pool=default={pool},require-mount"
    kept = next(path.name for path in (pool / "trash").glob("ta@*"))
    before = sorted(pool.rglob("*"))
    for words in [
        *LISTS,
        ("trash", "restore", kept),
        ("trash", "empty", "-y", kept),
        ("trash", "empty", "--all", "-y"),
        ("delete-inline", "a@node-1"),
    ]:
        done = command(*words, option)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert f"no filesystem of its own is mounted at {pool}; mount its disk" in line
    assert sorted(pool.rglob("*")) == before


def test_disk_that_is_mounted(filesystem: FilesystemFactory, serve: Callable[..., Driver]) -> None:
    """A pool that asks for a disk of its own, and has it, is shown."""
    disk = filesystem("ext4", 64 * MIB).parent
    run("rm", "-r", disk / "pool", disk / "lost+found")
    option = f"default={disk},require-mount"
    serve(option).create("a", MIB, quota="none")
    assert len(rows(command("get", "volumes", f"--pool={option}", "-o", "json"))) == 1


@pytest.mark.parametrize(
    "words", [*LISTS, ("version",), ("describe", "volume", "a"), ("--help",), ("serve", "--help")]
)
@pytest.mark.parametrize("output", [(), ("-o", "json")])
def test_full_output(
    filled: Driver, pool: Path, words: tuple[str, ...], output: tuple[str, ...]
) -> None:
    """What cannot be printed is one line, and a failure."""
    needs("/dev/full", met=Path("/dev/full").exists())
    options = () if "--help" in words else output
    options += () if "version" in words or "--help" in words else (f"--pool=default={pool}",)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pycsi", *words, *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "pycsi: standard output: No space left on device; write it elsewhere\n"


@pytest.mark.parametrize("words", [("get", "volumes"), ("get", "volumes", "-o", "json")])
def test_nobody_reads(filled: Driver, pool: Path, words: tuple[str, ...]) -> None:
    """Who has read enough, as head(1), is no reason to complain."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "pycsi", *words, f"--pool=default={pool}"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.stderr == b""


@pytest.mark.parametrize("module", ["click.globals", "pycsi.model.config"])
def test_interrupted(filled: Driver, pool: Path, module: str) -> None:
    """SIGINT ends a command as it ends others, also while Python imports."""
    command = ["env", "--default-signal=INT", sys.executable, "-X", "importtime", "-m", "pycsi"]
    with subprocess.Popen(
        [*command, "get", "volumes", f"--pool=default={pool}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert any(line.rstrip().endswith(f" {module}") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in said
    assert "Aborted" not in said


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("get", "volumes"), 2, "give --pool NAME=PATH"),
        (("get", "volumes", "--pool=x"), 2, "write NAME=PATH"),
        (("get", "volumes", "--pool=default=/x,reserve=x%"), 2, "between 0% and 100%"),
        (("get", "volumes", "--pool=a=/x", "--pool=b=/x"), 2, "give each its own"),
        (("trash", "empty", "--pool=a=/x", "--pool=a=/y", "--all"), 2, "more than once"),
        (("trash", "restore", "--pool=default=/nope", "entry"), 1, "mount its disk"),
        (("trash", "empty", "--pool=default=/nope", "entry"), 1, "mount its disk"),
        (("trash", "empty", "--pool=default=/nope", "--all"), 1, "mount its disk"),
        (("delete-inline", "--pool=default=/nope", "volume"), 1, "mount its disk"),
    ],
)
def test_mistakes(
    words: tuple[str, ...], status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every mistake is one line, which says what to do."""
    monkeypatch.delenv("PYCSI_POOL", raising=False)
    done = command(*words)
    assert done.returncode == status
    (line,) = done.stderr.splitlines()
    assert line.startswith("pycsi: ")
    assert says in line
