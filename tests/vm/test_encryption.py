"""Encryption at rest, on a kernel that has a device mapper: `make test-vm` runs these."""

import contextlib
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import grpc
import pytest
from conftest import IN_VM, FilesystemFactory, needs, run
from driver import (
    MIB,
    Driver,
    block_capability,
    from_snapshot,
    from_volume,
    mount_capability,
    refused,
)
from reliability.faults import some
from reliability.node_scenes import Stage
from reliability.playing import Play
from reliability.scenes import Kind, Scene
from rpc.conftest import wait_for
from terminal import PYCSI, piped

from pycsi.linux import kernel, loop, luks
from pycsi.pool.layout import NOTES_RECORD
from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
MARKER = b"what nobody else may read "
PASSPHRASE = "correct horse battery staple"  # noqa: S105
SECRETS = {"encryptionPassphrase": PASSPHRASE}
WRONG = {"encryptionPassphrase": "incorrect horse battery staple"}
OTHER = {"encryptionPassphrase": "that of another volume"}
LUKS = {"encryption": "luks2"}
more = functools.partial(pytest.param, marks=pytest.mark.thorough)
"""A case that differs from another in little: deriving keys takes its time in that machine."""

SIZES = {"ext4": 32 * MIB, "xfs": 300 * MIB, "btrfs": 256 * MIB, "raw": 8 * MIB}


@pytest.fixture(autouse=True)
def device_mapper(root: None) -> Iterator[None]:
    """Require encryption; afterwards no mapping may be left."""
    refusal = luks.refusal()
    if refusal and not IN_VM:
        pytest.skip(f"{refusal}; make test-vm has it")
    needs(refusal or "", met=refusal is None)
    yield
    wait_for(lambda: not list(Path("/sys/block").glob("dm-*")))
    assert {path.name for path in Path("/dev/mapper").iterdir()} == {"control"}


@pytest.fixture
def pool(filesystem: FilesystemFactory) -> Path:
    """Return a pool on a filesystem that shares blocks."""
    return filesystem("xfs", 3 << 30)


@dataclasses.dataclass
class Disk:
    """Encrypted volumes of one kind."""

    driver: Driver
    folder: Path
    kind: str
    secrets: Mapping[str, str] = dataclasses.field(default_factory=SECRETS.copy)

    @property
    def capability(self) -> csi.VolumeCapability:
        return block_capability() if self.kind == "raw" else mount_capability(self.kind)

    @property
    def pool(self) -> Path:
        return self.driver.folders[0]

    def make(
        self,
        name: str,
        size: int | None = 0,
        source: csi.VolumeContentSource | None = None,
        secrets: Mapping[str, str] | None = None,
        **parameters: str,
    ) -> str:
        """Create a volume, encrypted unless the parameters say something else; return its id."""
        volume = self.driver.create(
            name,
            SIZES[self.kind] if size == 0 else size,
            capability=self.capability,
            parameters=parameters or LUKS,
            source=source,
            secrets=self.secrets if secrets is None else secrets,
        )
        return str(volume.volume_id)

    @contextlib.contextmanager
    def used(self, volume_id: str, *, readonly: bool = False) -> Iterator[Path]:
        """Stage and publish a volume; yield the file or device to read and write."""
        with self.driver.published(
            volume_id, self.folder, self.capability, readonly=readonly, secrets=self.secrets
        ) as target:
            yield target if self.kind == "raw" else target / "file"

    def write(self, place: Path, text: bytes, at: int = 0) -> None:
        with place.open("r+b" if place.exists() else "w+b") as file:
            file.seek(at)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def read(self, place: Path, size: int, at: int = 0) -> bytes:
        with place.open("rb") as file:
            file.seek(at)
            return file.read(size)

    def image(self, volume_id: str) -> Path:
        return self.pool / "volumes" / volume_id / "disk.img"


def holds(path: Path, marker: bytes = MARKER) -> bool:
    """Tell whether the marker is anywhere in a file or device, read in pieces."""
    with path.open("rb") as file:
        end = b""
        while part := file.read(4 * MIB):
            if marker in end + part:
                return True
            end = part[-len(marker) :]
    return False


def header_of(image: Path) -> bytes:
    """Return what the keys of the header are in: they differ from one header to the other."""
    with image.open("rb") as file:
        return file.read(luks.HEADER)[32 * 1024 :][:4096]


def is_wiped(image: Path) -> bool:
    with image.open("rb") as file:
        return not any(file.read(3 * MIB))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["ext4", more("raw"), more("xfs"), more("btrfs")])
def test_whole_life(pool: Path, serve: Callable[..., Driver], tmp_path: Path, kind: str) -> None:
    """Created, used, copied in each way, grown in use and not, and deleted."""
    driver = serve(pool, options=("--log-level=debug",))
    disk = Disk(driver, tmp_path, kind)
    data = MARKER * 4096
    size = SIZES[kind]
    volume_id = disk.make("v")
    assert disk.make("v") == volume_id
    image = disk.image(volume_id)
    assert image.stat().st_size == size + luks.HEADER
    with disk.used(volume_id) as place:
        disk.write(place, data)
        busy = driver.snapshot("busy", volume_id).snapshot_id
        larger = size + 32 * MIB
        assert driver.expand(volume_id, larger).capacity_bytes == larger
        if kind == "raw":
            with place.open("rb") as device:
                assert device.seek(0, os.SEEK_END) == larger
            with driver_read_only(disk, volume_id) as mirror:
                assert disk.read(mirror, len(data)) == data
                with pytest.raises(OSError, match="not permitted"):
                    disk.write(mirror, b"x")
        else:
            before = os.statvfs(place.parent).f_blocks
            driver.node_expand(volume_id, place.parent)
            assert os.statvfs(place.parent).f_blocks > before or kind == "btrfs"
        assert disk.read(place, len(data)) == data
        assert not driver.condition(volume_id).abnormal
    assert loop.find(image) == []
    assert driver.expand(volume_id, size + 64 * MIB).capacity_bytes == size + 64 * MIB
    idle = driver.snapshot("idle", volume_id).snapshot_id
    copies = {
        "restored": disk.make("restored", None, from_snapshot(busy), type="image"),
        "larger": disk.make("larger", size + 80 * MIB, from_snapshot(idle)),
        "cloned": disk.make("cloned", None, from_volume(volume_id), type="image"),
    }
    with contextlib.ExitStack() as used:
        for name in ("v", *copies):
            place = used.enter_context(disk.used(f"{name}@node-1"))
            assert disk.read(place, len(data)) == data
            if kind != "raw":
                assert os.statvfs(place.parent).f_blocks * 4096 > size // 2
            disk.write(place, MARKER, 4 * MIB)
    changed = driver.delta(busy, idle)
    assert all(start >= 0 and start + length <= size + 64 * MIB for start, length in changed)
    assert sum(length for _, length in driver.allocated(idle)) > 0
    assert PASSPHRASE not in driver.log
    check_secrecy(disk, ["v", *copies], [busy, idle])


def check_secrecy(disk: Disk, names: Sequence[str], snapshots: Sequence[str]) -> None:
    """See that no image holds the marker, and that all keys are gone once all is deleted."""
    driver, pool = disk.driver, disk.pool
    images = [*pool.glob("*/*/disk.img")]
    assert len(images) == 6
    assert not [path for path in images if holds(path)]
    headers = [header_of(path) for path in images]
    assert len({*headers}) == 1, "a copy has the key of its source"
    assert any(headers[0])

    raw = pool_device(pool)
    assert holds(raw, headers[0][:512])
    for name in names:
        driver.delete(f"{name}@node-1")
    for snapshot in snapshots:
        driver.delete_snapshot(snapshot)
    driver.reaped()
    os.sync()
    run("blockdev", "--flushbufs", raw)  # what was read of it before
    assert not holds(raw, headers[0][:512]), "the keys are gone from the pool's disk"
    assert not holds(raw)
    assert "wipe a header elsewhere" not in driver.log


@contextlib.contextmanager
def driver_read_only(disk: Disk, volume_id: str) -> Iterator[Path]:
    """Publish a staged volume read-only, too."""
    target = disk.folder / "mirror"
    staging = disk.folder / f"staging-{volume_id}"
    disk.driver.publish(volume_id, staging, target, disk.capability, readonly=True)
    yield target
    disk.driver.unpublish(volume_id, target)


def pool_device(pool: Path) -> Path:
    return Path(run("findmnt", "-n", "-o", "SOURCE", "--target", pool).strip())


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_group(pool: Path, serve: Callable[..., Driver], tmp_path: Path) -> None:
    """Volumes with keys of their own, taken at one moment: each is restored with its source's."""
    driver = serve(pool)
    image, raw = Disk(driver, tmp_path, "ext4"), Disk(driver, tmp_path, "raw", OTHER)
    disks = {image.make("image"): image, raw.make("raw"): raw}
    with contextlib.ExitStack() as used:
        places = {name: used.enter_context(disk.used(name)) for name, disk in disks.items()}
        for name, place in places.items():
            disks[name].write(place, MARKER)
        group = driver.snapshot_group("g", *disks)
        for name, place in places.items():
            disks[name].write(place, b"later")
    taken = {item.source_volume_id: item.snapshot_id for item in group.snapshots}
    assert taken.keys() == disks.keys()
    with refused(Code.UNAUTHENTICATED, "encryptionPassphrase"):
        raw.make("again", None, from_snapshot(taken["raw@node-1"]), SECRETS)
    headers = []
    for name, disk in disks.items():
        held = pool / "snapshots" / taken[name] / "disk.img"
        assert not holds(held)
        headers.append(header_of(held)[:512])
        assert header_of(disk.image(name)).startswith(headers[-1])
        again = disk.make("again", None, from_snapshot(taken[name]))
        with disk.used(again) as place:
            assert disk.read(place, len(MARKER)) == MARKER
        for volume_id in (again, name):
            driver.delete(volume_id)
    assert len({*headers}) == 2
    driver.delete_group(group.group_snapshot_id, *taken.values())
    driver.reaped()
    os.sync()
    run("blockdev", "--flushbufs", pool_device(pool))
    for header in headers:
        assert not holds(pool_device(pool), header)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("ground", ["btrfs", more("ext4")])
def test_other_pools(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, ground: str
) -> None:
    """A pool that shares no blocks, and one that shares whole extents; thick volumes too."""
    pool = filesystem(ground, 2 << 30)
    driver = serve(pool)
    disk = Disk(driver, tmp_path, "ext4")
    made = [disk.make("thin"), disk.make("thick", 0, encryption="luks2", allocation="thick")]
    for volume_id in made:
        with disk.used(volume_id) as place:
            disk.write(place, MARKER * 4096)
            driver.snapshot(f"of-{volume_id[:4]}", volume_id)
        assert not driver.condition(volume_id).abnormal
    blocks = disk.image("thick@node-1").stat().st_blocks * 512
    assert blocks >= SIZES["ext4"] + luks.HEADER
    found = [header_of(disk.image(volume_id)) for volume_id in made]
    restored = disk.make("again", None, from_snapshot("of-thin@node-1"))
    with disk.used(restored) as place:
        assert disk.read(place, len(MARKER)) == MARKER
    for volume_id in (*made, restored):
        driver.delete(volume_id)
    for name in ("of-thin", "of-thic"):
        driver.delete_snapshot(f"{name}@node-1")
    driver.reaped()
    os.sync()
    for header in found:
        assert not holds(pool_device(pool), header[:512])
    assert "wipe a header elsewhere" not in driver.log


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["raw", more("ext4")])
def test_refusals(pool: Path, serve: Callable[..., Driver], tmp_path: Path, kind: str) -> None:
    """With a wrong passphrase, or none, nothing is made, mounted or changed."""
    driver = serve(pool)
    disk = Disk(driver, tmp_path, kind)
    for bad in ("", "short", "x" * 100_000):
        with refused(Code.INVALID_ARGUMENT, "encryptionPassphrase"):
            disk.make("v", secrets={"encryptionPassphrase": bad})
    with refused(Code.INVALID_ARGUMENT, "encryptionPassphrase"):
        disk.make("v", secrets={})
    assert list((pool / "volumes").iterdir()) == []
    volume_id = disk.make("v")
    image = disk.image(volume_id)
    before = image.read_bytes()
    staging = tmp_path / "staging"
    for secrets, code in (({}, Code.INVALID_ARGUMENT), (WRONG, Code.UNAUTHENTICATED)):
        with refused(code, "encryptionPassphrase", volume_id):
            driver.stage(volume_id, staging, disk.capability, secrets=secrets)
        with refused(code, "encryptionPassphrase"):
            disk.make("w", None, from_volume(volume_id), secrets=secrets)
        wait_for(lambda: loop.find(image) == [])
    driver.unstage(volume_id, staging)
    assert image.read_bytes() == before
    plain = disk.make("plain", type="image")
    snapshot = driver.snapshot("s", volume_id).snapshot_id
    for source in (from_volume(volume_id), from_snapshot(snapshot)):
        with refused(Code.INVALID_ARGUMENT, "encryption: luks2, not none"):
            disk.make("x", None, source, encryption="none")
    with refused(Code.INVALID_ARGUMENT, "encryption: none, not luks2"):
        disk.make("x", None, from_volume(plain))
    with refused(Code.INVALID_ARGUMENT, "directory has no device"):
        given = {"type": "directory", "quota": "none", **LUKS}
        driver.create("x", parameters=given, secrets=SECRETS)
    with disk.used(volume_id):
        # A second stage of what is staged proves its passphrase too.
        other = tmp_path / "other"
        with refused(Code.UNAUTHENTICATED):
            driver.stage(volume_id, other, disk.capability, secrets=WRONG)
    assert loop.find(image) == [], "it was not staged there"
    for name in (volume_id, plain):
        driver.delete(name)
    driver.delete_snapshot(snapshot)


def test_trash(pool: Path, serve: Callable[..., Driver], tmp_path: Path) -> None:
    """What is kept there cannot be read, but with a backup of its header."""
    driver = serve(pool)
    disk = Disk(driver, tmp_path, "ext4")
    volume_id = disk.make("v", encryption="luks2", onDelete="retain")
    with disk.used(volume_id) as place:
        disk.write(place, MARKER)
    backup = tmp_path / "header"
    run(
        "cryptsetup", "luksHeaderBackup", disk.image(volume_id), "--header-backup-file", str(backup)
    )
    driver.delete(volume_id)
    (kept,) = (pool / "trash").iterdir()
    assert is_wiped(kept / "disk.img")
    run("python3", "-m", "pycsi", "trash", "restore", f"--pool=default={pool}", volume_id)
    wait_for(lambda: volume_id in driver.volume_ids())
    assert driver.health(volume_id).health_statuses[0].reason == "HeaderMissing"
    with refused(Code.FAILED_PRECONDITION, "no LUKS2 header", "luksHeaderRestore"):
        driver.stage(volume_id, tmp_path / "staging", disk.capability, secrets=SECRETS)
    driver.unstage(volume_id, tmp_path / "staging")
    run(
        "cryptsetup", "--batch-mode", "luksHeaderRestore", disk.image(volume_id),
        "--header-backup-file", str(backup),
    )  # fmt: skip
    with disk.used(volume_id) as place:
        assert disk.read(place, len(MARKER)) == MARKER
    driver.delete(volume_id)
    run("python3", "-m", "pycsi", "trash", "empty", "--yes", "--all", f"--pool=default={pool}")


@pytest.mark.parametrize("kind", ["raw", more("btrfs"), more("ext4")])
def test_restart(pool: Path, serve: Callable[..., Driver], tmp_path: Path, kind: str) -> None:
    """The volume stays usable while the driver is dead; the next one knows its mapping."""
    driver = serve(pool)
    disk = Disk(driver, tmp_path, kind)
    volume_id = disk.make("v")
    with disk.used(volume_id) as place:
        disk.write(place, MARKER)
        driver.stop(signal.SIGKILL)
        disk.write(place, MARKER, 4 * MIB)
        driver.start()
        driver.stage(volume_id, tmp_path / f"staging-{volume_id}", disk.capability, secrets=SECRETS)
        driver.snapshot("s", volume_id)
        driver.expand(volume_id, SIZES[kind] + 16 * MIB)
        assert disk.read(place, len(MARKER), 4 * MIB) == MARKER
        assert not driver.condition(volume_id).abnormal
    assert loop.find(disk.image(volume_id)) == []
    (pool / "volumes" / volume_id / NOTES_RECORD).write_bytes(b"")  # as a power cut may leave them
    with disk.used(volume_id) as place:
        assert disk.read(place, len(MARKER), 4 * MIB) == MARKER
    driver.delete(volume_id)
    driver.delete_snapshot("s@node-1")


NEW = {
    "encryptionPassphrase": "a better one from the secret store",
    "previousEncryptionPassphrase": PASSPHRASE,
}


@pytest.mark.timeout(900)
def test_rotation(pool: Path, serve: Callable[..., Driver], tmp_path: Path) -> None:
    """A passphrase is replaced in use, and in a copy that has an older header."""
    driver = serve(pool)
    disk = Disk(driver, tmp_path, "ext4")
    volume_id, staging = disk.make("v"), tmp_path / "staging"
    driver.snapshot("older", volume_id)

    def modify(secrets: Mapping[str, str]) -> None:
        driver.controller.ControllerModifyVolume(
            csi.ControllerModifyVolumeRequest(
                volume_id=volume_id, mutable_parameters={"onDelete": "delete"}, secrets=secrets
            )
        )

    with disk.used(volume_id) as place:
        disk.write(place, MARKER)
        with refused(Code.UNAUTHENTICATED):
            modify({**NEW, "previousEncryptionPassphrase": WRONG["encryptionPassphrase"]})
        with refused(Code.INVALID_ARGUMENT, "16 bytes"):
            modify({**NEW, "encryptionPassphrase": "short"})
        modify(NEW)
        modify(NEW)
        disk.write(place, MARKER, 4096)
    with refused(Code.UNAUTHENTICATED):
        driver.stage(volume_id, staging, secrets=SECRETS)
    driver.stage(volume_id, staging, secrets=NEW)
    driver.unstage(volume_id, staging)
    again = disk.make("again", None, from_snapshot("older@node-1"), secrets=NEW)
    newest = {"encryptionPassphrase": NEW["encryptionPassphrase"]}
    driver.stage(again, staging, secrets=newest)
    driver.unstage(again, staging)
    with refused(Code.UNAUTHENTICATED):
        driver.stage(again, staging, secrets=SECRETS)
    driver.unstage(again, staging)
    assert PASSPHRASE not in driver.log
    for name in (volume_id, again):
        driver.delete(name)
    driver.delete_snapshot("older@node-1")


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_one_machine(pool: Path, serve: Callable[..., Driver], tmp_path: Path) -> None:
    """Commands read passphrases from files and standard input, and replace one."""
    driver = serve(pool)
    to = ("--endpoint", f"unix://{driver.socket}")
    old, new, where = tmp_path / "old", tmp_path / "new", tmp_path / "where"
    old.write_text(f"{PASSPHRASE}\n")
    new.write_text(NEW["encryptionPassphrase"])
    mount = ("mount", "v", where, *to, f"--run-directory={tmp_path / 'run'}", "--key-file")
    made = piped("create", "v", "--size", "32Mi", "--key-file", "-", *to, given=PASSPHRASE)
    assert (made.stdout, made.returncode) == ("v@node-1\n", 0), made.stderr
    refusal = piped(*mount, new)
    assert (refusal.returncode, "not a passphrase" in refusal.stderr) == (1, True)
    assert piped(*mount, new, "--previous-key-file", old).returncode == 0
    (where / "file").write_bytes(MARKER)
    assert not holds(pool / "volumes/v@node-1/disk.img")
    copy = piped("clone", "v", "w", "--key-file", old, *to)
    assert (copy.returncode, "not a passphrase" in copy.stderr) == (1, True)
    run(*PYCSI, "unmount", "v", *to, f"--run-directory={tmp_path / 'run'}")
    assert piped("clone", "v", "w", "--key-file", new, *to).stdout == "w@node-1\n"
    for volume_id in ("v@node-1", "w@node-1"):
        driver.delete(volume_id)
    assert PASSPHRASE not in driver.log


ENCRYPTED = Kind("encrypted", 16 * MIB, {"type": "image", **LUKS}, "ext4", SECRETS)
ENCRYPTED_RAW = Kind("encrypted raw", 4 * MIB, LUKS, None, SECRETS)


class StageAgain(Stage):
    """NodeStageVolume of one volume in all plays, whose key is cheap to derive: for quick plays."""

    def prepare(self) -> None:
        self.tag = "same"
        if not self.is_listed("v"):
            self.make_filled()
            image = self.driver.folders[0] / "volumes" / self.volume("v") / "disk.img"
            key = self.folder / "key"
            key.write_text(PASSPHRASE)
            run(
                "cryptsetup", "luksConvertKey", "--batch-mode", "--key-file", key, "--pbkdf=pbkdf2",
                "--pbkdf-force-iterations=1000", image,
            )  # fmt: skip

    def undo(self) -> None:
        self.unstage()
        assert kernel.topmost(self.staging()) is None


class UnstageAgain(StageAgain):
    """NodeUnstageVolume of that volume."""

    def prepare(self) -> None:
        super().prepare()
        self.stage()

    def act(self) -> None:
        self.unstage()

    def check(self) -> None:
        assert kernel.topmost(self.staging()) is None

    def undo(self) -> None:
        pass


@pytest.mark.timeout(1700)
@pytest.mark.parametrize(
    ("scene", "kind"),
    [
        (StageAgain, ENCRYPTED),
        more(UnstageAgain, ENCRYPTED_RAW),
        more(StageAgain, ENCRYPTED_RAW),
        more(UnstageAgain, ENCRYPTED),
    ],
)
def test_killed(
    pool: Path,
    serve: Callable[..., Driver],
    tmp_path: Path,
    thorough: bool,
    record_property: Callable[[str, object], None],
    scene: type[Scene],
    kind: Kind,
) -> None:
    """The driver is killed before each system call; a repeated call ends what it had begun."""
    play = Play(serve(pool), "xfs", tmp_path, scene, kind)
    found = play.points(asking=False)
    chosen = found if thorough else some(found, 4, 1)
    killed = play.kill_at(chosen)
    assert killed >= len(chosen) / 2
    record_property("kills", killed)
