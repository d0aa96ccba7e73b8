"""Starting: every misconfiguration is one line, and ends the process before it serves."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FilesystemFactory, mounted, run
from driver import GIB, MIB, Driver
from rpc.conftest import pycsi


def refusal(*arguments: str | Path | bytes, **variables: str) -> str:
    """Return the one line with which `pycsi serve` ends, or its reason if that is in the log.

    A mistake in the command line is told as by any other command.
    """
    done = pycsi(*arguments, variables=variables)
    assert done.returncode != 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    if done.returncode == 2:
        assert lines[0].startswith("pycsi: ")
        return lines[0]
    found = json.loads(lines[0])
    assert list(found) == ["timestamp", "level", "event", "error"]
    assert (found["level"], found["event"]) == ("error", "the driver cannot start")
    return str(found["error"])


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"--endpoint=unix://{tmp_path}/csi.sock"


NODE = "--node-id=node-1"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--node-id=n", "--pool=default={pool}"], "--endpoint"),
        (["{endpoint}", "--node-id=", "--pool=default={pool}"], "--node-id"),
        (["{endpoint}", "--node-id=n"], "--pool"),
        (["{endpoint}", "--node-id=" + "x" * 257, "--pool=default={pool}"], "--node-id"),
        (["{endpoint}", "--node-id=a\nb", "--pool=default={pool}"], "--node-id"),
        (["{endpoint}", "--node-id=n", "--pool={pool}"], "NAME=PATH"),
        (["{endpoint}", "--node-id=n", "--pool=default=pool"], "absolute"),
        (["{endpoint}", "--node-id=n", "--pool=default={pool}/missing,require-pool"], "missing"),
        (["{endpoint}", "--node-id=n", "--pool=default={pool},fast"], "fast"),
        (["{endpoint}", "--node-id=n", "--pool=default={pool},reserve=x"], "reserve|size"),
        (["{endpoint}", "--node-id=n", "--pool=a={pool},require-mount,require-pool"], "mount"),
        (["{endpoint}", "--node-id=n", "--pool=a={pool}", "--pool=b={pool}"], "one directory"),
        (["{endpoint}", "--node-id=n", "--pool=a={pool}", "--pool=b={pool}/b"], "another pool"),
        (["{endpoint}", "--node-id=n", "--pool=a={pool}", "--pool=a=/x"], "more than once"),
        (["--endpoint=tcp://0.0.0.0:1", "--node-id=n", "--pool=default={pool}"], "--endpoint"),
        (["--endpoint=unix:///none/csi.sock", "--node-id=n", "--pool=a={pool}"], "/none"),
        (["--endpoint=unix:///" + "x" * 107, "--node-id=n", "--pool=a={pool}"], "long"),
        (["--endpoint=unix:///proc/csi.sock", "--node-id=n", "--pool=a={pool}"], "No such file"),
        (["--endpoint=unix:///sys/csi.sock", "--node-id=n", "--pool=a={pool}"], "ermi"),
        (["--endpoint={pool}/s/csi.sock", "--node-id=n", "--pool=a={pool}"], "create it"),
        (["{endpoint}", "--node-id=n", "--pool=a={pool}", "--driver-name=a/b"], "--driver-name"),
        (["{endpoint}", "--node-id=n", "--pool=a={pool}", "--max-volumes-per-node=-1"], "-1"),
        (["{endpoint}", "--node-id=n", "--pool=a={pool}", "--metrics-address=9180"], "9180"),
        (
            ["{endpoint}", "--node-id=n", "--pool=a={pool}", "--metrics-address=h.invalid:1"],
            "h.inv",
        ),
        (
            ["{endpoint}", "--node-id=n", "--pool=a={pool}", "--metrics-address=192.0.2.1:9180"],
            "192.0.2.1:9180: cannot listen there: Cannot assign",
        ),
        (
            ["{endpoint}", "--node-id=n", "--pool=a={pool}", f"--metrics-address={'a' * 70}:1"],
            "--metrics-address",
        ),
    ],
)
def test_misconfiguration(pool: Path, endpoint: str, arguments: list[str], word: str) -> None:
    """A configuration that cannot work is refused in one line that names what is wrong."""
    given = [
        item.replace("{pool}", str(pool)).replace("{endpoint}", endpoint) for item in arguments
    ]
    assert any(part in refusal(*given) for part in word.split("|"))
    assert not (pool.parent / "csi.sock").exists()


def test_all_mistakes_at_once(pool: Path) -> None:
    """Who has made several mistakes is told all of them, not one after the other."""
    done = pycsi("--pool=a", "--mode=x", "--log-level=loud", "--max-volumes-per-node=many")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    assert [line for line in lines if not line.startswith("pycsi: ")] == []
    done = pycsi("--node-id=", f"--pool=a={pool}", f"--pool=b={pool}", "--listen-address=:1")
    assert done.returncode == 2
    assert [line.split()[1] for line in done.stderr.splitlines()] == [
        "--endpoint",
        "--node-id",
        "--listen-address",
        "--listen-address:",
        "pools",
    ]


@pytest.mark.parametrize("option", ["--endpoint=unix:///\xff", "--pool=a=/\xff", "--node-id=\xff"])
def test_argument_that_is_not_utf8(pool: Path, endpoint: str, option: str) -> None:
    """Bytes that are no text are refused like any other mistake."""
    good = [endpoint, NODE, f"--pool=default={pool}"]
    refusal(*good, option.encode("latin-1"))


def test_foreign_directory(pool: Path, endpoint: str) -> None:
    """A directory that holds something else is never taken for a pool, nor changed."""
    (pool / "photos").mkdir()
    assert "photos" in refusal(endpoint, NODE, f"--pool=default={pool}")
    assert [entry.name for entry in pool.iterdir()] == ["photos"]


def test_empty_disk(pool: Path, endpoint: str) -> None:
    """A file in place of the pool's directory is refused."""
    (pool / "file").touch()
    assert "file" in refusal(endpoint, NODE, f"--pool=default={pool}/file")


def test_memory(endpoint: str, pool: Path, root: None) -> None:
    """A filesystem that a reboot empties is refused unless the operator accepts that."""
    run("mount", "-t", "tmpfs", "none", pool)
    try:
        assert "allow-volatile" in refusal(endpoint, NODE, f"--pool=default={pool}")
    finally:
        run("umount", pool)


@pytest.mark.parametrize("kind", ["ext4", "btrfs", "subvolume"])
def test_mounted_disk(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """A filesystem or a btrfs subvolume of its own is one, also where a container has it bound."""
    disk = filesystem("ext4" if kind == "ext4" else "btrfs", GIB).parent
    (disk / "pool").rmdir()
    if kind == "ext4":
        (disk / "lost+found").rmdir()
    if kind == "subvolume":
        disk /= "@pool"
        run("btrfs", "subvolume", "create", disk)
    place = tmp_path / "bound"
    place.mkdir()
    run("mount", "--bind", disk, place)
    try:
        driver = serve(f"default={place},require-mount")
        assert driver.volume_ids() == []
        driver.stop()
    finally:
        run("umount", place)


def test_empty_directory_that_cannot_become_a_pool(
    filesystem: FilesystemFactory, endpoint: str
) -> None:
    """The reason is told in one line, as for everything that keeps a driver from starting."""
    pool = filesystem("ext4", 64 * MIB)
    run("chattr", "+i", pool)
    try:
        assert "pool.json" in refusal(endpoint, NODE, f"--pool=default={pool}")
    finally:
        run("chattr", "-i", pool)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_pool_behind_a_link(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """A pool may be given by a symbolic link to it."""
    link = tmp_path / "link"
    link.symlink_to(filesystem(kind, 512 * MIB))
    driver = serve(link)
    volume_id = driver.create("v", 64 * MIB, quota="none").volume_id
    with driver.published(volume_id, tmp_path) as target:
        (target / "file").write_text("data")
        assert driver.condition(volume_id).message == "healthy"
    assert str(link) in run(sys.executable, "-m", "pycsi", "get", "pools", f"--pool=default={link}")
    driver.delete(volume_id)
    driver.reaped()


@pytest.mark.parametrize("how", ["link", "mount"])
def test_two_pools_in_one_directory(
    pool: Path, endpoint: str, tmp_path: Path, how: str, root: None
) -> None:
    """One directory that is given as two pools is called that, whatever its paths."""
    other = tmp_path / "other"
    with contextlib.ExitStack() as undo:
        if how == "link":
            other.symlink_to(pool)
        else:
            other.mkdir()
            undo.enter_context(mounted("--bind", pool, other))
        line = refusal(endpoint, NODE, f"--pool=a={pool}", f"--pool=b={other}")
        assert "pools a and b are one directory" in line


def test_full_disk_for_the_socket(pool: Path, tmp_path: Path, root: None) -> None:
    """Why nobody can listen is said."""
    folder = tmp_path / "full"
    folder.mkdir()
    with mounted("-t", "tmpfs", "-o", "nr_inodes=1", "none", folder):
        line = refusal(f"--endpoint={folder}/csi.sock", NODE, f"--pool=default={pool}")
    assert "No space left" in line


def test_second_driver_on_a_pool(driver: Driver, pool: Path, endpoint: str) -> None:
    """A pool belongs to one process."""
    assert "in use" in refusal(endpoint, NODE, f"--pool=default={pool}")
    assert driver.volume_ids() == []


def test_live_socket(driver: Driver, tmp_path: Path) -> None:
    """The socket of a running driver is refused, and goes on working."""
    (tmp_path / "other").mkdir()
    other = refusal(f"--endpoint={driver.socket}", NODE, f"--pool=default={tmp_path}/other")
    assert "another driver" in other
    assert driver.volume_ids() == []


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_endpoint_that_is_no_socket(tmp_path: Path, pool: Path, kind: str) -> None:
    """What is not a socket is never removed from the endpoint's place."""
    place = tmp_path / "csi.sock"
    match kind:
        case "file":
            place.write_text("precious")
        case "directory":
            place.mkdir()
        case _:
            place.symlink_to(tmp_path / "elsewhere")
    assert "socket" in refusal(f"--endpoint={place}", NODE, f"--pool=default={pool}")
    assert os.path.lexists(place)


def test_dead_socket_is_replaced(serve: Callable[..., Driver], pool: Path, tmp_path: Path) -> None:
    """A socket that a crash has left does not stop the next start."""
    folder = tmp_path / "driver-0"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "csi.sock"))
    with Driver(folder, [f"default={pool}"]) as driver:
        assert driver.volume_ids() == []
        assert sorted(path.name for path in folder.iterdir()) == ["csi.sock", "driver.log"]


def test_metrics_address_in_use(driver: Driver, tmp_path: Path, endpoint: str) -> None:
    """A port that somebody else has is refused."""
    (tmp_path / "other").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refusal(
            endpoint, NODE, f"--pool=default={tmp_path}/other", f"--metrics-address={address}"
        )
    assert f"{address}: cannot listen there: Address already in use" in line
