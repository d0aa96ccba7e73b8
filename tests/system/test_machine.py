"""The commands that use volumes on a machine without an orchestrator: a driver runs, or none."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import holding, run
from driver import MIB, Driver
from terminal import PYCSI, environment, piped

from pycsi.linux.kernel import topmost


class Machine:
    """Runs commands on one pool; the run directory is that of this machine only."""

    def __init__(self, folder: Path, pool: Path, endpoint: Path) -> None:
        self.mnt, self.run_directory = folder / "mnt", folder / "run"
        self.mnt.mkdir()
        self.variables = {
            "PYCSI_POOL": f"default={pool}",
            "PYCSI_RUN_DIRECTORY": str(self.run_directory),
            "PYCSI_ENDPOINT": str(endpoint),
            "PYCSI_NODE_ID": "node-1",
        }

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        """Run a command that ends with a status; return what it prints."""
        done = piped(*words, **self.variables)
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    def volumes(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(self("get", "volumes", "-o", "json"))
        return listed

    def is_clean(self) -> bool:
        """Tell whether nothing is mounted, and no record says so."""
        staging = self.run_directory / "staging"
        records = list((self.run_directory / "mounts").glob("*.json"))
        return not [*records, *(staging.iterdir() if staging.is_dir() else ())]


@pytest.fixture(params=["no driver runs", "a driver runs"])
def machine(
    request: pytest.FixtureRequest,
    serve: Callable[..., Driver],
    pool: Path,
    tmp_path: Path,
    root: None,
) -> Machine:
    if request.param == "a driver runs":
        return Machine(tmp_path, pool, serve(pool).socket)
    return Machine(tmp_path, pool, tmp_path / "nobody.sock")


@pytest.fixture
def alone(pool: Path, tmp_path: Path, root: None) -> Machine:
    """Return a machine on which no driver runs."""
    return Machine(tmp_path, pool, tmp_path / "nobody.sock")


def test_life(machine: Machine) -> None:
    """A volume is made, mounted, used, copied, and deleted, with one command each."""
    there = machine.mnt / "data"
    assert machine("create", "data", "--size=64Mi", "--type=image") == "data@node-1\n"
    assert machine("create", "data", "--size=64Mi", "--type=image") == "data@node-1\n"
    assert machine("mount", "data", there) == f"{there}\n"
    (there / "file").write_text("kept")
    assert machine("mount", "data", there) == f"{there}\n"
    assert machine("snapshot", "data", "monday") == "monday@node-1\n"
    (there / "file").write_text("changed")
    assert machine("restore", "monday", "again") == "again@node-1\n"
    assert machine("clone", "data@node-1", "copy", "--size=80Mi") == "copy@node-1\n"
    for name, text, size in (("again", "kept", 64), ("copy", "changed", 80)):
        machine("mount", name, machine.mnt / name)
        assert (machine.mnt / name / "file").read_text() == text
        found = next(row for row in machine.volumes() if row["name"] == name)
        assert found["capacity"] == size * MIB
    assert "is mounted at" in machine("delete", "volume", "data", "--yes", status=1)
    for name in ("data", "again", "copy"):
        assert machine("unmount", name) == f"{machine.mnt / name}\n"
    assert machine("delete", "volume", "data", "again", "copy", "--yes").split() == [
        "data@node-1", "again@node-1", "copy@node-1",
    ]  # fmt: skip
    assert machine("delete", "snapshot", "monday", "--yes") == "monday@node-1\n"
    assert machine.volumes() == []
    assert machine.is_clean()
    assert list(machine.mnt.iterdir()) == []


def test_block(machine: Machine) -> None:
    """A raw volume is a device where it is mounted, and copies of it are raw volumes too."""
    there = machine.mnt / "disk"
    machine("create", "disk", "--size=8Mi", "--type=block")
    machine("mount", "disk", there)
    assert there.is_block_device()
    there.write_bytes(b"raw")
    machine("unmount", there)
    machine("snapshot", "disk", "s")
    machine("clone", "disk", "copy")
    assert "ask for a block volume" in machine("restore", "s", "x", status=2)
    machine("restore", "s", "again", "--block")
    for name in ("copy", "again"):
        machine("mount", name, there, "--read-only")
        with there.open("rb") as device:
            assert device.read(3) == b"raw"
        machine("unmount", name)
    assert not there.exists()


def test_expand(machine: Machine) -> None:
    """A volume grows also while it is mounted."""
    there = machine.mnt / "data"
    machine("create", "data", "--size=32Mi", "--type=directory", "-p", "quota=none")
    machine("mount", "data", there)
    assert machine("expand", "data", "48Mi") == f"{48 * MIB}\n"
    machine("unmount", "data")


def test_several_mounts(machine: Machine) -> None:
    """A volume can be mounted at several places, one of them read-only, and stays where it is."""
    machine("create", "data", "--size=32Mi", "--type=directory", "-p", "quota=none")
    one, two = machine.mnt / "one", machine.mnt / "two"
    machine("mount", "data", one)
    machine("mount", "data", two, "--read-only", "-o", "noexec")
    (one / "file").touch()
    with pytest.raises(OSError, match="Read-only"):
        (two / "other").touch()
    assert machine("unmount", two) == f"{two}\n"
    assert (one / "file").exists()
    assert machine("unmount", "data") == f"{one}\n"
    assert machine.is_clean()


def test_mount_point(alone: Machine) -> None:
    """A directory that was there before is there again afterwards, with its owner and mode."""
    alone("create", "data", "--size=32Mi", "--type=directory", "-p", "quota=none")
    there = alone.mnt / "data"
    there.mkdir()
    there.chmod(0o751)
    os.chown(there, 7, 8)
    alone("mount", "data", there)
    alone("unmount", there)
    status = there.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o751, 7, 8)
    (there / "file").touch()
    assert "not an empty directory" in alone("mount", "data", there, status=1)
    assert (there / "file").exists()
    assert alone.is_clean()


def test_reboot(alone: Machine) -> None:
    """After a reboot nothing is mounted, that is said, and the volume can be mounted again."""
    there = alone.mnt / "data"
    alone("create", "data", "--size=32Mi", "--type=image")
    alone("mount", "data", there)
    run("umount", there)
    run("umount", alone.run_directory / "staging/data@node-1")
    run("rm", "-r", alone.run_directory)
    assert "a reboot unmounts" in alone("unmount", there, status=3)
    assert "a reboot unmounts" in alone("unmount", "data", status=3)
    alone("mount", "data", there)
    alone("unmount", there)
    assert alone.is_clean()


def test_refusals(machine: Machine) -> None:
    """What cannot be done is said in one line, with the status of its kind; nothing changes."""
    machine("create", "data", "--size=32Mi", "--type=directory", "-p", "quota=none")
    there = machine.mnt / "data"
    for words, status, says in (
        (("create", "data", "--size=64Mi"), 1, "exists with another capacity_range"),
        (("create", "x", "-p", "fast=yes"), 2, "unknown parameter 'fast'"),
        (("create", "x", "-p", "fast"), 2, "is no KEY=VALUE"),
        (("create", "x", "--size=big"), 2, "'big' is no size"),
        (("create", "x", "--size=0"), 2, "a size of 0"),
        (("create", "x", "--size=900Pi"), 2, "bytes"),
        (("create", "x", "--type=block", "--fs-type=xfs"), 2, "has no filesystem"),
        (("create", "x", "--fs-type=ntfs"), 2, "ntfs"),
        (("snapshot", "nope", "s"), 3, "nope@node-1"),
        (("clone", "nope", "x"), 3, "nope@node-1"),
        (("restore", "nope", "x"), 3, "nope@node-1"),
        (("expand", "nope", "1Gi"), 3, "nope@node-1"),
        (("mount", "nope", there), 3, "nope@node-1"),
        (("mount", "data", machine.mnt / "a/b"), 1, "make it first"),
        (("mount", "data", "/"), 1, "ends with a name"),
        (("mount", "data", there, "-o", "nonsense"), 1, "mount flag 1"),
        (("mount", "data", there, "-o", 'x="'), 2, "not closed"),
        (("unmount", there), 3, "no volume is mounted at"),
        (("unmount", "data"), 3, "not mounted by pycsi mount"),
        (("delete", "volume", "data"), 2, "add --yes"),
        (("mount", "data"), 2, "missing argument"),
    ):
        said = machine(*words, status=status).splitlines()
        assert len(said) == 1, said
        assert says in said[0], said
    assert [row["id"] for row in machine.volumes()] == ["data@node-1"]
    assert list(machine.mnt.iterdir()) == []
    assert machine.is_clean()


def test_taken_mount_point(machine: Machine) -> None:
    """A volume is not mounted where another one is."""
    there = machine.mnt / "data"
    for name in ("one", "two"):
        machine("create", name, "--size=32Mi", "--type=directory", "-p", "quota=none")
    machine("mount", "one", there)
    assert "one@node-1 is mounted at" in machine("mount", "two", there, status=1)
    machine("unmount", there)
    assert machine.is_clean()


def test_run_directory(alone: Machine, tmp_path: Path) -> None:
    """A run directory that cannot be used is named."""
    alone("create", "data", "--size=32Mi", "--type=directory", "-p", "quota=none")
    (tmp_path / "file").touch()
    alone.variables["PYCSI_RUN_DIRECTORY"] = str(tmp_path / "file")
    assert "give another --run-directory" in alone("mount", "data", alone.mnt / "a", status=1)


def test_driver_elsewhere(
    alone: Machine, serve: Callable[..., Driver], pool: Path, tmp_path: Path
) -> None:
    """A mount that this machine's users would not see is undone, and that is said."""
    driver = serve(pool, wrapper=("unshare", "--mount", "--propagation", "private"))
    alone.variables["PYCSI_ENDPOINT"] = str(driver.socket)
    alone("create", "data", "--size=32Mi", "--type=directory", "-p", "quota=none")
    assert "in a mount namespace" in alone("mount", "data", alone.mnt / "data", status=1)
    assert alone.is_clean()
    driver.delete("data@node-1")


def test_driver_that_does_not_answer(alone: Machine, tmp_path: Path) -> None:
    """Who listens at the socket, but is no driver, is waited for a while only."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "dumb.sock"))
        listening.listen()
        alone.variables |= {"PYCSI_ENDPOINT": str(tmp_path / "dumb.sock"), "PYCSI_POOL": ""}
        assert "is not ready; look at its log" in alone("create", "data", status=1)


def test_in_use(machine: Machine) -> None:
    """What somebody uses stays mounted, and can be unmounted later."""
    there = machine.mnt / "data"
    machine("create", "data", "--size=32Mi", "--type=image")
    machine("mount", "data", there)
    with holding(there, "directory"):
        assert "in use" in machine("unmount", there, status=1)
        assert topmost(there)
    machine("unmount", there)
    assert machine.is_clean()


def test_foreign_mount(machine: Machine, tmp_path: Path) -> None:
    """What others have mounted is left alone."""
    there = machine.mnt / "data"
    there.mkdir()
    machine("create", "data", "--size=32Mi", "--type=directory", "-p", "quota=none")
    run("mount", "-t", "tmpfs", "none", there)
    try:
        assert "something else is mounted" in machine("mount", "data", there, status=1)
        assert "use umount(8)" in machine("unmount", there, status=3)
    finally:
        run("umount", there)
    assert there.is_dir()
    assert machine.is_clean()


def test_pool_of_another_driver(alone: Machine, serve: Callable[..., Driver], pool: Path) -> None:
    """A pool that a driver serves elsewhere is not served a second time."""
    serve(pool)
    assert "use it through its --endpoint" in alone("create", "data", status=1)


def test_missing_pool(alone: Machine, tmp_path: Path) -> None:
    alone.variables["PYCSI_POOL"] = f"default={tmp_path}/nope,require-pool"
    assert "mount its disk" in alone("create", "data", status=1)


def test_options_are_remembered(alone: Machine, pool: Path, serve: Callable[..., Driver]) -> None:
    """Commands know the options with which a pool was served last, unless they are given others."""
    driver = serve(f"default={pool},reserve=10%,overcommit=2,retain-for=ever")
    driver.stop()
    (found,) = json.loads(alone("get", "pools", "-o", "json"))
    assert (found["reserve"] > 0, found["overcommit"]) == (True, 2.0)
    alone("create", "data", "--size=1Mi", "-p", "onDelete=retain", "-p", "quota=none")
    alone("delete", "volume", "data", "--yes")
    (entry,) = json.loads(alone("get", "trash", "-o", "json"))
    assert entry["kept_until"] == "ever"
    alone.variables["PYCSI_POOL"] = f"default={pool},overcommit=3"
    (found,) = json.loads(alone("get", "pools", "-o", "json"))
    assert (found["reserve"] > 0, found["overcommit"]) == (True, 3.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(alone: Machine, tmp_path: Path, number: signal.Signals) -> None:
    """A command that is ended leaves no driver behind, and can be repeated.

    Its volume takes a while to make, so that the signal comes before it is made.
    """
    command = ["env", "--default-signal=INT", *PYCSI, "create", "data", "--type=image"]
    scratch, slow = tmp_path / "scratch", tmp_path / "slow" / "mkfs.ext4"
    scratch.mkdir()
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 2\nexec {shutil.which(slow.name)} "$@"\n')
    slow.chmod(0o755)
    path = f"{slow.parent}:{os.environ['PATH']}"
    with subprocess.Popen(
        command,
        env=environment(**alone.variables, TMPDIR=str(scratch), PATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        for _ in until(lambda: any(scratch.glob("*/log"))):
            assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode in {-number, 128 + number}
    assert b"Traceback" not in said
    assert number == signal.SIGKILL or list(scratch.iterdir()) == []
    again = ("create", "data", "--type=image")
    for _ in until(lambda: piped(*again, **alone.variables).returncode == 0):
        pass  # the driver of the command that was killed ends a moment after it
    assert [row["id"] for row in alone.volumes()] == ["data@node-1"]


def until(condition: Callable[[], bool]) -> Iterator[None]:
    """Yield until a condition holds, and fail if that takes too long."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        yield
        time.sleep(0.02)
