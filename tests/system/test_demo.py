"""`pycsi demo`: everything is proved, and nothing is left, however it ends."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec

import pytest
from conftest import FilesystemFactory, backing_files, mounted, needs, run
from driver import GIB

import pycsi
from pycsi.cli.demo import claims, copies, files
from pycsi.cli.demo.claims import Disproved
from pycsi.model.size import BLOCK, MIB
from pycsi.proto import csi_pb2 as csi

P = ParamSpec("P")

NOBODY = 65534
DEMO = ("-m", "pycsi", "demo", "--directory")
AS_ROOT = (
    "Directory volume, limited to 64 MiB",
    "Image with ext4",
    "Image with xfs",
    "Raw block volume",
    "Inline ephemeral volume",
    "Directory volume, 64 MiB: snapshot, restore and clone in use",
    "Image with ext4, 128 MiB: snapshot, restore and clone in use",
    "Two images with ext4: group snapshot",
    "Raw block volume, 64 MiB: two snapshots in use",
    "onDelete: retain",
)
SERVICES = (
    "blocks shared",
    "snapshot restored",
    "volume cloned",
    "snapshot idempotent",
    "outlives source",
    "members listed",
    "one moment",
    "not deleted alone",
    "blocks restored",
    "allocated blocks",
    "changed blocks",
    "kept in trash",
    "brought back",
)


def show(directory: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *DEMO, directory],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def programs(root: None) -> None:
    for kind in ("btrfs", "ext4", "xfs"):
        needs(f"mkfs.{kind}", met=shutil.which(f"mkfs.{kind}") is not None)


def proved(output: str) -> str:
    """Return what the summary says was proved, without its lines' breaks."""
    lines = iter(output.splitlines())
    header = next(line for line in lines if line.startswith(" SHOWN "))
    column = slice(header.index("PROVED"), header.index("TIME") - 1)
    return " ".join(word for line in lines for word in line[column].split())


def driver_of(output: str) -> Path:
    """Return the driver's directory in /proc, which goes when the process does."""
    found = re.search(r"process (\d+)", output)
    assert found
    return Path("/proc") / found[1]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let programs that are started in the `with` block take SIGINT.

    In the background, or under nohup, these tests run with SIGINT ignored, which programs inherit.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def demo_until(words: str, directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the demo until it has printed `words`; end it in the `with` block."""
    command = [sys.executable, *DEMO, str(directory)]
    environment = os.environ | {"TMPDIR": str(directory)}
    with interruptible():
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    with started as demo:
        assert demo.stdout
        output = ""
        while words not in output:
            line = demo.stdout.readline()
            assert line, output
            output += line
        yield demo, output
        demo.communicate()


def test_all_is_proved(programs: None, tmp_path: Path) -> None:
    output = show(tmp_path, COLUMNS="80")
    for title in AS_ROOT:
        assert title in output
    assert "left out" not in output
    summary = proved(output)
    for claim in SERVICES:
        assert claim in summary
    assert "All that was shown was proved" in output
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output
    assert not driver_of(output).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_any_filesystem_will_do(programs: None, filesystem: FilesystemFactory, kind: str) -> None:
    """Project quota of the directory's own filesystem is used; btrfs quotas are not switched on."""
    if kind == "xfs" and not Path("/proc/fs/xfs/xqm").exists():
        pytest.skip("needs a kernel with XFS quotas")
    directory = filesystem(kind, 4 * GIB, options="prjquota" if kind == "xfs" else "")
    output = show(directory)
    limiter = {"xfs": "project quota", "btrfs": "btrfs quota group"}[kind]
    assert f"limited to 64 MiB by {limiter}" in output
    assert "pool btrfs" not in output
    assert list(directory.iterdir()) == []


def test_missing_program_is_named(programs: None, filesystem: FilesystemFactory) -> None:
    """What cannot be shown is left out with what to install; the rest is proved.

    On a disk of its own: without btrfs the demo has no other, and proves that all room is back.
    """
    directory = filesystem("ext4", 4 * GIB)
    hide = 'for name in xfs btrfs; do mount --bind /dev/null "$(command -v mkfs.$name)"; done'
    enter = ("unshare", "--mount", "sh", "-ec")
    done = subprocess.run(
        [*enter, f'{hide}; exec "$@"', "sh", sys.executable, *DEMO, str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "left out: mkfs.xfs not found; install xfsprogs" in said
    assert "mkfs.btrfs not found; install btrfs-progs" in said
    assert "All that was shown was proved" in said


def test_disproved_claim_fails(programs: None, tmp_path: Path) -> None:
    """What was expected and what was found is said, and nothing is left."""
    broken = tmp_path / "bin" / "mkfs.xfs"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho out of order\nexit 1\n")
    broken.chmod(0o755)
    directory = tmp_path / "directory"
    directory.mkdir()
    done = subprocess.run(
        [sys.executable, *DEMO, directory],
        env=os.environ | {"PATH": f"{broken.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "expected: CreateVolume answers OK" in done.stdout
    assert "out of order" in done.stdout
    assert "NOT all was as claimed" in done.stdout
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", ["the device has exactly", "old, from", "all are listed"])
def test_interrupted_demo_leaves_nothing(
    programs: None, tmp_path: Path, number: signal.Signals, words: str
) -> None:
    with demo_until(words, tmp_path) as (demo, output):
        demo.send_signal(number)
    assert demo.returncode == 128 + number
    assert not driver_of(output).exists()
    assert list(tmp_path.iterdir()) == []


def test_killed_demo_takes_driver_and_mounts_along(programs: None, tmp_path: Path) -> None:
    with demo_until("Image with ext4", tmp_path) as (demo, output):
        demo.kill()
    deadline = time.monotonic() + 30
    while driver_of(output).exists() or str(tmp_path) in "".join(backing_files()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_demo_keeps_nothing_of_others(programs: None, tmp_path: Path) -> None:
    """What is unmounted while it runs goes, though it has a copy of all that was mounted."""
    image, shared = tmp_path / "image", tmp_path / "shared"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    run("mkfs.ext4", "-q", image)
    place = shared / "place"
    place.mkdir(parents=True)
    with mounted("--bind", shared, shared):
        run("mount", "--make-shared", shared)
        run("mount", "-o", "loop", image, place)
        directory = tmp_path / "demo"
        directory.mkdir()
        with demo_until("Image with ext4", directory) as (demo, _):
            run("umount", place)
            deadline = time.monotonic() + 10
            while str(image) in backing_files():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert demo.poll() is None
            demo.send_signal(signal.SIGTERM)


@pytest.fixture
def directory_of_nobody() -> Iterator[Path]:
    """Return a directory of the user nobody, or of whoever runs the tests without root."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def run_as_nobody(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python without root. Where its own is closed to others, the system's has to do."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    source = str(Path(pycsi.__file__).parents[1])
    nobody = NOBODY if os.geteuid() == 0 else None
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([source, *packages])}

    def run(python: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *arguments],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            user=nobody,
            group=nobody,
            extra_groups=[] if nobody else None,
        )

    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        with contextlib.suppress(OSError):
            if run(python, "-c", "import grpc, rich, pycsi").returncode == 0:
                return run(python, *words)
    pytest.skip(f"needs a {version} with our packages that a user who is not root can run")


def user_namespaces() -> bool:
    def setting(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except FileNotFoundError:
            return ""

    return (
        setting("/proc/sys/user/max_user_namespaces") != "0"
        and setting("/proc/sys/kernel/unprivileged_userns_clone") != "0"
        and setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") != "1"
    )


def test_without_root(directory_of_nobody: Path) -> None:
    """Directories are shown in a user namespace; what root would add is said."""
    if not user_namespaces():
        pytest.skip("needs user namespaces, which this system forbids")
    done = run_as_nobody(*DEMO, directory_of_nobody)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "quota: none" in done.stdout
    assert "As root (sudo) the demo adds" in " ".join(done.stdout.split())
    assert "All that was shown was proved" in done.stdout
    assert not driver_of(done.stdout).exists()
    assert list(directory_of_nobody.iterdir()) == []


def test_without_root_and_user_namespaces(tmp_path: Path) -> None:
    """One line says what to do."""
    for program in ("setpriv", "unshare"):
        needs(program, met=shutil.which(program) is not None)
    needs("user namespaces", met=user_namespaces() or os.geteuid() == 0)
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin"
    enter = ("unshare", "--user", "--map-root-user")
    done = subprocess.run(
        [*enter, "sh", "-c", f'{forbid} "$@"', "sh", sys.executable, *DEMO, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "run it with sudo" in done.stderr
    assert list(tmp_path.iterdir()) == []


# What is claimed of copies can be disproved.


def disproved(claim: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> str:
    """Return what was expected, and not found."""
    with pytest.raises(Disproved) as failure:
        claim(*args, **kwargs)
    return failure.value.expected


Contents = tuple[Path, files.Inventory, files.Inventory]


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    """Return a directory as it is now, what was in it before, and what is in it now."""
    folder = tmp_path / "contents"
    folder.mkdir()
    old = files.fill(folder, 2 * MIB)
    return folder, old, files.change(folder)


def test_contents_of_another_time(contents: Contents) -> None:
    folder, old, new = contents
    assert copies.volume_cloned(folder, old, new)
    assert copies.snapshot_restored(folder, new, old)
    assert copies.outlives_source(folder, new)
    disproved(copies.snapshot_restored, folder, old, new)
    disproved(copies.volume_cloned, folder, new, old)
    disproved(copies.outlives_source, folder, old)


def test_change_that_is_none(contents: Contents) -> None:
    """A restored volume proves nothing if its source has not changed."""
    folder, _, new = contents
    assert "has changed" in disproved(copies.snapshot_restored, folder, new, new)
    assert "has changed" in disproved(copies.volume_cloned, folder, new, new)


def _break_link(folder: Path) -> None:
    link = folder / "second-name"
    data = link.read_bytes()
    link.unlink()
    link.write_bytes(data)
    link.chmod(0o640)


def _fill_hole(folder: Path) -> None:
    file = folder / "holes"
    file.write_bytes(file.read_bytes())


def _spoil_byte(folder: Path) -> None:
    with (folder / "data").open("r+b") as file:
        file.seek(12345)
        byte = file.read(1)
        file.seek(12345)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "spoil",
    [
        _break_link,
        _fill_hole,
        _spoil_byte,
        lambda folder: (folder / "data").chmod(0o600),
        lambda folder: (folder / "holes").unlink(),
        lambda folder: (folder / "intruder").touch(),
    ],
    ids=["link", "hole", "byte", "mode", "missing", "more"],
)
def test_copy_that_is_not_the_same(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    expected = files.fill(tmp_path, MIB)
    assert copies.outlives_source(tmp_path, expected)
    spoil(tmp_path)
    disproved(copies.outlives_source, tmp_path, expected)


def test_blocks_that_are_not_shared(filesystem: FilesystemFactory) -> None:
    """A copy that has blocks of its own, or shares those of another, is none that shares."""
    pool = filesystem("btrfs", GIB)
    for name in ("volume", "shared", "copy"):
        (pool / name).mkdir()
    source = pool / "volume" / "disk.img"
    source.write_bytes(os.urandom(MIB))
    subprocess.run(["cp", "--reflink=always", source, pool / "shared"], check=True)
    subprocess.run(["cp", "--reflink=never", source, pool / "copy"], check=True)
    assert copies.blocks_shared(pool / "shared", pool / "volume", MIB)
    disproved(copies.blocks_shared, pool / "shared", pool / "volume", 2 * MIB)
    disproved(copies.blocks_shared, pool / "copy", pool / "volume", MIB)


def test_name_of_two_snapshots() -> None:
    one = csi.Snapshot(snapshot_id="s", source_volume_id="v")
    other = csi.Snapshot(snapshot_id="t", source_volume_id="v")
    assert copies.snapshot_idempotent(one, one, "exists, of volume v")
    disproved(copies.snapshot_idempotent, one, other, "exists, of volume v")
    disproved(copies.snapshot_idempotent, one, one, "out of order")


def _group(*volumes: str, name: str = "g") -> csi.VolumeGroupSnapshot:
    members = [
        csi.Snapshot(snapshot_id=f"s-{volume}", source_volume_id=volume, group_snapshot_id=name)
        for volume in volumes
    ]
    return csi.VolumeGroupSnapshot(group_snapshot_id="g", snapshots=members)


def test_members_that_are_missing() -> None:
    both, one = _group("a", "b"), _group("a")
    assert copies.members_listed(both, both.snapshots, ["a", "b"])
    disproved(copies.members_listed, one, both.snapshots, ["a", "b"])
    disproved(copies.members_listed, both, one.snapshots, ["a", "b"])
    disproved(copies.members_listed, both, _group("a", "b", name="h").snapshots, ["a", "b"])


def test_member_that_is_deleted_alone() -> None:
    both = _group("a", "b")
    assert copies.not_deleted_alone(both, "belongs to g", both.snapshots)
    disproved(copies.not_deleted_alone, both, "belongs to g", both.snapshots[1:])
    disproved(copies.not_deleted_alone, both, "out of order", both.snapshots)


@pytest.mark.parametrize(
    ("first", "second", "last", "true"),
    [
        (5, 5, 9, True),
        (5, 4, 9, True),
        (4, 5, 9, False),
        (5, 3, 9, False),
        (9, 9, 9, False),
    ],
)
def test_moments(first: int, second: int, last: int, true: bool) -> None:
    if true:
        assert copies.one_moment(first, second, last)
    else:
        disproved(copies.one_moment, first, second, last)


def test_device_that_is_not_as_before(tmp_path: Path) -> None:
    device = tmp_path / "device"
    expected = os.urandom(4 * BLOCK)
    device.write_bytes(expected)
    assert copies.blocks_restored(device, expected)
    disproved(copies.blocks_restored, device, expected[:-BLOCK])
    disproved(copies.blocks_restored, device, expected[:-BLOCK] + bytes(BLOCK))


@pytest.mark.parametrize(
    ("ranges", "true"),
    [
        ([(BLOCK, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK)], True),
        ([(BLOCK, 2 * BLOCK)], False),
        ([(BLOCK, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK - 1)], False),
        ([(BLOCK, 4 * BLOCK)], False),
        ([(0, 4 * BLOCK)], False),
        ([], False),
    ],
    ids=["exact", "missed", "short", "needless", "all", "none"],
)
def test_ranges(ranges: list[tuple[int, int]], true: bool) -> None:
    """Ranges have to be exactly those that hold data, or that differ."""
    one, other, zeros = b"1" * BLOCK, b"2" * BLOCK, bytes(BLOCK)  # each byte differs
    data = zeros + one + zeros + other
    before, after = one + other + one + other, one + one + one + one
    if true:
        assert copies.allocated_blocks(data, ranges)
        assert copies.changed_blocks(before, after, ranges)
    else:
        disproved(copies.allocated_blocks, data, ranges)
        disproved(copies.changed_blocks, before, after, ranges)


def test_change_of_no_block() -> None:
    disproved(copies.changed_blocks, bytes(BLOCK), bytes(BLOCK), [])


def test_volume_that_is_not_kept(tmp_path: Path) -> None:
    kept = tmp_path / "trash" / "v.1.kept.0"
    kept.mkdir(parents=True)
    disproved(copies.kept_in_trash, tmp_path, "v", [kept.name])
    (kept / "volume.json").touch()
    assert copies.kept_in_trash(tmp_path, "v", [kept.name])
    disproved(copies.kept_in_trash, tmp_path, "v", [])
    (tmp_path / "volumes" / "v").mkdir(parents=True)
    disproved(copies.kept_in_trash, tmp_path, "v", [kept.name])


def test_volume_that_is_not_brought_back() -> None:
    assert copies.brought_back("v", 0, "v")
    disproved(copies.brought_back, "v", 1, "v")
    disproved(copies.brought_back, "v", 0, "w")


@pytest.mark.parametrize("folder", ["volumes", "snapshots", "groups", "frozen", "tmp", "trash"])
def test_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(claims, "PATIENCE", 0.1)
    pool, pods = tmp_path / "pool", tmp_path / "pods"
    for name in ("volumes", "snapshots", "groups", "frozen", "tmp", "trash"):
        (pool / name).mkdir(parents=True)
    pods.mkdir()
    assert claims.nothing_left(pool, pods)
    (pool / folder / "left").touch()
    assert folder in disproved(claims.nothing_left, pool, pods)
    (pool / folder / "left").unlink()
    (pods / "volume").mkdir()
    (pods / "volume" / "target-pod").touch()
    assert "target" in disproved(claims.nothing_left, pool, pods)
