"""Snapshots, restores and clones of volumes that are written to: one point in time, whole."""

import contextlib
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest
import recorder
from conftest import FilesystemFactory, run
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

from pycsi.linux import filesystem as images
from pycsi.linux.descriptor import opened
from pycsi.linux.fiemap import extents

FSCK = {
    "ext4": ["e2fsck", "-fn"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--readonly"],
}
SIZES = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 300 * MIB}
DIRECTORY = {"type": "directory", "quota": "none"}


@contextlib.contextmanager
def writing(*files: Path) -> Iterator[None]:
    """Write numbered records to the files all the time."""
    process = subprocess.Popen([sys.executable, recorder.__file__, *files])
    try:
        deadline = time.monotonic() + 20
        while not all(file.exists() and file.stat().st_size for file in files):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()


def image_of(pool: Path, volume_id: str) -> Path:
    return pool / "volumes" / volume_id / "disk.img"


def assert_prefix(numbers: Sequence[int], step: int = 1, first: int = 0) -> None:
    assert list(numbers) == list(range(first, first + step * len(numbers), step))


def shared(file: Path) -> int:
    """Return how many bytes of a file are shared with others."""
    with opened(file) as fd:
        return sum(item.end - item.start for item in extents(fd) if item.shared)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ground", "kind"), [("xfs", "ext4"), ("xfs", "xfs"), ("btrfs", "btrfs")])
def test_snapshots_of_a_busy_image(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    kind: str,
) -> None:
    """Each of 20 snapshots holds an exact prefix of what was written, and needs no repair."""
    pool = filesystem(ground, 4 * GIB)
    driver = serve(f"default={pool},overcommit=10")
    capability = mount_capability(kind)
    volume_id = driver.create("v", SIZES[kind], capability=capability, type="image").volume_id
    with driver.published(volume_id, tmp_path, capability) as target:
        with writing(target / "records"):
            least = []
            for number in range(20):
                least.append((target / "records").stat().st_size // recorder.RECORD.size - 1)
                driver.snapshot(f"s{number}", volume_id)
        for number in range(20):
            check_restore(driver, pool, tmp_path, f"s{number}", kind, least[number])


def check_restore(
    driver: Driver, pool: Path, tmp_path: Path, name: str, kind: str, least: int
) -> None:
    capability = mount_capability(kind)
    restored = driver.create(
        f"r-{name}",
        SIZES[kind],
        capability=capability,
        source=from_snapshot(f"{name}@node-1"),
        type="image",
    ).volume_id
    run(*FSCK[kind], image_of(pool, restored))
    with driver.published(restored, tmp_path, capability) as target:
        numbers = recorder.records(target / "records")
    assert_prefix(numbers)
    assert len(numbers) >= least
    driver.delete(restored)


@pytest.mark.timeout(600)
def test_snapshots_of_a_busy_directory(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """On btrfs each snapshot of a directory holds an exact prefix too, at once."""
    driver = serve(f"default={filesystem('btrfs', 4 * GIB)},overcommit=10")
    volume_id = driver.create("v").volume_id
    with driver.published(volume_id, tmp_path) as target:
        with writing(target / "a", target / "b"):
            for number in range(10):
                driver.snapshot(f"s{number}", volume_id)
        for number in range(10):
            source = from_snapshot(f"s{number}@node-1")
            restored = driver.create(f"r{number}", source=source).volume_id
            with driver.published(restored, tmp_path) as copy:
                found = recorder.records(copy / "a"), recorder.records(copy / "b")
            assert_prefix(found[0], 2)
            assert_prefix(found[1], 2, 1)
            assert len(found[0]) - len(found[1]) in {0, 1}


@pytest.mark.timeout(600)
def test_groups_of_busy_images(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Of three volumes no record of one is missing while a later one of another is there."""
    driver = serve(f"default={filesystem('xfs', 4 * GIB)},overcommit=10")
    with contextlib.ExitStack() as published:
        ids, targets = [], []
        for kind in ("ext4", "xfs", "btrfs"):
            capability = mount_capability(kind)
            volume = driver.create(kind, SIZES[kind], capability=capability, type="image")
            ids.append(volume.volume_id)
            targets.append(published.enter_context(driver.published(ids[-1], tmp_path, capability)))
        with writing(*(target / "records" for target in targets)):
            groups = [driver.snapshot_group(f"g{number}", *ids) for number in range(10)]
        for number, group in enumerate(groups):
            lengths = []
            for place, kind in enumerate(("ext4", "xfs", "btrfs")):
                (member,) = [m for m in group.snapshots if m.source_volume_id == ids[place]]
                assert member.group_snapshot_id == group.group_snapshot_id
                capability = mount_capability(kind)
                restored = driver.create(
                    f"r-{number}-{kind}",
                    SIZES[kind],
                    capability=capability,
                    source=from_snapshot(member.snapshot_id),
                ).volume_id
                with driver.published(restored, tmp_path, capability) as copy:
                    numbers = recorder.records(copy / "records")
                assert_prefix(numbers, 3, place)
                lengths.append(len(numbers))
                driver.delete(restored)
            assert sorted(lengths, reverse=True) == lengths
            assert lengths[0] - lengths[2] in {0, 1}


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("ground", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("how", ["snapshot", "clone"])
def test_larger_copy_beside_its_source(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    kind: str,
    how: str,
) -> None:
    """A copy is as large as was asked for, and mounted beside its source, which is in use."""
    pool = filesystem(ground, 3 * GIB)
    driver = serve(pool)
    capability = mount_capability(kind)
    size = SIZES[kind]
    volume_id = driver.create("v", size, capability=capability, type="image").volume_id
    with driver.published(volume_id, tmp_path, capability) as target:
        (target / "file").write_text("before")
        if how == "snapshot":
            source = from_snapshot(driver.snapshot("s", volume_id).snapshot_id)
            (target / "file").write_text("after")
        else:
            source = from_volume(volume_id)
        copy = driver.create("c", 2 * size, capability=capability, source=source)
        assert copy.content_source == source
        assert copy.capacity_bytes == 2 * size
        (target / "file").write_text("after")
        with driver.published(copy.volume_id, tmp_path, capability) as other:
            assert (other / "file").read_text() == "before"
            facts = os.statvfs(other)
            assert facts.f_blocks * facts.f_frsize > 1.5 * size
            (other / "file").write_text("mine")
        assert (target / "file").read_text() == "after"
    found = (
        images.identify(image_of(pool, volume_id)),
        images.identify(image_of(pool, copy.volume_id)),
    )
    assert found[0]
    assert found[1]
    assert found[1].size == 2 * size
    if kind != "ext4":
        assert found[0].uuid != found[1].uuid
    for volume in (volume_id, copy.volume_id):
        run(*FSCK[kind], image_of(pool, volume))


@pytest.mark.parametrize("ground", ["xfs", "btrfs"])
def test_blocks_are_shared(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, ground: str
) -> None:
    """A snapshot and a clone take next to nothing of the disk."""
    pool = filesystem(ground, 3 * GIB)
    driver = serve(pool)
    volume_id = driver.create("v", 512 * MIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        (target / "file").write_bytes(os.urandom(256 * MIB))
        os.sync()
        before = os.statvfs(pool)
        snapshot = driver.snapshot("s", volume_id)
        clone = driver.create("c", 512 * MIB, source=from_volume(volume_id)).volume_id
        os.sync()
        after = os.statvfs(pool)
    assert (before.f_bfree - after.f_bfree) * after.f_frsize < 16 * MIB
    copies = [pool / "snapshots" / snapshot.snapshot_id / "disk.img", image_of(pool, clone)]
    for copy in copies:
        assert shared(copy) >= 256 * MIB


def test_thick_copies_share_nothing(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A thick volume has all its blocks for itself, wherever its data comes from."""
    pool = filesystem("xfs", 2 * GIB)
    driver = serve(pool)
    volume_id = driver.create("v", 64 * MIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        (target / "file").write_bytes(os.urandom(16 * MIB))
        thick = driver.create(
            "t", 128 * MIB, source=from_volume(volume_id), allocation="thick"
        ).volume_id
    image = image_of(pool, thick)
    assert image.stat().st_blocks * 512 >= 128 * MIB
    assert shared(image) == 0
    with driver.published(thick, tmp_path) as target:
        assert len((target / "file").read_bytes()) == 16 * MIB


def acl(rights: int) -> bytes:
    """Return an ACL that gives a certain user `rights`, as it is stored (acl(5))."""
    owner, user, group, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
    entries = [(owner, 7, -1), (user, rights, 4321), (group, 5, -1), (mask, 7, -1), (other, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def fill_tree(root: Path) -> None:
    """Make one of everything that a directory can hold."""
    (root / "sub/deep").mkdir(parents=True)
    (root / "sub/file").write_text("text")
    os.link(root / "sub/file", root / "sub/deep/link")
    (root / "sub/symlink").symlink_to("/etc/passwd")
    os.link(root / "sub/symlink", root / "symlink", follow_symlinks=False)
    with (root / "sparse").open("wb") as file:
        file.seek(8 * MIB)
        file.write(b"end")
        file.truncate(16 * MIB)
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "sub").chmod(0o2750)
    os.chown(root / "sub/file", 1234, 5678)
    (root / "sub/file").chmod(0o4711)
    os.setxattr(root / "sub/file", "user.color", b"red")
    os.setxattr(root / "sub/file", "trusted.color", b"blue")
    os.setxattr(root / "sub/deep", "system.posix_acl_access", acl(7))
    os.setxattr(root / "sub/deep", "system.posix_acl_default", acl(4))
    os.chown(root, 99, 98)
    root.chmod(0o1777)
    os.utime(root / "sub/file", ns=(1, 2))
    os.utime(root / "symlink", ns=(3, 4), follow_symlinks=False)
    os.utime(root / "sub", ns=(5, 6))


def tree(root: Path) -> dict[str, object]:
    """Describe all that is in a directory."""
    found: dict[str, object] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        found[str(path.relative_to(root))] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_rdev,
            status.st_mtime_ns,
            status.st_nlink if not stat.S_ISDIR(status.st_mode) else 0,
            status.st_size if stat.S_ISREG(status.st_mode) else 0,
            path.read_bytes() if stat.S_ISREG(status.st_mode) else b"",
            path.readlink() if path.is_symlink() else None,
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
        )
    return found


@pytest.mark.parametrize("ground", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("quota", ["none", "required"])
@pytest.mark.parametrize("how", ["snapshot", "clone"])
def test_directories_are_copied_whole(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    quota: str,
    how: str,
) -> None:
    """Links, holes, owners, modes, times, attributes and ACLs are kept."""
    if ground != "btrfs" and quota == "required":
        pytest.skip("a limit needs project quota there; make test-vm")
    pool = filesystem(ground, GIB)
    driver = serve(pool)
    parameters = {"type": "directory", "quota": quota}
    volume_id = driver.create("v", parameters=parameters).volume_id
    with driver.published(volume_id, tmp_path) as target:
        fill_tree(target)
        os.sync()
        expected = tree(target)
        source = from_volume(volume_id)
        if how == "snapshot":
            source = from_snapshot(driver.snapshot("s", volume_id).snapshot_id)
        copy = driver.create("c", parameters=parameters, source=source).volume_id
        (target / "later").write_text("x")
        with driver.published(copy, tmp_path) as other:
            assert tree(other) == expected
            assert (other / "sparse").stat().st_blocks * 512 < MIB
            linked = (other / "sub/file").stat().st_ino
            assert (other / "sub/deep/link").stat().st_ino == linked
            (other / "mine").write_text("x")
        assert not (target / "mine").exists()


def test_directory_that_is_never_quiet(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Where nothing can hold the writers back a busy directory is refused, or taken if allowed."""
    pool = filesystem("ext4", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    with driver.published(volume_id, tmp_path) as target:
        (target / "large").write_bytes(os.urandom(32 * MIB))
        with writing(target / "records"):
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "written to", "consistency: files"):
                driver.snapshot("s", volume_id)
            assert driver.snapshots() == []
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "written to"):
                driver.create("c", parameters=DIRECTORY, source=from_volume(volume_id))
            driver.snapshot("s", volume_id, consistency="files")
        quiet = driver.snapshot("q", volume_id)
        assert quiet.ready_to_use
    assert list((pool / "tmp").iterdir()) == []
    source = from_snapshot("s@node-1")
    copy = driver.create("c", parameters=DIRECTORY, source=source).volume_id
    with driver.published(copy, tmp_path) as other:
        assert_prefix(recorder.records(other / "records"))


def test_links_lead_nowhere(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A directory that is swapped for a link all the time never leads out of the volume."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    driver = serve(filesystem("xfs", GIB))
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    swapper = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "os.makedirs('real')\n"
        "open('real/secret', 'w').close()\n"
        "os.symlink(sys.argv[2], 'link')\n"
        "os.rename('real', 'place')\n"
        "while True:\n"
        "    os.rename('place', 'real'); os.rename('link', 'place')\n"
        "    os.rename('place', 'link'); os.rename('real', 'place')\n"
    )
    with driver.published(volume_id, tmp_path) as target:
        process = subprocess.Popen([sys.executable, "-c", swapper, target, outside])
        try:
            while not (target / "link").is_symlink():
                time.sleep(0.01)
            taken = [
                driver.snapshot(f"s{number}", volume_id, consistency="files").snapshot_id
                for number in range(100)
            ]
        finally:
            process.kill()
            process.wait()
    folder = driver.folders[0] / "snapshots"
    secrets = [path for name in taken for path in (folder / name).rglob("secret")]
    assert secrets
    assert {path.read_text() for path in secrets} == {""}


def test_raw_block(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A device in use is copied at once where blocks can be shared, and refused elsewhere."""
    block = block_capability()
    for ground in ("xfs", "ext4"):
        driver = serve(filesystem(ground, GIB))
        volume_id = driver.create("v", 16 * MIB, capability=block).volume_id
        data = os.urandom(16 * MIB)
        with driver.published(volume_id, tmp_path, block) as target:
            target.write_bytes(data)
            if ground == "ext4":
                with refused(grpc.StatusCode.FAILED_PRECONDITION, "XFS or btrfs"):
                    driver.snapshot("s", volume_id)
            else:
                driver.snapshot("s", volume_id)
                target.write_bytes(bytes(16 * MIB))
        source = from_snapshot(driver.snapshot("s", volume_id).snapshot_id)
        copy = driver.create("c", 32 * MIB, capability=block, source=source).volume_id
        with driver.published(copy, tmp_path, block) as target, target.open("rb") as device:
            assert device.read(16 * MIB) == data
            assert device.read() == bytes(16 * MIB)


def test_copy_that_takes_too_long(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A pool that cannot share blocks freezes no longer than it may, and names one that can."""
    slow, quick = filesystem("ext4", 3 * GIB), filesystem("xfs", GIB)
    driver = serve(f"default={slow},freeze-limit=0.02s", f"quick={quick}")
    volume_id = driver.create("v", GIB, type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        (target / "file").write_bytes(os.urandom(512 * MIB))
        os.sync()
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "freeze-limit", "quick (xfs)"):
            driver.snapshot("s", volume_id)
        (target / "after").write_text("not frozen")
        os.sync()
    assert driver.snapshots() == []
    for folder in ("tmp", "frozen", "snapshots"):
        assert list((slow / folder).iterdir()) == []
    assert driver.snapshot("s", volume_id).ready_to_use  # nobody has to wait for this one


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_source_that_was_not_unmounted(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """After a power cut, which leaves a journal to be replayed, nothing that was synced is lost."""
    pool = filesystem("xfs", 3 * GIB)
    driver = serve(pool)
    capability = mount_capability(kind)
    volume_id = driver.create("v", SIZES[kind], capability=capability, type="image").volume_id
    image = image_of(pool, volume_id)
    with driver.published(volume_id, tmp_path, capability) as target:
        os.sync()
        fd = os.open(target / "synced", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"synced")
        os.fsync(fd)
        run("cp", "--reflink=always", image, tmp_path / "disk-0/cut.img")
        os.close(fd)
    with (tmp_path / "disk-0/cut.img").open("rb") as cut, image.open("r+b") as disk:
        while piece := cut.read(16 * MIB):
            disk.write(piece)
        os.fsync(disk.fileno())
    source = from_snapshot(driver.snapshot("s", volume_id).snapshot_id)
    for name, origin in (("r", source), ("c", from_volume(volume_id))):
        copy = driver.create(name, SIZES[kind], capability=capability, source=origin).volume_id
        with driver.published(copy, tmp_path, capability) as other:
            assert (other / "synced").read_text() == "synced"


def test_nested_subvolumes_are_refused(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A snapshot would leave subvolumes inside out, so there is none."""
    driver = serve(filesystem("btrfs", GIB))
    volume_id = driver.create("v").volume_id
    with driver.published(volume_id, tmp_path) as target:
        run("btrfs", "subvolume", "create", target / "sub")
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "subvolumes of its own"):
            driver.snapshot("s", volume_id)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "subvolumes of its own"):
            driver.create("c", source=from_volume(volume_id))
        run("btrfs", "subvolume", "delete", target / "sub")
        driver.snapshot("s", volume_id)


def test_room_for_snapshots(filesystem: FilesystemFactory, serve: Callable[..., Driver]) -> None:
    """A snapshot counts for what it can keep occupied, until it has been freed."""
    pool = filesystem("ext4", GIB)
    driver = serve(pool)
    volume_id = driver.create("v", 256 * MIB, capability=block_capability()).volume_id
    before = driver.capacity(quota="none").available_capacity
    driver.snapshot("empty", volume_id)
    assert driver.capacity(quota="none").available_capacity == before
    (pool / "volumes" / volume_id / "disk.img").write_bytes(os.urandom(256 * MIB))
    for number in range(3):
        driver.snapshot(f"s{number}", volume_id)
        left = driver.capacity(quota="none").available_capacity
        assert left == pytest.approx(before - 256 * MIB * (number + 1), abs=2 * MIB)
        if left < 256 * MIB:
            break
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "256 MiB wanted"):
        driver.snapshot("more", volume_id)
    assert not list((pool / "tmp").iterdir())
    driver.restart()
    assert driver.capacity(quota="none").available_capacity == left
    for snapshot in driver.snapshots():
        driver.delete_snapshot(snapshot.snapshot_id)
    assert driver.capacity(quota="none").available_capacity == before


COUNTER = """
import mmap, os, struct, sys
maps = []
for name in sys.argv[1:]:
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4096)
    maps.append(mmap.mmap(fd, 4096))
number = 0
while True:
    number += 1
    for item in maps:
        item[:8] = struct.pack("<Q", number)
"""


def test_directory_that_is_mapped_into_memory(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Pages that are dirty already are changed without a system call, and noticed all the same."""
    driver = serve(filesystem("ext4", GIB))
    volume_id = driver.create("v", parameters=DIRECTORY).volume_id
    with driver.published(volume_id, tmp_path) as target:
        for number in range(100):
            (target / f"f{number}").write_bytes(os.urandom(65536))
        files = target / "a", target / "z"
        process = subprocess.Popen([sys.executable, "-c", COUNTER, *files])
        try:
            while not all(file.exists() and any(file.read_bytes()) for file in files):
                time.sleep(0.01)
            for number in range(3):
                with refused(grpc.StatusCode.FAILED_PRECONDITION, "written to"):
                    driver.snapshot(f"s{number}", volume_id)
        finally:
            process.kill()
            process.wait()
        driver.snapshot("s", volume_id)


def test_snapshot_of_a_thick_volume(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A thick volume can be written to on a full disk, also after its snapshots and clones."""
    pool = filesystem("xfs", GIB)
    driver = serve(f"default={pool},overcommit=4")
    volume_id = driver.create("v", 128 * MIB, type="image", allocation="thick").volume_id
    image = image_of(pool, volume_id)
    with driver.published(volume_id, tmp_path) as target:
        (target / "file").write_bytes(os.urandom(64 * MIB))
        os.sync()
        taken = driver.snapshot("s", volume_id).snapshot_id
        driver.create("c", 128 * MIB, source=from_volume(volume_id))
        assert shared(image) == 0
        assert shared(pool / "snapshots" / taken / "disk.img") == 0
        with (pool.parent / "ballast").open("wb") as ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(MIB)):
                ballast.flush()
        with (target / "file").open("r+b") as file:
            file.write(os.urandom(64 * MIB))
            os.fsync(file.fileno())
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            driver.snapshot("t", volume_id)
        (pool.parent / "ballast").unlink()


@pytest.mark.parametrize("ground", ["xfs", "btrfs"])
def test_sectors_stay_the_same(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, ground: str
) -> None:
    """A device has the sectors that it had when it is staged again after a snapshot."""
    driver = serve(filesystem(ground, 2 * GIB))
    block = block_capability()
    small = mount_capability("xfs")
    raw = driver.create("raw", 16 * MIB, capability=block).volume_id
    image = driver.create(
        "image", 300 * MIB, capability=small, type="image", mkfsOptions="-s size=512"
    ).volume_id
    for number in range(2):
        with driver.published(raw, tmp_path, block) as target:
            assert run("blockdev", "--getss", target).strip() == "512"
        with driver.published(image, tmp_path, small) as target:
            (target / f"file{number}").write_text("x")
        source = from_snapshot(driver.snapshot(f"raw{number}", raw).snapshot_id)
        driver.create(f"raw-copy{number}", 16 * MIB, capability=block, source=source)
        source = from_snapshot(driver.snapshot(f"image{number}", image).snapshot_id)
        copy = driver.create(f"copy{number}", 300 * MIB, capability=small, source=source)
        with driver.published(copy.volume_id, tmp_path, small) as target:
            assert (target / f"file{number}").exists()


DEVICE_WRITER = """
import os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_SYNC)
size = os.lseek(fd, 0, os.SEEK_END)
number = 0
while True:
    number += 1
    for place in (0, size - 512):
        os.pwrite(fd, struct.pack("<Q504x", number), place)
"""


def test_clones_into_another_pool(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Between pools nothing is shared: what cannot be frozen is not copied while it is written."""
    first, second = filesystem("btrfs", 2 * GIB), filesystem("btrfs", 2 * GIB)
    driver = serve(f"default={first}", f"second={second}")
    block = block_capability()
    raw = driver.create("raw", 64 * MIB, capability=block, pool="default").volume_id
    files = driver.create("files", pool="default").volume_id
    image = driver.create("image", type="image", pool="default").volume_id
    with (
        driver.published(raw, tmp_path, block) as device,
        driver.published(files, tmp_path) as target,
        driver.published(image, tmp_path) as mounted,
    ):
        (target / "large").write_bytes(os.urandom(32 * MIB))
        writer = subprocess.Popen([sys.executable, "-c", DEVICE_WRITER, device])
        try:
            with writing(target / "records"), writing(mounted / "records"):
                with refused(grpc.StatusCode.FAILED_PRECONDITION, "cannot be shared"):
                    driver.create(
                        "raw-2", 64 * MIB, capability=block, pool="second", source=from_volume(raw)
                    )
                with refused(grpc.StatusCode.FAILED_PRECONDITION, "written to"):
                    driver.create("files-2", pool="second", source=from_volume(files))
                copy = driver.create("image-2", pool="second", source=from_volume(image)).volume_id
                driver.create(
                    "raw-1", 64 * MIB, capability=block, pool="default", source=from_volume(raw)
                )
                driver.create("files-1", pool="default", source=from_volume(files))
        finally:
            writer.kill()
            writer.wait()
        data = (first / "volumes/raw-1@node-1/disk.img").read_bytes()
        ends = [struct.unpack_from("<Q", data, place)[0] for place in (0, len(data) - 512)]
        assert ends[0] - ends[1] in {0, 1}
        driver.create("files-2", pool="second", source=from_volume(files))
    run(*FSCK["ext4"], image_of(second, copy))
    with driver.published(copy, tmp_path) as target:
        assert_prefix(recorder.records(target / "records"))
    assert {path.name for path in (second / "volumes").iterdir()} == {
        "files-2@node-1",
        "image-2@node-1",
    }


def test_protected_subvolume_is_reaped(
    filesystem: FilesystemFactory, serve: Callable[..., Driver]
) -> None:
    """An immutable directory goes with its volume, and with a snapshot of it."""
    pool = filesystem("btrfs", GIB)
    driver = serve(pool)
    volume_id = driver.create("v").volume_id
    data = pool / "volumes" / volume_id / "data"
    (data / "sub").mkdir()
    run("chattr", "-R", "+i", data)
    taken = driver.snapshot("s", volume_id).snapshot_id
    driver.delete(volume_id)
    driver.delete_snapshot(taken)
    driver.reaped()
