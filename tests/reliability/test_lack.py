"""What a driver needs is taken away for a while: room, inodes, loop devices, mounts, the disk.

Every RPC then does what was asked, or refuses it with a reason and leaves nothing half made; what
frees something succeeds. When it is back, the same RPC succeeds.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, run
from driver import GIB, MIB, Driver, refused
from reliability.conftest import Counter, check_unused, check_whole
from reliability.node_scenes import Publish, PublishInline, Stage, Unpublish, Unstage
from reliability.scenes import (
    DIRECTORY,
    EXT4,
    RAW,
    THICK,
    Attach,
    Clone,
    Create,
    Delete,
    DeleteGroup,
    DeleteSnapshot,
    Expand,
    Group,
    Kind,
    Modify,
    Restore,
    Scene,
    Snapshot,
)
from rpc.conftest import code_of

from pycsi.linux import kernel

Code = grpc.StatusCode

IDLE: list[tuple[type[Scene], Kind]] = [
    (Create, DIRECTORY),
    (Create, EXT4),
    (Create, RAW),
    (Create, THICK),
    (Clone, DIRECTORY),
    (Clone, EXT4),
    (Snapshot, DIRECTORY),
    (Snapshot, EXT4),
    (Restore, EXT4),
    (Delete, DIRECTORY),
    (Delete, EXT4),
    (DeleteSnapshot, EXT4),
    (Expand, EXT4),
    (Expand, THICK),
    (Modify, DIRECTORY),
    (Attach, DIRECTORY),
    (Stage, DIRECTORY),
    (Stage, EXT4),
    (Stage, RAW),
    (PublishInline, EXT4),
]
USED: list[tuple[type[Scene], Kind]] = [
    (Group, EXT4),
    (DeleteGroup, EXT4),
    (Publish, DIRECTORY),
    (Publish, EXT4),
    (Publish, RAW),
    (Unpublish, DIRECTORY),
    (Unpublish, EXT4),
    (Unpublish, RAW),
    (Unstage, DIRECTORY),
    (Unstage, EXT4),
    (Unstage, RAW),
]
FREES = (Delete, DeleteGroup, DeleteSnapshot, Unpublish, Unstage)

Lack = contextlib.AbstractContextManager[None]


@pytest.fixture
def small_pool(filesystem: FilesystemFactory, ground: str) -> Path:
    """Return an empty pool of 1 GiB with few inodes, as far as its filesystem has a number."""
    options = {"ext4": ["-N", "600"], "xfs": ["-i", "maxpct=1"], "btrfs": []}
    return filesystem(ground, GIB, *options[ground])


@pytest.fixture
def play(
    small_pool: Path, ground: str, tmp_path: Path, counted: Counter
) -> Callable[..., dict[str, grpc.StatusCode]]:
    """Return a function that plays scenes while something lacks, and again when it is back."""

    def playing(
        driver: Driver,
        played: list[tuple[type[Scene], Kind]],
        lack: Lack,
    ) -> dict[str, grpc.StatusCode]:
        scenes = []
        for number, (scene, kind) in enumerate(played):
            scenes.append(scene(driver, ground, tmp_path, f"n{number}", kind))
            scenes[-1].prepare()
        with lack:
            codes = {f"{type(item).__name__} {item.kind}": code_of(item.act) for item in scenes}
        driver.reaped()
        for item in scenes:
            check_whole(driver, small_pool)
            item.act()
            item.check()
            item.undo()
        check_whole(driver, small_pool)
        check_unused(small_pool)
        failed = [line for line in driver.log.splitlines() if "Traceback" in line]
        assert failed == []
        counted("RPCs in want of something", len(codes))
        return codes

    return playing


def check(codes: dict[str, grpc.StatusCode], refusals: set[grpc.StatusCode], *refused: str) -> None:
    """Check that RPCs end well or in one of `refusals`; all that `refused` name do that."""
    for what, code in codes.items():
        assert code in {Code.OK, *refusals}, f"{what}: {code}"
        if what.startswith(tuple(scene.__name__ for scene in FREES)):
            assert code is Code.OK, f"{what}: {code}"
    for what in refused:
        assert codes[what] in refusals, f"{what}: {codes[what]}"


@contextlib.contextmanager
def full_disk(pool: Path) -> Iterator[None]:
    """Leave not one free block on the pool's disk."""
    folder = pool.parent / "fill"
    folder.mkdir()
    step = 64 * MIB
    number = 0
    while step:
        try:
            with (folder / str(number)).open("wb") as file:
                number += 1
                os.posix_fallocate(file.fileno(), 0, step)
        except OSError:
            step //= 2
    run("sync", "-f", pool)
    yield
    run("rm", "-rf", folder)
    run("sync", "-f", pool)


@contextlib.contextmanager
def full_inodes(pool: Path) -> Iterator[None]:
    """Leave no free inode on the pool's disk."""
    folder = pool.parent / "fill"
    folder.mkdir()
    with contextlib.suppress(OSError):
        for number in range(1_000_000):
            os.mknod(folder / str(number))
    assert os.statvfs(pool).f_favail < 64
    yield
    run("rm", "-rf", folder)
    run("sync", "-f", pool)


def test_full_disk(
    small_pool: Path, serve: Callable[..., Driver], play: Callable[..., dict[str, grpc.StatusCode]]
) -> None:
    """Without a free block volumes can still be used and deleted, but not made or copied."""
    driver = serve(f"default={small_pool},overcommit=10", options=("--enable-attach",))
    # A thin volume in use meets errors on a full disk.
    used = [(scene, THICK if kind is EXT4 else kind) for scene, kind in USED]
    codes = play(driver, IDLE + used, full_disk(small_pool))
    check(codes, {Code.RESOURCE_EXHAUSTED}, "Create thick", "Expand thick")
    for scene in ("Stage", "Publish"):
        for kind in (DIRECTORY, THICK, EXT4, RAW):
            assert codes.get(f"{scene} {kind}", Code.OK) is Code.OK


@pytest.mark.parametrize("ground", ["ext4", "xfs"], indirect=True)
def test_no_inode_is_left(
    small_pool: Path, serve: Callable[..., Driver], play: Callable[..., dict[str, grpc.StatusCode]]
) -> None:
    """Without a free inode nothing can be made; btrfs never lacks them."""
    driver = serve(f"default={small_pool},overcommit=10", options=("--enable-attach",))
    codes = play(driver, IDLE + USED, full_inodes(small_pool))
    check(codes, {Code.RESOURCE_EXHAUSTED})


@contextlib.contextmanager
def read_only(pool: Path) -> Iterator[None]:
    run("mount", "-o", "remount,ro", pool.parent)
    yield
    run("mount", "-o", "remount,rw", pool.parent)


@contextlib.contextmanager
def away(pool: Path, other: Path | None = None) -> Iterator[None]:
    """Take the pool's disk away, and mount another one in its place, if there is one."""
    place = pool.parent
    run("umount", "--lazy", place)
    if other:
        run("mount", "--bind", other, place)
    yield
    if other:
        run("umount", place)
    run("mount", "-o", "loop", place.with_suffix(".img"), place)


@pytest.mark.parametrize("how", ["read-only", "away", "wrong disk"])
def test_pool_that_cannot_be_written(
    small_pool: Path,
    filesystem: FilesystemFactory,
    ground: str,
    serve: Callable[..., Driver],
    tmp_path: Path,
    play: Callable[..., dict[str, grpc.StatusCode]],
    how: str,
) -> None:
    """Everything waits for the right disk, and nothing is written to another one."""
    driver = serve(f"default={small_pool},overcommit=10", options=("--enable-attach",))
    lack = read_only(small_pool) if how == "read-only" else away(small_pool)
    before: set[Path] = set()
    other = tmp_path
    if how == "wrong disk":
        wrong = filesystem(ground, GIB)
        serve(wrong).stop()  # it is a pool, but not this one
        other, before = wrong.parent, set(wrong.rglob("*"))
        lack = away(small_pool, other)
    codes = play(driver, IDLE, lack)
    assert set(codes.values()) <= {Code.FAILED_PRECONDITION}
    if how == "wrong disk":
        assert set((other / "pool").rglob("*")) == before


def test_no_loop_devices(small_pool: Path, serve: Callable[..., Driver], tmp_path: Path) -> None:
    """Where there are no loop devices, as in a container, that is said, and what to do."""
    hide = 'mount --bind /dev/null /dev/loop-control; exec "$@"'
    driver = serve(small_pool, wrapper=("unshare", "--mount", "sh", "-c", hide, "sh"))
    volume_id = driver.create("v", 16 * MIB, type="image").volume_id
    with refused(Code.FAILED_PRECONDITION, "loop"):
        driver.stage(volume_id, tmp_path / "staging")
    driver.delete(volume_id)
    check_whole(driver, small_pool)


MOST_MOUNTS = Path("/proc/sys/fs/mount-max")


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Return a command that runs another where the kernel allows no more mounts."""
    before = MOST_MOUNTS.read_text()
    limit = len(kernel.mountinfo()) + 500  # others may still mount
    folder = tmp_path / "crowd"
    folder.mkdir()
    fill = f'cd {folder}; while mount --bind . . 2>/dev/null; do :; done; exec "$@"'
    MOST_MOUNTS.write_text(str(limit))
    yield "unshare", "--mount", "sh", "-c", fill, "sh"
    MOST_MOUNTS.write_text(before)


def test_too_many_mounts(
    small_pool: Path, serve: Callable[..., Driver], crowded: tuple[str, ...], tmp_path: Path
) -> None:
    """Where the kernel allows no more mounts, that is said, with the setting that limits them."""
    driver = serve(small_pool, wrapper=crowded)
    volume_id = driver.create("v", 16 * MIB, type="image").volume_id
    with refused(Code.RESOURCE_EXHAUSTED, "fs.mount-max"):
        driver.stage(volume_id, tmp_path / "staging")
    driver.delete(volume_id)
    check_whole(driver, small_pool)
    check_unused(small_pool)
