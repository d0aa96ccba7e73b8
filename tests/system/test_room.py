"""What was promised can be written: the room of volumes, and who may take it from them."""

import contextlib
import errno
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, fill, run
from driver import (
    GIB,
    MIB,
    Driver,
    block_capability,
    from_snapshot,
    from_volume,
    mount_capability,
    refused,
)
from health import unwell

from pycsi.linux import kernel
from pycsi.linux.fiemap import extents

BLOCK = block_capability()
PIECE = 4 * MIB


def write(device: Path, size: int) -> None:
    """Write anew to a device, past the cache, so that what fails fails here."""
    fd = os.open(device, os.O_WRONLY)
    try:
        for _ in range(0, size, PIECE):
            os.write(fd, os.urandom(PIECE))
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def full(pool: Path) -> Iterator[None]:
    """Fill the pool's disk through the `with` block."""
    ballast, rest = pool.parent / "ballast", pool.parent / "rest"
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free(pool) - 16 * MIB)
        fill(rest)
        yield
    finally:
        ballast.unlink()
        rest.unlink(missing_ok=True)


def free(pool: Path) -> int:
    facts = os.statvfs(pool)
    return facts.f_bavail * facts.f_frsize


def used(pool: Path) -> int:
    run("sync", "-f", pool)
    facts = os.statvfs(pool)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def shared(image: Path) -> int:
    with image.open("rb") as file:
        return sum(item.end - item.start for item in extents(file.fileno()) if item.shared)


def image_of(pool: Path, volume_id: str) -> Path:
    return pool / "volumes" / volume_id / "disk.img"


def copied_on_write(image: Path) -> None:
    """Make an image on btrfs one as it was made before images were written in place."""
    old = image.with_suffix(".old")
    run("cp", image, old)
    assert "C" not in run("lsattr", old).split()[0]
    old.rename(image)


@pytest.mark.parametrize(
    ("kind", "options", "marks"),
    [
        ("ext4", "", ""),
        ("xfs", "", ""),
        ("btrfs", "", ""),
        ("btrfs", "compress-force=zstd", ""),
        ("btrfs", "", "+c"),
        ("btrfs", "", "+m"),
    ],
)
def test_thick_volume_on_a_full_disk(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    kind: str,
    options: str,
    marks: str,
) -> None:
    """A thick volume can be written again when others have filled the disk, also once copied."""
    size = 32 * MIB
    pool = filesystem(kind, GIB // 2, options=options)
    if marks:
        run("chattr", marks, pool)
    driver = serve(pool)
    made = driver.create("v", size, capability=BLOCK, type="image", allocation="thick").volume_id
    with driver.published(made, tmp_path, BLOCK) as device:
        write(device, size)
        if kind != "ext4":
            driver.snapshot("live", made)
    taken = driver.snapshot("s", made).snapshot_id
    copies = {"r": from_snapshot(taken), "c": from_volume(made)}
    for name, source in copies.items():
        driver.create(name, size, capability=BLOCK, source=source, allocation="thick")
    with full(pool):
        for volume_id in (made, "r@node-1", "c@node-1"):
            with driver.published(volume_id, tmp_path, BLOCK) as device:
                write(device, size)
            assert shared(image_of(pool, volume_id)) == 0
            assert not driver.condition(volume_id).abnormal


def test_rewritten_image_on_btrfs(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """An image holds no more of the disk than its size, however often it is written anew."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    made = driver.create("v", 64 * MIB, capability=BLOCK).volume_id
    before = used(pool)
    with driver.published(made, tmp_path, BLOCK) as device:
        write(device, 64 * MIB)
        pages = random.Random(1).sample(range(64 * MIB // 4096), 8192)  # noqa: S311
        with device.open("r+b", buffering=0) as file:
            for page in pages:
                file.seek(page * 4096)
                file.write(os.urandom(4096))
            os.fsync(file.fileno())
        assert used(pool) - before < 68 * MIB


@pytest.mark.parametrize("marks", ["", "+C"])
def test_image_made_before_they_were_written_in_place(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, marks: str
) -> None:
    """Its snapshots share its blocks as ever; a thick one is said not to be thick."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    for name, allocation in (("v", "thin"), ("t", "thick")):
        made = driver.create(
            name, 32 * MIB, capability=BLOCK, type="image", allocation=allocation
        ).volume_id
        with driver.published(made, tmp_path, BLOCK) as device:
            write(device, 32 * MIB)
        copied_on_write(image_of(pool, made))
    if marks:
        run("chattr", marks, pool / "tmp")
    taken = driver.snapshot("s", "v@node-1").snapshot_id
    driver.create("r", 32 * MIB, capability=BLOCK, source=from_snapshot(taken))
    for image in (pool / "snapshots" / taken / "disk.img", image_of(pool, "r@node-1")):
        assert shared(image) == 32 * MIB
    assert not driver.condition("v@node-1").abnormal
    unwell(driver, "t@node-1", "CopiedOnWrite", "it is not thick")
    driver.create("c", 32 * MIB, capability=BLOCK, source=from_volume("t@node-1"))
    thick = driver.create(
        "h", 32 * MIB, capability=BLOCK, source=from_snapshot(taken), allocation="thick"
    ).volume_id
    assert not driver.condition(thick).abnormal


FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
DIRECTORY = {"type": "directory"}
KINDS: dict[str, dict[str, str]] = {
    "thin": {},
    "thick": {"type": "image", "allocation": "thick"},
    "directory": DIRECTORY,
}


def write_files(folder: Path, size: int) -> None:
    """Write a directory's size in files; what it has for its own records may be missing."""
    written = 0
    try:
        while written < size:
            (folder / f"file{written}").write_bytes(os.urandom(MIB))
            written += MIB
    except OSError as error:
        assert error.errno == errno.EDQUOT  # noqa: PT017
    assert written > size - 4 * MIB
    os.sync()


@pytest.mark.parametrize(
    ("ground", "kind"),
    [
        ("ext4", "thin"),
        ("ext4", "thick"),
        ("xfs", "thin"),
        ("xfs", "thick"),
        ("btrfs", "thin"),
        ("btrfs", "thick"),
        ("btrfs", "directory"),
    ],
)
def test_every_promised_byte_can_be_written(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    kind: str,
) -> None:
    """Volumes are made until there is no room, beside files of others; then all are filled."""
    size = 40 * MIB
    pool = filesystem(ground, GIB // 2)
    (pool.parent / "others").write_bytes(os.urandom(100 * MIB))
    driver = serve(f"default={pool},reserve=5%")
    wanted = KINDS[kind]
    capability = mount_capability() if kind == "directory" else BLOCK
    made = []
    with refused(FULL, "free on disk"):
        for number in range(20):
            volume = driver.create(f"v{number}", size, capability=capability, parameters=wanted)
            made.append(volume)
    last = driver.capacity(**wanted).available_capacity
    assert last < size
    made.append(driver.create("last", last, capability=capability, parameters=wanted))
    assert len(made) >= 4
    for volume in made:
        with driver.published(volume.volume_id, tmp_path, capability) as target:
            if kind == "directory":
                write_files(target, volume.capacity_bytes)
            else:
                write(target, volume.capacity_bytes)
    run("sync", "-f", pool)
    assert free(pool) > 20 * MIB  # the reserve


@pytest.mark.parametrize("ground", ["ext4", "xfs", "btrfs"])
def test_what_others_take(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, ground: str
) -> None:
    """What others write is not offered, what volumes write of their own is offered no less."""
    pool = filesystem(ground, GIB)
    driver = serve(pool)
    empty = driver.capacity().available_capacity
    made = driver.create("v", 200 * MIB, capability=BLOCK).volume_id
    promised = driver.capacity().available_capacity
    assert promised == pytest.approx(empty - 200 * MIB, abs=8 * MIB)
    with driver.published(made, tmp_path, BLOCK) as device:
        write(device, 200 * MIB)
    run("sync", "-f", pool)
    assert driver.capacity().available_capacity == pytest.approx(promised, abs=8 * MIB)
    (pool.parent / "others").write_bytes(os.urandom(100 * MIB))
    run("sync", "-f", pool)
    left = driver.capacity().available_capacity
    assert left == pytest.approx(promised - 100 * MIB, abs=16 * MIB)
    with refused(FULL, "free on disk"):
        driver.create("w", promised, capability=BLOCK)
    driver.snapshot("s", made)
    assert driver.capacity().available_capacity == pytest.approx(left - 200 * MIB, abs=8 * MIB)
    driver.restart()
    assert driver.capacity().available_capacity == pytest.approx(left - 200 * MIB, abs=8 * MIB)
    (pool.parent / "others").unlink()
    driver.delete(made)
    driver.delete_snapshot("s@node-1")
    run("sync", "-f", pool)
    deadline = time.monotonic() + 10  # XFS frees what was deleted in the background
    while driver.capacity().available_capacity != pytest.approx(empty, abs=8 * MIB):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("ground", ["xfs", "btrfs"])
def test_room_of_copies_that_share(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, ground: str
) -> None:
    """What a clone shares still needs room; once it has blocks of its own they count as written."""
    pool = filesystem(ground, GIB)
    driver = serve(pool)
    source = driver.create("v", 100 * MIB, capability=BLOCK).volume_id
    with driver.published(source, tmp_path, BLOCK) as device:
        write(device, 100 * MIB)
    before = driver.capacity().available_capacity
    copy = driver.create("c", 100 * MIB, capability=BLOCK, source=from_volume(source)).volume_id
    shared_still = driver.capacity().available_capacity
    assert shared_still == pytest.approx(before - 100 * MIB, abs=8 * MIB)
    with driver.published(copy, tmp_path, BLOCK) as device:
        write(device, 100 * MIB)
    run("sync", "-f", pool)
    assert driver.capacity().available_capacity == pytest.approx(shared_still, abs=8 * MIB)


def test_warning_of_too_many_promises(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """A pool that promises more than its disk has says so when it is opened."""
    pool = filesystem("ext4", GIB)
    driver = serve(pool)
    driver.create("v", 512 * MIB, capability=BLOCK)
    driver.restart()
    assert "promises more than its disk has" not in driver.log
    with (pool.parent / "others").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 600 * MIB)
    driver.restart()
    assert "promises more than its disk has" in driver.log


def warnings_of_shared_room(driver: Driver) -> list[dict[str, str]]:
    """Return what the log says of pools that promise the same room."""
    words = "promise the same room; give each a reserve"
    return [json.loads(line) for line in driver.log.splitlines() if words in line]


def test_warning_of_pools_on_one_filesystem(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """Pools that promise the same room are named, once, and also when one comes late."""
    pool, elsewhere = filesystem("btrfs", GIB), filesystem("ext4", GIB)
    second, away = pool.parent / "second", pool.parent / "away"
    second.mkdir()
    driver = serve(f"a={pool}", f"b={second}", f"c={elsewhere}")
    found = kernel.topmost(pool.parent)
    assert found
    (warning,) = warnings_of_shared_room(driver)
    assert (warning["pools"], warning["filesystem"]) == ("a, b", found.source)
    driver.stop()
    second.rename(away)
    driver.start()
    assert len(warnings_of_shared_room(driver)) == 1
    away.rename(second)
    driver.create("v", MIB, pool="b", quota="none")
    (_, again) = warnings_of_shared_room(driver)
    assert again["pools"] == "a, b"


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        (("reserve=50%", "reserve=50%"), False),
        (("reserve=600Mi", "overcommit=0.4"), False),
        (("reserve=60%,overcommit=3", "reserve=60%"), False),
        (("reserve=50%", "reserve=10%"), True),
        (("overcommit=0.5", "overcommit=2"), True),
    ],
)
def test_pools_that_share_a_filesystem(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    settings: tuple[str, str],
    *,
    warned: bool,
) -> None:
    """Where each leaves the other its part there is nothing to warn of."""
    pool = filesystem("ext4", GIB)
    second = pool.parent / "second"
    second.mkdir()
    driver = serve(f"a={pool},{settings[0]}", f"b={second},{settings[1]}")
    assert bool(warnings_of_shared_room(driver)) == warned


OUT = grpc.StatusCode.OUT_OF_RANGE
TIB = 1024 * GIB


@pytest.mark.parametrize(
    ("ground", "options", "largest"),
    [
        ("ext4", ("-b", "1024"), 4 * TIB - 4096),
        ("ext4", ("-b", "4096"), 16 * TIB - 4096),
        ("xfs", (), 2**63 - 4096),
        ("btrfs", (), 2**63 - 4096),
    ],
)
@pytest.mark.parametrize("ratio", ["1", "1e15"])
def test_what_no_file_can_be(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    options: tuple[str, ...],
    largest: int,
    ratio: str,
) -> None:
    """A size that no file there can have is out of range, not a want of room."""
    pool = filesystem(ground, GIB // 2, *options)
    driver = serve(f"default={pool},overcommit={ratio}")
    made = driver.create("v", 16 * MIB, capability=BLOCK).volume_id
    more = min(largest + 4096, 2**63 - 1)
    with driver.published(made, tmp_path, BLOCK) as device:
        with refused(OUT):
            driver.create("w", more, capability=BLOCK)
        with refused(OUT):
            driver.create("w", more, capability=BLOCK, source=from_volume(made))
        with refused(OUT):
            driver.expand(made, more)
        with refused(OUT):
            driver.node_expand(made, device, more)
    if ratio == "1":
        with refused(FULL):
            driver.create("w", largest, capability=BLOCK)
        with refused(FULL):
            driver.expand(made, largest)
    else:
        assert driver.expand(made, largest).capacity_bytes == largest
    assert driver.volume_ids() == [made]


def test_what_no_filesystem_can_be(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """The most that mkfs can make of an image is the most that it can have."""
    driver = serve(filesystem("xfs", GIB))
    for size, options in (
        (2**60 + 4096, ""),
        (16 * TIB, "-O ^64bit"),
        (4 * TIB, "-b1024 -O ^64bit"),
    ):
        with refused(OUT, "at most"):
            driver.create("v", size, type="image", mkfsOptions=options)
    with refused(FULL):
        driver.create("v", 2**60, type="image")


def test_files_on_btrfs_that_are_written_in_place(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A directory volume that is nearly full can be rewritten where its user asks for that."""
    driver = serve(filesystem("btrfs", GIB))
    made = driver.create("v", 64 * MIB, parameters=DIRECTORY).volume_id
    with driver.published(made, tmp_path) as target:
        database = target / "database"
        database.mkdir()
        run("chattr", "+C", database)
        (database / "pages").write_bytes(os.urandom(58 * MIB))
        os.sync()
        with (database / "pages").open("r+b", buffering=0) as file:
            for page in random.Random(1).sample(range(58 * MIB // 4096), 58 * MIB // 4096):  # noqa: S311
                file.seek(page * 4096)
                file.write(bytes(4096))
            os.fsync(file.fileno())
