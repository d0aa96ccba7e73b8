"""Moves between the pools of a node: the same id, the same data, in use or not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trees
from conftest import FilesystemFactory, run
from driver import GIB, MIB, Driver, block_capability, from_snapshot, mount_capability, refused
from exports import same_image, scribble
from terminal import piped

from pycsi.linux.punch import punch_hole
from pycsi.proto import csi_pb2 as csi

Serve = Callable[..., Driver]


@pytest.fixture
def driver(request: pytest.FixtureRequest, filesystem: FilesystemFactory, serve: Serve) -> Driver:
    """Return a driver with the pools `old` and `new`, on the filesystems of the parameter."""
    old, new = (filesystem(kind, GIB) for kind in getattr(request, "param", "xfs ext4").split())
    return serve(f"old={old}", f"new={new}")


def of(*cases: str) -> pytest.MarkDecorator:
    """Run a test for these kinds of volume, each with the filesystems of the two pools."""
    pairs = [case.split(maxsplit=1) for case in cases]
    return pytest.mark.parametrize(("kind", "driver"), pairs, indirect=["driver"], ids=cases)


def make(driver: Driver, kind: str, **parameters: str) -> str:
    """Make the volume v in the pool `old`, with data; return its id."""
    given = {"pool": "old", **parameters}
    if kind == "directory":
        given |= {"type": "directory", "quota": "none"}
        made = driver.create("v", 128 * MIB, parameters=given)
        data = place(driver, "old", made.volume_id) / "data"
        twins(data)
        trees.make(data, privileged=True)
    elif kind == "block":
        made = driver.create("v", 64 * MIB, capability=block_capability(), parameters=given)
        scribble(place(driver, "old", made.volume_id) / "disk.img")
    else:
        given |= {"type": "image"}
        made = driver.create("v", 320 * MIB, capability=mount_capability(kind), parameters=given)
    return made.volume_id


def place(driver: Driver, pool: str, volume_id: str) -> Path:
    """Return the directory of a volume in a pool, `old` or `new`."""
    return driver.folders[pool == "new"] / "volumes" / volume_id


def move(driver: Driver, *words: str, status: int = 0) -> str:
    """Run pycsi move on the volume v; return what it says on standard output, or as an error."""
    done = piped("move", "v", *words, f"--endpoint={driver.socket}")
    assert done.returncode == status, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("pycsi: ")]
    assert bool(errors) is bool(status)
    return "\n".join(errors) if status else done.stdout.strip()


def shown(driver: Driver, volume_id: str) -> csi.Volume:
    """Return a volume as the orchestrator is told of it."""
    request = csi.ControllerGetVolumeRequest(volume_id=volume_id)
    volume: csi.Volume = driver.controller.ControllerGetVolume(request).volume
    return volume


def discarded(driver: Driver) -> Path:
    """Return the only entry of the trash of the old pool."""
    (entry,) = (driver.folders[0] / "trash").iterdir()
    assert ".kept." in entry.name
    return entry


def check_moved(driver: Driver, volume_id: str) -> None:
    """Check that the volume is in the new pool only, and is what the old one was at the end."""
    new, old = place(driver, "new", volume_id), discarded(driver)
    if (new / "data").exists():
        assert trees.describe(new / "data") == trees.describe(old / "data")
    else:
        run("cmp", new / "disk.img", old / "disk.img")
    assert not place(driver, "old", volume_id).exists()
    nothing_begun(driver)
    assert driver.volume_ids() == [volume_id]


def nothing_begun(driver: Driver) -> None:
    for pool in driver.folders:
        for folder in ("arriving", "leaving", "tmp"):
            assert list((pool / folder).iterdir()) == []


@contextlib.contextmanager
def used(driver: Driver, volume_id: str, folder: Path) -> Iterator[Path]:
    """Stage and publish a volume for the block; yield its target path."""
    is_block = shown(driver, volume_id).capacity_bytes == 64 * MIB
    block = block_capability() if is_block else None
    staging, target = folder / "staging", folder / "target"
    driver.stage(volume_id, staging, block)
    driver.publish(volume_id, staging, target, block)
    yield target
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)


@of("directory xfs btrfs", "block btrfs ext4", "ext4 ext4 xfs")
def test_not_in_use(driver: Driver, kind: str, tmp_path: Path) -> None:
    """A volume that is not in use is moved at once, and is for the orchestrator what it was."""
    volume_id = make(driver, kind, onDelete="delete")
    before = shown(driver, volume_id)
    assert "is in pool new, with the same id" in move(driver, "--to-pool=new")
    check_moved(driver, volume_id)
    if kind != "directory":
        same_image(discarded(driver) / "disk.img", place(driver, "new", volume_id) / "disk.img")
    assert shown(driver, volume_id) == before
    assert make_again(driver, kind) == before
    listed = piped(
        "get", "volumes", "v", "-o", "json", *(f"--pool={pool}" for pool in driver.pools)
    )
    assert '"pool": "new"' in listed.stdout
    assert "already" in move(driver, "--to-pool=new")
    driver.restart()
    assert shown(driver, volume_id) == before
    driver.expand(volume_id, 400 * MIB)
    if kind == "ext4":
        with used(driver, volume_id, tmp_path) as target:
            (target / "file").write_text("written there")
    driver.delete(volume_id)
    assert driver.volume_ids() == []


def make_again(driver: Driver, kind: str) -> object:
    """Repeat the CreateVolume that has made the volume v."""
    given = {"pool": "old", "onDelete": "delete"}
    if kind == "directory":
        return driver.create(
            "v", 128 * MIB, parameters={**given, "type": "directory", "quota": "none"}
        )
    if kind == "block":
        return driver.create("v", 64 * MIB, capability=block_capability(), parameters=given)
    return driver.create(
        "v", 320 * MIB, capability=mount_capability(kind), parameters={**given, "type": "image"}
    )


@of(
    "directory xfs btrfs",
    "directory btrfs ext4",
    "directory ext4 xfs",
    "block xfs btrfs",
    "block ext4 xfs",
    "ext4 btrfs xfs",
)
def test_in_use(driver: Driver, kind: str, tmp_path: Path) -> None:
    """Of a volume in use all is copied but what changes; then, when it is not used, the rest."""
    volume_id = make(driver, kind)
    with used(driver, volume_id, tmp_path) as target:
        if kind == "ext4":
            twins(target)
            trees.make(target, privileged=True)
        assert "and is still in pool old" in move(driver, "--to-pool=new", "--prepare")
        CHANGES[kind](target)
        said = move(driver, "--to-pool=new", status=1)
        assert "v@node-1 is in use at" in said
        assert "stop what uses it, and repeat the command" in said
        assert place(driver, "old", volume_id).exists()
    move(driver, "--to-pool=new")
    check_moved(driver, volume_id)


def change_tree(root: Path) -> None:
    """Change a tree that `trees.make` has made, in ways that are hard to see."""
    large = (root / "large").stat()
    with (root / "large").open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"changed")
    os.utime(root / "large", ns=(large.st_atime_ns, large.st_mtime_ns))
    with (root / "holes").open("r+b") as file:
        punch_hole(file.fileno(), 5 << 20, 1 << 20)
        file.truncate(15 << 20)
    (root / "empty").unlink()
    (root / "empty").mkdir()
    (root / "empty" / "no longer").write_text("a file")
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    os.removexattr(root / "deep", "user.a=b%c")
    (root / "deep" / "er").chmod(0o700)
    (root / "only a hole").unlink()
    os.link(root / "deep" / "er" / "file 3", root / "only a hole")
    # Two directories change places, with files that are as old, and as large, as each other.
    for name, text in (("one", "1"), ("other", "2")):
        (root / name).rename(root / f"{name}.moved")
        assert (root / f"{name}.moved" / "sub" / "file").read_text() == text
    (root / "one.moved").rename(root / "other")
    (root / "other.moved").rename(root / "one")


def twins(root: Path) -> None:
    for name, text in (("one", "1"), ("other", "2")):
        (root / name / "sub").mkdir(parents=True)
        (root / name / "sub" / "file").write_text(text)
        os.utime(root / name / "sub" / "file", ns=(1, 1))


def change_device(device: Path) -> None:
    with device.open("r+b") as file:
        for number in range(20):
            file.seek(number * 3 * MIB)
            file.write(random.Random(number).randbytes(50_000))  # noqa: S311
        os.fsync(file.fileno())
    run("blkdiscard", "--offset", str(8 * MIB), "--length", str(4 * MIB), device)


CHANGES: dict[str, Callable[[Path], None]] = {
    "directory": change_tree,
    "ext4": change_tree,
    "block": change_device,
}


def test_interrupted_growth(driver: Driver) -> None:
    """A growth of the filesystem that was interrupted is undone before the image is copied."""
    volume_id = make(driver, "ext4")
    undo = place(driver, "old", volume_id) / "resize.undo"
    undo.write_bytes(b"E2UNDO02".ljust(2048, b"\0"))
    move(driver, "--to-pool=new")
    check_moved(driver, volume_id)
    assert not (discarded(driver) / undo.name).exists()


def test_snapshots_stay(driver: Driver) -> None:
    """Snapshots from before stay in the old pool, and never seem deleted if that is missing."""
    volume_id = make(driver, "directory")
    snapshot = driver.snapshot("s", volume_id)
    move(driver, "--to-pool=new")
    later = driver.snapshot("t", volume_id)
    both = [snapshot.snapshot_id, later.snapshot_id]
    assert [item.snapshot_id for item in driver.snapshots(volume_id)] == both
    assert driver.snapshot("s", volume_id) == snapshot
    restored = driver.create(
        "w", 128 * MIB, source=from_snapshot(snapshot.snapshot_id), parameters={"quota": "none"}
    )
    assert (place(driver, "old", restored.volume_id) / "data").exists()
    driver.stop()
    driver.pools = [f"{driver.pools[0]},require-mount", driver.pools[1]]  # it is no mount point
    driver.start()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "pool old"):
        driver.snapshots(volume_id)
    driver.stop()


def test_adopted(driver: Driver, tmp_path: Path) -> None:
    """What was adopted is moved once it is not to be given back any more."""
    old = driver.folders[0]
    (old.parent / "left").mkdir()
    (old.parent / "left" / "file").write_text("kept")
    options = [f"--pool={pool}" for pool in driver.pools]
    how = ["--layout=bare", "--name=v", "--no-limit", "--size=64Mi", "--into=old", "--yes"]
    done = piped("adopt", f"--from={old.parent / 'left'}", *how, "--node-id=node-1", *options)
    assert done.returncode == 0, done.stderr
    assert "pycsi adopt --finish v@node-1" in move(driver, "--to-pool=new", status=1)
    assert piped("adopt", "--finish", "v@node-1", "--yes", *options).returncode == 0
    move(driver, "--to-pool=new")
    assert (place(driver, "new", "v@node-1") / "data" / "file").read_text() == "kept"


def diagnose(driver: Driver) -> list[str]:
    """Return the commands of the only findings that there may be."""
    options = [f"--pool={pool}" for pool in driver.pools]
    found = json.loads(piped("doctor", "-o", "json", *options).stdout)
    assert {finding["code"] for finding in found} <= {"MoveUnfinished"}
    return [finding["command"] for finding in found]


def test_doctor(driver: Driver) -> None:
    """A move that has not ended is found, and the command that is shown ends it."""
    volume_id = make(driver, "directory")
    assert diagnose(driver) == []
    move(driver, "--to-pool=new", "--prepare")
    (with_driver,) = diagnose(driver)
    driver.stop(signal.SIGKILL)
    (without,) = diagnose(driver)
    assert without == with_driver
    old = driver.folders[0]
    (old / "volumes" / volume_id).rename(old / "leaving" / volume_id)  # a kill in between
    commands = diagnose(driver)
    assert set(commands) == {without}
    run("sh", "-c", f"PATH={Path(sys.executable).parent}:$PATH; {without}")
    assert diagnose(driver) == []
    driver.start()
    check_moved(driver, volume_id)


def test_deleted_meanwhile(driver: Driver) -> None:
    """Of a volume that is deleted once its move is prepared nothing is left, but by a command."""
    volume_id = make(driver, "directory")
    move(driver, "--to-pool=new", "--prepare")
    driver.delete(volume_id)
    assert "--cancel" in diagnose(driver)[0]
    assert "there is no volume" in move(driver, "--to-pool=new", status=3)
    make(driver, "directory")
    move(driver, "--to-pool=new")
    nothing_begun(driver)


def test_follows_changes_of_the_volume(driver: Driver) -> None:
    """A volume that grows, and is modified, after its move was prepared arrives so."""
    volume_id = make(driver, "block")
    move(driver, "--to-pool=new", "--prepare")
    driver.expand(volume_id, 96 * MIB)
    driver.modify(volume_id, onDelete="retain")
    move(driver, "--to-pool=new")
    check_moved(driver, volume_id)
    assert shown(driver, volume_id).capacity_bytes == 96 * MIB
    record = json.loads((place(driver, "new", volume_id) / "volume.json").read_text())
    assert record["settings"]["onDelete"] == "retain"


def test_refused(driver: Driver, tmp_path: Path) -> None:
    """What cannot be moved is refused, and nothing is begun."""
    volume_id = make(driver, "directory")
    assert "there is no pool 'none'" in move(driver, "--to-pool=none", status=2)
    assert (
        "there is no volume"
        in piped("move", "w", "--to-pool=new", f"--endpoint={driver.socket}").stderr
    )
    large = driver.create(
        "w", 700 * MIB, parameters={"pool": "old", "type": "directory", "quota": "none"}
    )
    driver.create("x", 700 * MIB, parameters={"pool": "new", "type": "image"})
    done = piped("move", large.volume_id, "--to-pool=new", f"--endpoint={driver.socket}")
    assert done.returncode == 1
    assert "wanted" in done.stderr
    nothing_begun(driver)
    (driver.folders[1] / "volumes" / volume_id).mkdir()
    assert "has something at" in move(driver, "--to-pool=new", status=1)
    (driver.folders[1] / "volumes" / volume_id).rmdir()
    move(driver, "--cancel")
    nothing_begun(driver)
    move(driver, "--to-pool=new")


def test_while_it_is_written(driver: Driver, tmp_path: Path) -> None:
    """What a workload writes while its volume is copied is all there at the end."""
    volume_id = make(driver, "directory")
    script = "i=0; while :; do i=$((i+1)); echo $i > f$((i%50)); mv f$((i%50)) g$((i%70)); done"
    with (
        used(driver, volume_id, tmp_path) as target,
        subprocess.Popen(["sh", "-c", script], cwd=target, stderr=subprocess.DEVNULL) as busy,
    ):
        try:
            for _ in range(3):
                move(driver, "--to-pool=new", "--prepare")
        finally:
            busy.kill()
    move(driver, "--to-pool=new")
    check_moved(driver, volume_id)
