"""A pool whose disk fails: what is mounted is undone by what the kernel knows; and it comes back.

A disk fails by a shutdown of its filesystem, as the kernel does it when it meets an error. Of btrfs
that cannot be asked for: its disk is a file on an XFS that is shut down.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, holding, needs, run
from driver import MIB, NODE, Driver, block_capability, from_volume, mount_capability, refused

from pycsi.linux import kernel, loop, mount
from pycsi.linux.backing import path_of
from pycsi.model.ids import ephemeral_id
from pycsi.proto import csi_pb2 as csi

REFUSED = grpc.StatusCode.FAILED_PRECONDITION

OURS = f"dead-{os.getpid()}"
"""How this run's volumes are called: their devices are found by that, and others run tests, too."""

INLINE = f"csi-{OURS}"


class Disk:
    """A disk, and its filesystem mounted at `place`; the pool is in that."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.place = folder / "disk-9"
        self._below = folder / "disk-8"
        self.pool = self.place / "pool"
        self._bound: list[tuple[int, Path]] = []
        self.place.mkdir()
        self._below.mkdir()
        image = self._make(folder / "disk-9.img", kind)
        if kind == "btrfs":
            self._mount(self._make(folder / "disk-8.img", "xfs", 1024), self._below)
            image = Path(shutil.move(image, self._below))
        self._image = image
        self._mount(image, self.place)
        self.pool.mkdir()

    @staticmethod
    def _make(image: Path, kind: str, size: int = 512) -> Path:
        with image.open("wb") as file:
            file.truncate(size * MIB)
        run(f"mkfs.{kind}", "-q", image)
        return image

    def _mount(self, image: Path, place: Path, *options: str) -> None:
        run("mount", *options, self.bind(image), place)

    def bind(self, file: Path) -> str:
        """Bind a loop device to a file, until the test ends, and return its path."""
        device = run("losetup", "--find", "--show", file).strip()
        self._bound.append((int(device.removeprefix("/dev/loop")), file))
        return device

    def fail(self) -> None:
        """Let the disk do nothing any more."""
        run("xfs_io", "-x", "-c", "shutdown", self._below if self.kind == "btrfs" else self.place)
        if self.kind == "btrfs":  # notices when it writes
            subprocess.run(["sync", "--file-system", self.pool], capture_output=True, check=False)

    def lose(self) -> None:
        """Take the filesystem away, whoever uses it."""
        run("umount", "--lazy", self.place)
        if self.kind == "btrfs":
            run("umount", "--lazy", self._below)

    def come_back(self) -> None:
        """Mount the disk again, under another device name, whatever still uses the old one."""
        self.lose()
        if self.kind == "ext4":
            subprocess.run(["e2fsck", "-fy", self._image], capture_output=True, check=False)
        self._mount(self._image, self.place, *(["-o", "nouuid"] if self.kind == "xfs" else []))

    def close(self, folder: Path) -> None:
        """Leave nothing of it, whatever has failed."""
        self._detach(folder)
        for item in reversed(kernel.mountinfo()):
            if item.target.startswith(f"{folder}/disk-"):
                with contextlib.suppress(OSError):
                    mount.umount2(item.target, mount.MNT_DETACH)
        self._detach(folder)

    def _detach(self, folder: Path) -> None:
        inline = ephemeral_id(INLINE, NODE)
        for number in loop.numbers():
            if (path_of(number) or "").startswith(
                (f"{folder}/", f"/pool/volumes/{OURS}-", f"/pool/volumes/{inline}/")
            ):
                run("losetup", "--detach", f"/dev/loop{number}")
        for number, file in self._bound:  # whose path begins in its filesystem, now that is lost
            if path_of(number) == f"/{'/'.join(file.relative_to(folder).parts[1:])}":
                run("losetup", "--detach", f"/dev/loop{number}")


@pytest.fixture
def disk(root: None, tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Return a function that makes the test's disk."""
    needs("xfs_io", met=shutil.which("xfs_io") is not None)
    made: list[Disk] = []

    def make(kind: str) -> Disk:
        made.append(Disk(tmp_path, kind))
        return made[-1]

    yield make
    for one in made:
        one.close(tmp_path)


Volumes = dict[str, csi.VolumeCapability]


def volumes(driver: Driver, kind: str) -> Volumes:
    """Make a volume of each kind."""
    free = {"type": "directory"} | ({} if kind == "btrfs" else {"quota": "none"})
    plain, block, image = mount_capability(), block_capability(), mount_capability("ext4")
    made = [
        (driver.create(f"{OURS}-dir", capability=plain, parameters=free), plain),
        (driver.create(f"{OURS}-image", capability=image, type="image"), image),
        (driver.create(f"{OURS}-raw", capability=block), block),
    ]
    return {volume.volume_id: capability for volume, capability in made}


def use(driver: Driver, made: Volumes, folder: Path) -> dict[str, tuple[Path, Path]]:
    """Stage and publish volumes; return where, by id."""
    places = {key: (folder / f"staging-{key}", folder / f"target-{key}") for key in made}
    for volume_id, (staging, target) in places.items():
        driver.stage(volume_id, staging, made[volume_id])
        driver.publish(volume_id, staging, target, made[volume_id])
    return places


def publish_inline(driver: Driver, folder: Path) -> Path:
    """Publish the inline volume `INLINE`; return where."""
    target = folder / "inline"
    context = {"csi.storage.k8s.io/ephemeral": "true", "size": "32Mi", "type": "image"}
    driver.publish(INLINE, None, target, context=context)
    return target


def undo(driver: Driver, places: dict[str, tuple[Path, Path]]) -> None:
    """Unpublish and unstage volumes, each call twice, and see that nothing is left of them."""
    for volume_id, (staging, target) in places.items():
        for _ in range(2):
            driver.unpublish(volume_id, target)
            assert not os.path.lexists(target)
        for _ in range(2):
            driver.unstage(volume_id, staging)
            assert not staging.is_mount()
        deadline = time.monotonic() + 5
        while left := [n for n in loop.numbers() if f"/{volume_id}/" in (path_of(n) or "")]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def calls(
    driver: Driver, volume_id: str, staging: Path, target: Path, wanted: csi.VolumeCapability
) -> list[Callable[[], object]]:
    """Return calls that a disk which has failed makes impossible."""
    larger = 128 * MIB
    made: list[Callable[[], object]] = [
        functools.partial(driver.snapshot, "dead-snapshot", volume_id),
        functools.partial(driver.expand, volume_id, larger),
        functools.partial(driver.node_expand, volume_id, target, larger),
        functools.partial(driver.stage, volume_id, target.with_name("other"), wanted),
        functools.partial(driver.publish, volume_id, staging, target, wanted),
        functools.partial(driver.delete, volume_id),
    ]
    if "dir" not in volume_id:
        source = from_volume(volume_id)
        made.append(
            functools.partial(driver.create, "dead-clone", capability=wanted, source=source)
        )
    return made


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_disk_that_fails(
    disk: Callable[[str], Disk], serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """Every call tells what is wrong; what is mounted can be unmounted."""
    failing = disk(kind)
    driver = serve(failing.pool)
    made = volumes(driver, kind)
    places = use(driver, made, tmp_path)
    inline = publish_inline(driver, tmp_path)
    failing.fail()
    assert driver.controller.GetCapacity(csi.GetCapacityRequest()).available_capacity == 0
    listed = driver.controller.ListVolumes(csi.ListVolumesRequest()).entries
    assert {entry.volume.volume_id for entry in listed} == set(made)
    assert all(entry.status.volume_condition.abnormal for entry in listed)
    with refused(REFUSED):
        driver.create("dead-new", type="image")
    for volume_id, (staging, target) in places.items():
        wanted = made[volume_id]
        stats = driver.stats(volume_id, target)
        assert stats.volume_condition.abnormal
        assert not stats.usage or kind == "btrfs"
        for call in calls(driver, volume_id, staging, target, wanted):
            with refused(REFUSED):
                call()
    undo(driver, places)
    for _ in range(2):
        driver.unpublish(INLINE, inline)
        assert not os.path.lexists(inline)
    for volume_id in made:
        with refused(REFUSED):
            driver.delete(volume_id)
    assert "INTERNAL" not in driver.log
    failing.lose()


@contextlib.contextmanager
def held(places: dict[str, tuple[Path, Path]]) -> Iterator[dict[str, int]]:
    """Let a process hold what is published of each volume; yield their ids by the volumes'."""
    with contextlib.ExitStack() as stack:
        pids = {}
        for volume_id, (_, target) in places.items():
            if target.is_dir():
                (target / "file").write_text("x")
            way = "file" if target.is_dir() else "device"
            pids[volume_id] = stack.enter_context(holding(target, way))
        yield pids


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_processes_that_hold_what_is_on_a_disk_that_failed(
    disk: Callable[[str], Disk],
    serve: Callable[..., Driver],
    tmp_path: Path,
    kind: str,
    restarted: bool,
) -> None:
    """They may never end, and keep no workload from ending: nothing can be written any more."""
    failing = disk(kind)
    driver = serve(failing.pool)
    made = volumes(driver, kind)
    places = use(driver, made, tmp_path)
    with held(places) as pids:
        for volume_id, (_, target) in places.items():
            with refused(REFUSED, f"process {pids[volume_id]}"):
                driver.unpublish(volume_id, target)
        failing.fail()
        if restarted:
            driver.restart()
        for volume_id, (staging, target) in places.items():
            for _ in range(2):
                driver.unpublish(volume_id, target)
                assert not os.path.lexists(target)
            assert f"process {pids[volume_id]} (python" in driver.log
            if "raw" in volume_id and not restarted:
                with refused(REFUSED, f"process {pids[volume_id]}"):
                    driver.unstage(volume_id, staging)
            else:
                driver.unstage(volume_id, staging)
                assert not staging.is_mount()
            with refused(REFUSED):
                driver.delete(volume_id)
    undo(driver, places)
    failing.lose()


def test_mount_in_a_volume_on_a_disk_that_failed(
    disk: Callable[[str], Disk], serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """What else is mounted there is no part of the failed disk, and stays where it is."""
    failing = disk("xfs")
    driver = serve(failing.pool)
    volume_id = driver.create(f"{OURS}-image", type="image").volume_id
    with driver.published(volume_id, tmp_path) as target:
        inner = target / "inner"
        inner.mkdir()
        run("mount", "-t", "tmpfs", "none", inner)
        failing.fail()
        try:
            with refused(REFUSED, f"a mount at {inner}"):
                driver.unpublish(volume_id, target)
        finally:
            run("umount", inner)
    failing.lose()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_volume_of_a_process_whose_disk_comes_back(
    disk: Callable[[str], Disk], serve: Callable[..., Driver], tmp_path: Path, kind: str
) -> None:
    """It is staged anew beside what the process holds, or refused until that has ended."""
    failing = disk("ext4")
    driver = serve(failing.pool)
    wanted = mount_capability(kind)
    volume_id = driver.create(f"{OURS}-image", 300 * MIB, capability=wanted).volume_id
    places = use(driver, {volume_id: wanted}, tmp_path)
    (staging, target) = places[volume_id]
    with held(places):
        run("sync", "--file-system", target)
        failing.fail()
        driver.unpublish(volume_id, target)
        driver.unstage(volume_id, staging)
        failing.come_back()
        if kind == "xfs":  # of which the kernel mounts none twice
            with refused(REFUSED, "from a disk that was lost", "/dev/loop"):
                driver.stage(volume_id, staging, wanted)
        else:
            driver.stage(volume_id, staging, wanted)
    driver.stage(volume_id, staging, wanted)
    assert (staging / "file").read_text() == "x"
    undo(driver, places)
    driver.delete(volume_id)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_filesystem_of_a_volume_that_was_shut_down(
    driver: Driver, root: None, tmp_path: Path, kind: str
) -> None:
    """Who holds it does not hinder its end; it is neither deleted nor staged in that state."""
    needs("xfs_io", met=shutil.which("xfs_io") is not None)
    wanted = mount_capability(kind)
    volume_id = driver.create(OURS, 300 * MIB, capability=wanted).volume_id
    places = use(driver, {volume_id: wanted}, tmp_path)
    (staging, target) = places[volume_id]
    with held(places):
        run("sync", "--file-system", target)
        run("xfs_io", "-x", "-c", "shutdown", target)
        driver.unpublish(volume_id, target)
        driver.unstage(volume_id, staging)
        with refused(REFUSED, "/dev/loop"):
            driver.delete(volume_id)
        with refused(REFUSED, "was shut down", "/dev/loop"):
            driver.stage(volume_id, staging, wanted)
        assert not staging.is_mount()
    driver.stage(volume_id, staging, wanted)
    assert (staging / "file").read_text() == "x"
    undo(driver, places)
    driver.delete(volume_id)


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_disk_that_comes_back(
    disk: Callable[[str], Disk],
    serve: Callable[..., Driver],
    tmp_path: Path,
    kind: str,
    restarted: bool,
) -> None:
    """What is mounted of it under its old device name can be unmounted, and staged again."""
    failing = disk(kind)
    driver = serve(failing.pool)
    made = volumes(driver, kind)
    places = use(driver, made, tmp_path)
    for staging, _ in places.values():
        run("sync", "--file-system", staging)
    failing.fail()
    failing.come_back()
    if restarted:
        driver.restart()
    for volume_id, (_, target) in places.items():
        stats = driver.stats(volume_id, target)
        assert stats.volume_condition.abnormal
        assert not stats.usage
    undo(driver, places)
    places = use(driver, made, tmp_path)
    for volume_id, (_, target) in places.items():
        assert not driver.stats(volume_id, target).volume_condition.abnormal
    undo(driver, places)
    for volume_id in made:
        driver.delete(volume_id)


def test_staging_over_what_is_left_of_a_lost_disk(
    disk: Callable[[str], Disk], serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Where nobody has unpublished it meanwhile the volume takes its old places again."""
    failing = disk("ext4")
    driver = serve(failing.pool)
    made = volumes(driver, "ext4")
    places = use(driver, made, tmp_path)
    failing.fail()
    failing.come_back()
    assert use(driver, made, tmp_path) == places
    for volume_id, (_, target) in places.items():
        assert not driver.stats(volume_id, target).volume_condition.abnormal
        if target.is_dir():
            (target / "file").write_text("x")
    undo(driver, places)
    for volume_id in made:
        driver.delete(volume_id)


def test_pool_that_is_unmounted_while_volumes_are_published(
    disk: Callable[[str], Disk], serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """They can be unmounted yet; what is not theirs is left alone."""
    lost = disk("ext4")
    driver = serve(lost.pool)
    made = volumes(driver, "ext4")
    places = use(driver, made, tmp_path)
    lost.lose()
    foreign = next(iter(places.values()))[1]
    run("mount", "-t", "tmpfs", "none", foreign)
    with refused(REFUSED, "something else is mounted there"):
        driver.unpublish(next(iter(places)), foreign)
    run("umount", foreign)
    undo(driver, places)


def test_driver_that_is_restarted_while_a_disk_is_away(
    disk: Callable[[str], Disk], serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Of volumes that it has never heard of it undoes what the kernel shows by their ids."""
    lost = disk("xfs")
    driver = serve(lost.pool)
    made = volumes(driver, "xfs")
    places = use(driver, made, tmp_path)
    inline = publish_inline(driver, tmp_path)
    lost.fail()
    driver.restart()
    for volume_id, (_, target) in places.items():
        with refused(REFUSED):
            driver.unpublish(next(other for other in made if other != volume_id), target)
    undo(driver, {key: place for key, place in places.items() if "raw" not in key})
    for volume_id, (staging, target) in places.items():
        for _ in range(2):
            driver.unpublish(volume_id, target)
            driver.unstage(volume_id, staging)
    driver.unpublish(INLINE, inline)
    assert not os.path.lexists(inline)
    assert not [n for n in loop.numbers() if f"/{OURS}-raw@" in (path_of(n) or "")]
    lost.lose()


def test_devices_of_others_on_a_disk_that_failed(
    disk: Callable[[str], Disk],
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
) -> None:
    """Neither one whose file was deleted nor one whose file cannot be asked spoils a volume."""
    failing = disk("xfs")
    driver = serve(filesystem("ext4", 256 * MIB))
    volume_id = driver.create("v", 32 * MIB, type="image").volume_id
    same = failing.place / "volumes" / volume_id / "disk.img"
    same.parent.mkdir(parents=True)
    for file in (same, failing.place / "deleted"):
        file.write_bytes(bytes(MIB))
        failing.bind(file)
    file.unlink()
    failing.fail()
    with driver.published(volume_id, tmp_path) as target:
        assert target.is_mount()
        assert not driver.condition(volume_id).abnormal
    driver.delete(volume_id)
    failing.lose()


def lose(lost: Disk) -> None:
    lost.lose()


def move(lost: Disk) -> None:
    """Rename the pool's directory."""
    lost.pool.rename(lost.place / "moved")


def replace(lost: Disk) -> None:
    """Put a file in the place of the pool's directory."""
    move(lost)
    lost.pool.touch()


@pytest.mark.parametrize("away", [lose, move, replace])
def test_calls_about_what_is_published_while_the_pool_is_away(
    disk: Callable[[str], Disk],
    serve: Callable[..., Driver],
    tmp_path: Path,
    away: Callable[[Disk], None],
) -> None:
    """No call takes away what is published, but for the one that unpublishes it."""
    lost = disk("ext4")
    driver = serve(lost.pool)
    made = volumes(driver, "ext4")
    places = use(driver, made, tmp_path)
    inline = publish_inline(driver, tmp_path)
    away(lost)
    with refused(REFUSED):
        publish_inline(driver, tmp_path)
    assert inline.is_mount()
    for volume_id, (staging, target) in places.items():
        assert driver.stats(volume_id, target).volume_condition.abnormal
        with refused(REFUSED):
            driver.delete(volume_id)
        with contextlib.suppress(grpc.RpcError):
            driver.unstage(volume_id, staging)
        if "raw" in volume_id:
            with target.open("rb") as device:
                assert device.read(1) == b"\0"
        else:
            assert target.is_mount()
    undo(driver, places)
    driver.unpublish(INLINE, inline)
    assert not os.path.lexists(inline)
    assert "INTERNAL" not in driver.log
    if away is not lose:  # what is there again is found, with what is left of it
        if away is replace:
            lost.pool.unlink()
        (lost.place / "moved").rename(lost.pool)
        for volume_id in made:
            driver.delete(volume_id)


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("reused", [False, True], ids=["free", "reused"])
def test_device_that_somebody_detaches(
    driver: Driver, tmp_path: Path, reused: bool, restarted: bool
) -> None:
    """The node of a device that is none any more, or another file's, can be unpublished."""
    volume_id = driver.create(OURS, capability=block_capability()).volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, block_capability())
    driver.publish(volume_id, staging, target, block_capability())
    (number,) = (n for n in loop.numbers() if f"/{volume_id}/" in (path_of(n) or ""))
    run("losetup", "--detach", f"/dev/loop{number}")
    assert driver.condition(volume_id).abnormal
    other = tmp_path / "other.img"
    other.write_bytes(bytes(MIB))
    if reused:
        run("losetup", f"/dev/loop{number}", other)
    if restarted:
        driver.restart()
    undo(driver, {volume_id: (staging, target)})
    driver.delete(volume_id)
    if reused:
        assert path_of(number) == str(other), "the device is left to whom it belongs now"
        run("losetup", "--detach", f"/dev/loop{number}")


def test_btrfs_images_elsewhere(
    disk: Callable[[str], Disk], serve: Callable[..., Driver], pool: Path, tmp_path: Path
) -> None:
    """mkfs.btrfs examines every mount; those of a failed disk do not keep it from other images."""
    failed = disk("xfs")
    driver = serve(f"default={pool}", f"fast={failed.pool}")
    lost = driver.create(f"{OURS}-lost", type="image", pool="fast")
    driver.stage(lost.volume_id, tmp_path / "lost")
    failed.fail()
    capability = mount_capability("btrfs")
    volume = driver.create(f"{OURS}-btrfs", 300 * MIB, capability=capability)
    clone = driver.create(
        f"{OURS}-clone", 300 * MIB, capability=capability, source=from_volume(volume.volume_id)
    )
    for made in (volume, clone):
        stage = tmp_path / made.volume_id
        driver.stage(made.volume_id, stage, capability)
        (stage / "file").write_text("x")
        driver.unstage(made.volume_id, stage)
    assert kernel.topmost(tmp_path / "lost"), "what is mounted stays for all others"
    driver.unstage(lost.volume_id, tmp_path / "lost")
    failed.lose()
