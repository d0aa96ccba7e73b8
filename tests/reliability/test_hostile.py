"""What a workload that is root in its container plants in its volume, and must not achieve."""

import contextlib
import os
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import FilesystemFactory, run
from driver import GIB, MIB, Driver, from_snapshot, from_volume, refused
from reliability.canary import facts_of, untouched
from reliability.conftest import Counter, check_whole, trash
from rpc.conftest import OK, code_of

from pycsi.linux import btrfs

DIRECTORY = {"type": "directory", "quota": "none"}
Code = grpc.StatusCode
TOLERABLE = {OK, Code.ABORTED, Code.FAILED_PRECONDITION}
TIB = 1024 * GIB

_KEPT = 10
"""How many snapshots a test leaves in a small pool."""

MOVER = """
for side in ("a", "b"):
    for number in range(40):
        os.makedirs(f"{side}/{number}/x/y/z")
open("ready", "w").close()
while True:
    for number in range(40):
        os.rename(f"a/{number}/x", f"b/{number}/moved")
        os.rename(f"b/{number}/moved", f"a/{number}/x")
"""
SWAPPER = """
os.makedirs("real/deep/er")
open("real/file", "w").close()
os.symlink(outside, "link")
os.rename("real", "place")
open("ready", "w").close()
while True:
    os.makedirs(f"new/{time.time_ns() % 200}/x", exist_ok=True)
    with contextlib.suppress(OSError):
        os.rename("place", "real"); os.rename("link", "place")
        os.rename("place", "link"); os.rename("real", "place")
"""
MARKER = """
for number in range(30):
    open(f"file-{number}", "w").close()
    os.symlink("nowhere", f"link-{number}")
open("ready", "w").close()
while True:
    for number in range(30):
        os.setxattr(f"file-{number}", "user.mark", b"x" * 100)
        os.setxattr(f"link-{number}", "trusted.mark", b"x", follow_symlinks=False)
    for number in range(30):
        os.removexattr(f"file-{number}", "user.mark")
        os.removexattr(f"link-{number}", "trusted.mark", follow_symlinks=False)
"""
CHANGER = """
open("ready", "w").close()
kinds = [lambda: open("it", "w").close(), lambda: os.mkdir("it"), lambda: os.mkfifo("it"),
         lambda: os.symlink(outside, "it"), lambda: os.mknod("it", 0o60600, disk)]
while True:
    for make in kinds:
        make()
        os.rmdir("it") if os.path.isdir("it") and not os.path.islink("it") else os.unlink("it")
"""


def start(program: str, place: Path, outside: Path, disk: int = 0) -> subprocess.Popen[bytes]:
    """Run a program of the workload's in its volume, which says with a file when it is ready."""
    begin = (
        "import contextlib, os, sys, time\nos.chdir(sys.argv[1])\noutside, disk = sys.argv[2:]\n"
    )
    command = [sys.executable, "-c", f"{begin}disk = int(disk)\n{program}"]
    return subprocess.Popen([*command, place, outside, str(disk)])


@contextlib.contextmanager
def doing(program: str, place: Path, outside: Path, disk: int = 0) -> Iterator[None]:
    """Let a program of the workload's run, which ends if something keeps it from going on."""
    process = start(program, place, outside, disk)
    try:
        while not (place / "ready").exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield
        assert process.poll() is None, "the workload has ended before its time"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a directory outside the pool that nothing may lead to."""
    place = tmp_path / "outside"
    (place / "folder").mkdir(parents=True)
    (place / "secret").write_text("secret")
    (place / "folder/secret").write_text("secret")
    return place


@pytest.mark.parametrize(
    "program", [MOVER, SWAPPER, MARKER, CHANGER], ids=["moved", "swapped", "marked", "changed"]
)
@pytest.mark.parametrize("consistency", ["files", "point-in-time"])
def test_tree_that_is_changed_while_it_is_copied(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    outside: Path,
    program: str,
    consistency: str,
    *,
    thorough: bool,
    counted: Counter,
) -> None:
    """A copy of a tree that changes is whole, or refused with what to do; it leads nowhere else."""
    pool = filesystem("ext4", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    ends: dict[Code, str] = {}
    rounds = 200 if thorough else 10
    disk = pool.stat().st_dev
    with (
        untouched(outside),
        driver.published(volume_id, tmp_path) as target,
        doing(program, target, outside, disk),
    ):
        for number in range(rounds):
            try:
                driver.snapshot(f"s{number}", volume_id, consistency=consistency)
            except grpc.RpcError as error:
                failure: Any = error
                ends[failure.code()] = failure.details()
            else:
                ends[OK] = ""
            assert all("secret" not in path.name for path in (pool / "snapshots").rglob("*"))
            for snapshot in driver.snapshots()[:-_KEPT]:  # or the pool would be full some time
                driver.delete_snapshot(snapshot.snapshot_id)
            driver.stats(volume_id, target)
            driver.condition(volume_id)
    assert ends.keys() <= TOLERABLE, ends
    assert "Traceback" not in driver.log
    check_whole(driver, pool)
    counted("copies of trees that change", rounds)


def protect(path: Path, letter: str) -> None:
    run("chattr", f"+{letter}", path)


def plant(place: Path, outside: Path, pool: Path) -> None:
    """Fill a volume with all that might lead out of it, hang a reader, or resist deletion."""
    for name, leads_to in {
        "etc": "/etc",
        "pool": str(pool),
        "outside": str(outside),
        "loop": "loop",
        "up": "../../../../../outside",
        "proc": "/proc/self/fd",
        "dangling": "nowhere",
    }.items():
        (place / name).symlink_to(leads_to)
    disk = pool.stat().st_dev
    os.mknod(place / "disk", stat.S_IFBLK | 0o666, disk)
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(place / "fifo")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(place):
        server.bind("socket")
    (place / "setuid").write_text("#!/bin/sh")
    (place / "setuid").chmod(0o6755)
    os.link(place / "setuid", place / "hard link")
    os.link(place / "fifo", place / "other fifo")
    # Named like our own state.
    for name in ("volume.json", "node.json", "snapshot.json", "disk.img", "data", "pool.json"):
        (place / name).mkdir()
        (place / name / "volume.json").write_text('{"schema": 2, "id": "other@node-1"}')
    for odd in (b"new\nline", b"\xff\xfe", b"x" * 255, "\u202e\U0001f600".encode(), b"-rf", b" "):
        Path(os.fsdecode(os.fsencode(place) + b"/" + odd)).write_text("odd")
    (place / "none").mkdir()
    (place / "none/file").write_text("unreadable")
    (place / "none/file").chmod(0)
    (place / "none").chmod(0)
    os.chown(place / "none", 12345, 54321)
    with (place / "sparse").open("wb") as file:
        file.truncate(TIB)
        file.seek(TIB // 2)
        file.write(b"data")
    os.setxattr(place / "sparse", "user.mark", b"x" * 1000)
    os.setxattr(place / "sparse", "trusted.overlay.opaque", b"y")
    os.setxattr(
        place / "setuid", "security.capability", struct.pack("<IIIII", 0x2000001, 1, 0, 0, 0)
    )
    deep = place
    for _ in range(200):
        deep /= "deep"
        deep.mkdir()
    (place / "fixed").mkdir()
    for name, letter in (("file", "i"), ("log", "a"), ("folder", "i"), ("folder/none", "")):
        path = place / "fixed" / name
        if letter:
            path.mkdir() if name == "folder" else path.write_text("kept")
            protect(path, letter)
    protect(place / "fixed", "i")
    os.chown(place, 1234, 4321)


def shape(place: Path) -> dict[str, tuple[object, ...]]:
    """Return what a copy must have in common with its original."""
    kept: dict[str, tuple[object, ...]] = {}
    for name, (_, mode, uid, gid, size, links, changed, _, leads_to) in facts_of(place).items():
        folder = stat.S_ISDIR(int(str(mode)))
        marks = {
            mark: os.getxattr(name, mark, follow_symlinks=False)
            for mark in os.listxattr(name, follow_symlinks=False)
        }
        kept[os.path.relpath(name, place)] = (
            mode, uid, gid, None if folder else size, None if folder else links, changed, leads_to,
            marks,
        )  # fmt: skip
    return kept


@pytest.mark.parametrize("mode", [0o000, 0o777])
def test_hostile_content(
    big_pool: Path,
    own_etc: Path,
    serve: Callable[..., Driver],
    tmp_path: Path,
    outside: Path,
    mode: int,
) -> None:
    """Copies have what the original has, deletion leaves nothing, and nobody else notices."""
    driver = serve(f"default={big_pool},retain-for=1d")
    other = driver.create("other", parameters=DIRECTORY).volume_id
    (big_pool / "volumes" / other / "data/file").write_text("other")
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    volumes = [volume_id]
    with untouched(outside, own_etc, big_pool / "volumes" / other):
        with driver.published(volume_id, tmp_path) as target:
            plant(target, outside, big_pool)
            target.chmod(mode)
            assert not driver.condition(volume_id).abnormal
            assert driver.stats(volume_id, target).usage
            taken = driver.snapshot("s", volume_id).snapshot_id
            driver.snapshot("f", volume_id, consistency="files")
            for name, source in (("c", from_volume(volume_id)), ("r", from_snapshot(taken))):
                volumes.append(driver.create(name, source=source, parameters=DIRECTORY).volume_id)
            driver.expand(volume_id, 128 * MIB)
            assert driver.node_expand(volume_id, target) == 128 * MIB
            wanted = shape(target)
        for copied in volumes[1:]:
            with driver.published(copied, tmp_path) as target:
                assert shape(target) == wanted
        driver.modify(volumes[-1], onDelete="retain")
        for name in volumes:
            driver.delete(name)
        for snapshot in driver.snapshots():
            driver.delete_snapshot(snapshot.snapshot_id)
        driver.reaped()
        for _ in range(2):
            (kept,) = (big_pool / "trash").iterdir()
            assert kept.name in run(
                sys.executable, "-m", "pycsi", "get", "trash", f"--pool=default={big_pool}"
            )
            trash(big_pool, "restore", kept.name)
            with driver.published(volumes[-1], tmp_path) as target:
                assert shape(target) == wanted
            driver.delete(volumes[-1])
        trash(big_pool, "empty", "--all")
        assert not list((big_pool / "trash").iterdir())
        check_whole(driver, big_pool)
    assert "Traceback" not in driver.log
    assert "cannot be" not in driver.log


def test_tree_that_is_changed_while_it_is_deleted(
    big_pool: Path, serve: Callable[..., Driver], outside: Path
) -> None:
    """Who still has a deleted volume open cannot lead the reaper astray; later all is freed."""
    driver = serve(big_pool)
    other = driver.create("other", parameters=DIRECTORY).volume_id
    (big_pool / "volumes" / other / "data/file").write_text("other")
    with untouched(outside, big_pool / "volumes" / other):
        for number in range(5):
            volume_id = driver.create(f"v{number}", parameters=DIRECTORY).volume_id
            inside = big_pool / "volumes" / volume_id / "data"
            process = start(SWAPPER, inside, outside)
            time.sleep(0.1)
            driver.delete(volume_id)
            time.sleep(0.2)
            process.kill()
            process.wait()
        driver.restart()
        driver.reaped()
    check_whole(driver, big_pool)
    assert "Traceback" not in driver.log


@pytest.mark.parametrize("what", ["folder", "file", "own volume", "subvolume"])
def test_nested_mount(
    big_pool: Path,
    ground: str,
    serve: Callable[..., Driver],
    tmp_path: Path,
    outside: Path,
    what: str,
) -> None:
    """What is mounted in a volume, or is a subvolume of its own, is not copied as if it were its.

    Whether it is another filesystem's, a file's, or another volume's on the same filesystem.
    """
    if what == "subvolume" and ground != "btrfs":
        pytest.skip("a matter of btrfs")
    driver = serve(big_pool)
    other = driver.create("other", parameters=DIRECTORY).volume_id
    secret = big_pool / "volumes" / other / "data/secret"
    secret.write_text("secret")
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    inside = big_pool / "volumes" / volume_id / "data/inside"
    source = {"folder": outside, "file": outside / "secret", "own volume": secret.parent}.get(what)
    if source is None:
        btrfs.create_subvolume(inside)
        (inside / "secret").write_text("secret")
    else:
        inside.touch() if what == "file" else inside.mkdir()
        run("mount", "--bind", source, inside)
    try:
        with untouched(outside, secret.parent):
            for consistency in ("files", "point-in-time"):
                code = code_of(lambda: driver.snapshot("s", volume_id, consistency=consistency))  # noqa: B023
                assert code in {OK, Code.FAILED_PRECONDITION}, code
                assert ground == "btrfs" or code is not OK
            code = code_of(
                lambda: driver.create("c", parameters=DIRECTORY, source=from_volume(volume_id))
            )
            assert code in {OK, Code.FAILED_PRECONDITION}, code
            with refused(Code.FAILED_PRECONDITION) if source else contextlib.nullcontext():
                driver.delete(volume_id)
    finally:
        if source:
            run("umount", inside)
    driver.reaped()
    found = [
        path for path in big_pool.rglob("*") if path.is_file() and b"secret" in path.read_bytes()
    ]
    assert found == [secret]
    assert "Traceback" not in driver.log
    check_whole(driver, big_pool)


def test_more_links_than_there_can_be(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """A file that has as many names as ext4 allows is copied, with all of them."""
    pool = filesystem("ext4", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    data = pool / "volumes" / volume_id / "data"
    (data / "0").write_text("content")
    for number in range(1, 65000):
        os.link(data / "0", data / str(number))
    assert (data / "0").stat().st_nlink == 65000
    driver.snapshot("s", volume_id)
    copied = pool / "snapshots/s@node-1/data"
    assert len(list(copied.iterdir())) == 65000
    assert {path.read_text() for path in copied.iterdir()} == {"content"}
    assert len({path.stat().st_ino for path in copied.iterdir()}) <= 2
