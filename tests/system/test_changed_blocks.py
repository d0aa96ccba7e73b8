"""Which blocks a snapshot has and which have changed: checked byte by byte."""

import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory
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

from pycsi.proto import csi_pb2 as csi

SIZE = 32 * MIB
BLOCK = block_capability()
Code = grpc.StatusCode


def content(driver: Driver, snapshot_id: str) -> bytes:
    return (driver.folders[0] / "snapshots" / snapshot_id / "disk.img").read_bytes()


def check_order(ranges: list[tuple[int, int]], size: int) -> None:
    end = 0
    for start, length in ranges:
        assert start >= end
        assert length > 0
        end = start + length
    assert end <= size


def covered(ranges: list[tuple[int, int]], size: int) -> bytearray:
    """Return a map of the volume with a 1 for each byte that is in a range."""
    bits = bytearray(size)
    for start, length in ranges:
        bits[start : start + length] = b"\1" * length
    return bits


def check_delta(driver: Driver, base: str, target: str) -> list[tuple[int, int]]:
    """Check the delta of two snapshots byte by byte, and rebuild one from the other with it."""
    old, new = content(driver, base), content(driver, target)
    old = old.ljust(len(new), b"\0")
    ranges = driver.delta(base, target)
    check_order(ranges, len(new))
    bits = covered(ranges, len(new))
    step = 4096
    parts = [at for at in range(0, len(new), MIB) if old[at : at + MIB] != new[at : at + MIB]]
    for at in (at for part in parts for at in range(part, min(part + MIB, len(new)), step)):
        if old[at : at + step] != new[at : at + step]:
            here = bits[at : at + step]
            assert here.count(1) == len(here), f"the change at {at} is missing"
    rebuilt = bytearray(old[: len(new)])
    for start, length in ranges:
        rebuilt[start : start + length] = new[start : start + length]
    assert rebuilt == new
    return ranges


def scribble(target: Path, chance: random.Random) -> None:
    """Write random bytes and zeros to random places of a device."""
    with target.open("r+b", buffering=0) as device:
        for _ in range(chance.randrange(1, 40)):
            start = chance.randrange(0, SIZE)
            length = min(chance.choice([1, 511, 512, 4096, 5000, 65536, 300_000]), SIZE - start)
            device.seek(start)
            device.write(bytes(length) if chance.random() < 0.2 else chance.randbytes(length))
        os.fsync(device.fileno())


def write_at(target: Path, places: Iterable[int]) -> None:
    """Write 4 KiB at each of the places of a device."""
    with target.open("r+b", buffering=0) as device:
        for place in places:
            device.seek(place)
            device.write(b"x" * 4096)
        os.fsync(device.fileno())


@pytest.mark.parametrize("ground", ["xfs", "btrfs", "ext4"])
def test_delta_of_a_device(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, ground: str
) -> None:
    """Each delta covers every changed byte, with and without shared blocks."""
    driver = serve(f"default={filesystem(ground, 2 * GIB)},overcommit=5")
    volume_id = driver.create("v", SIZE, capability=BLOCK).volume_id
    chance = random.Random(2026)  # noqa: S311  (the same every time)
    names = []
    for number in range(12):
        if number:
            with driver.published(volume_id, tmp_path, BLOCK) as target:
                scribble(target, chance)
        names.append(driver.snapshot(f"s{number}", volume_id).snapshot_id)
    assert driver.allocated(names[0]) == []
    driver.delete(volume_id)  # the source is not needed
    for base in range(11):
        check_delta(driver, names[base], names[base + 1])
        check_delta(driver, names[base + 1], names[base // 2])
    for name in names:
        assert driver.delta(name, name) == []
        ranges = driver.allocated(name)
        check_order(ranges, SIZE)
        left = bytearray(content(driver, name))
        for start, length in ranges:
            left[start : start + length] = bytes(length)
        assert left == bytes(SIZE)


@pytest.mark.parametrize("ground", ["xfs", "ext4"])
def test_delta_is_small(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, ground: str
) -> None:
    """What was not changed is not in the delta."""
    driver = serve(filesystem(ground, GIB))
    volume_id = driver.create("v", SIZE, capability=BLOCK).volume_id
    with driver.published(volume_id, tmp_path, BLOCK) as target:
        target.write_bytes(os.urandom(SIZE))
    base = driver.snapshot("base", volume_id).snapshot_id
    places = [0, 4 * MIB, 4 * MIB + 8192, SIZE - 4096]
    with driver.published(volume_id, tmp_path, BLOCK) as target:
        write_at(target, places)
    after = driver.snapshot("after", volume_id).snapshot_id
    ranges = check_delta(driver, base, after)
    assert sum(length for _, length in ranges) <= 1024 * 1024
    if ground == "ext4":
        assert ranges == [(place, 4096) for place in places]


@pytest.mark.parametrize(("ground", "kind"), [("xfs", "ext4"), ("ext4", "xfs"), ("btrfs", "btrfs")])
def test_delta_of_a_filesystem(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    kind: str,
) -> None:
    """Of an image with a filesystem, which also grows and is discarded in part."""
    driver = serve(f"default={filesystem(ground, 3 * GIB)},overcommit=5")
    capability = mount_capability(kind, flags=["discard"])
    volume_id = driver.create("v", 300 * MIB, capability=capability, type="image").volume_id
    names = [driver.snapshot("s0", volume_id).snapshot_id]
    chance = random.Random(1)  # noqa: S311  (the same every time)
    for number in range(1, 4):
        with driver.published(volume_id, tmp_path, capability) as target:
            for file in list(target.glob("f*"))[::2]:
                file.unlink()
            for count in range(10):
                (target / f"f{number}-{count}").write_bytes(
                    chance.randbytes(chance.randrange(2 * MIB))
                )
            os.sync()
        if number == 2:
            driver.expand(volume_id, 400 * MIB)
        names.append(driver.snapshot(f"s{number}", volume_id).snapshot_id)
    for base, target_name in ((0, 1), (1, 2), (2, 3), (0, 3), (3, 0)):
        check_delta(driver, names[base], names[target_name])


@pytest.mark.parametrize("ground", ["xfs", "ext4"])
def test_pages_and_resumption(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, ground: str
) -> None:
    """Messages have at most max_results ranges, and a stream can begin anywhere."""
    driver = serve(filesystem(ground, GIB))
    volume_id = driver.create("v", SIZE, capability=BLOCK).volume_id
    base = driver.snapshot("base", volume_id).snapshot_id
    with driver.published(volume_id, tmp_path, BLOCK) as target:
        write_at(target, range(0, SIZE, 64 * 1024))
    after = driver.snapshot("after", volume_id).snapshot_id
    whole = driver.delta(base, after)
    assert len(whole) == SIZE // (64 * 1024)
    assert driver.allocated(after) == whole
    request = csi.GetMetadataDeltaRequest(
        base_snapshot_id=base, target_snapshot_id=after, max_results=7
    )
    messages = list(driver.metadata.GetMetadataDelta(request))
    assert {len(message.block_metadata) for message in messages[:-1]} == {7}
    assert {(m.block_metadata_type, m.volume_capacity_bytes) for m in messages} == {
        (csi.VARIABLE_LENGTH, SIZE)
    }
    for start in (1, 4095, 4096, 4097, 65536, SIZE // 2 + 5, SIZE - 1, SIZE):
        expected = [
            (max(at, start), at + length - max(at, start))
            for at, length in whole
            if at + length > start
        ]
        assert driver.delta(base, after, start) == expected
        assert driver.allocated(after, start) == expected
    for start in (-1, SIZE + 1):
        with refused(Code.OUT_OF_RANGE, "starting_offset"):
            driver.delta(base, after, start)
        with refused(Code.OUT_OF_RANGE, "starting_offset"):
            driver.allocated(after, start)
    with refused(Code.INVALID_ARGUMENT, "max_results"):
        driver.delta(base, after, most=-1)
    with refused(Code.INVALID_ARGUMENT, "max_results"):
        driver.allocated(after, most=-1)


@pytest.mark.parametrize(
    ("ground", "options"),
    [("xfs", ()), ("xfs", ("-m", "reflink=0", "-b", "size=1024")), ("btrfs", ()), ("ext4", ())],
    ids=["xfs", "xfs-without-reflink", "btrfs", "ext4"],
)
def test_delta_from_any_offset(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    options: tuple[str, ...],
) -> None:
    """It is what the whole answer says from there on, also from within a block."""
    driver = serve(f"default={filesystem(ground, GIB, *options)},overcommit=5")
    volume_id = driver.create("v", SIZE, capability=BLOCK).volume_id
    chance = random.Random(7)  # noqa: S311  (the same every time)
    names = []
    for number in range(3):
        with driver.published(volume_id, tmp_path, BLOCK) as target:
            for _ in range(8):
                scribble(target, chance)
        names.append(driver.snapshot(f"s{number}", volume_id).snapshot_id)
    answers: list[Callable[[int], list[tuple[int, int]]]] = [
        lambda start: driver.delta(names[0], names[1], start),
        lambda start: driver.delta(names[2], names[0], start),
        lambda start: driver.allocated(names[1], start),
    ]
    for answer in answers:
        whole = answer(0)
        assert whole
        edges = [edge for at, length in whole for edge in (at, at + length)]
        places = [chance.randrange(SIZE) for _ in range(10)]
        for place in places + chance.sample(edges, min(len(edges), 10)):
            for start in {max(0, place - 1), place, min(place + 513, SIZE)}:
                expected = [
                    (max(at, start), at + length - max(at, start))
                    for at, length in whole
                    if at + length > start
                ]
                assert answer(start) == expected


def test_stream_of_a_snapshot_that_is_deleted(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A stream under way ends well when its snapshot is deleted; one may be left unread."""
    driver = serve(filesystem("xfs", GIB))
    volume_id = driver.create("v", SIZE, capability=BLOCK).volume_id
    with driver.published(volume_id, tmp_path, BLOCK) as target:
        write_at(target, range(0, SIZE, 8192))
    snapshot_id = driver.snapshot("s", volume_id).snapshot_id
    request = csi.GetMetadataAllocatedRequest(snapshot_id=snapshot_id, max_results=1)
    left = driver.metadata.GetMetadataAllocated(request)
    next(left)
    left.cancel()
    stream = driver.metadata.GetMetadataAllocated(request)
    next(stream)
    driver.delete_snapshot(snapshot_id)
    assert len(list(stream)) == SIZE // 8192 - 1


def test_what_has_no_blocks(driver: Driver) -> None:
    """Directories, snapshots that are not there and those of different volumes are refused."""
    parameters = {"type": "directory", "quota": "none"}
    files = driver.create("files", parameters=parameters).volume_id
    one = driver.create("one", 4 * MIB, capability=BLOCK).volume_id
    two = driver.create("two", 4 * MIB, capability=BLOCK).volume_id
    of_files = driver.snapshot("files", files).snapshot_id
    of_one = driver.snapshot("one", one).snapshot_id
    of_two = driver.snapshot("two", two).snapshot_id
    with refused(Code.INVALID_ARGUMENT, "directory"):
        driver.allocated(of_files)
    with refused(Code.INVALID_ARGUMENT, "directory"):
        driver.delta(of_files, of_files)
    with refused(Code.INVALID_ARGUMENT, "different volumes"):
        driver.delta(of_one, of_two)
    for pair in (("gone", of_one), (of_one, "gone"), ("../volumes", of_one)):
        with refused(Code.NOT_FOUND):
            driver.delta(*pair)
    with refused(Code.NOT_FOUND, "node-2"):
        driver.allocated("s@node-2")
    with refused(Code.INVALID_ARGUMENT, "snapshot_id"):
        driver.allocated("")
    with refused(Code.INVALID_ARGUMENT, "target_snapshot_id"):
        driver.delta(of_one, "")
    restored = driver.create("r", 4 * MIB, capability=BLOCK, source=from_snapshot(of_one))
    assert restored.volume_id


def test_compressed_extents(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Of what is compressed the place is not known: it counts as changed, and the stream ends.

    So are images that were made before they were written in place.
    """
    plain = filesystem("ext4", GIB)
    squeezed = filesystem("btrfs", GIB, options="compress-force=zstd")
    driver = serve(f"plain={plain}", f"default={squeezed}")
    source = driver.create("w", SIZE, capability=BLOCK, pool="plain").volume_id
    (plain / "volumes" / source / "disk.img").write_bytes((b"hello" * SIZE)[:SIZE])
    volume_id = driver.create(
        "v", SIZE, capability=BLOCK, pool="default", source=from_volume(source)
    ).volume_id
    image = squeezed / "volumes" / volume_id / "disk.img"
    image.unlink()
    image.write_bytes((b"hello" * SIZE)[:SIZE])
    one = driver.snapshot("one", volume_id).snapshot_id
    two = driver.snapshot("two", volume_id).snapshot_id
    assert sum(length for _, length in driver.delta(one, two)) == SIZE
    assert sum(length for _, length in driver.allocated(one)) == SIZE


def test_volume_that_was_made_again(serve: Callable[..., Driver], tmp_path: Path) -> None:
    """Snapshots of a volume and of a later one of its name are of different volumes."""
    pools = [tmp_path / "a", tmp_path / "b"]
    for pool in pools:
        pool.mkdir()
    driver = serve(*(f"{pool.name}={pool}" for pool in pools))
    for pool in pools:
        volume_id = driver.create("v", 4 * MIB, capability=BLOCK, pool=pool.name).volume_id
        driver.snapshot(pool.name, volume_id)
        driver.delete(volume_id)
    with refused(Code.INVALID_ARGUMENT, "made again"):
        driver.delta("a@node-1", "b@node-1")
