"""`pycsi doctor`: pools that are broken in many ways, each mended by the command that it shows."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FilesystemFactory, needs, run
from driver import GIB, MIB, Driver, block_capability, mount_capability, refused
from grpc import StatusCode
from terminal import environment, on_terminal, piped

EXT4 = mount_capability("ext4")
KEPT = "what was written before"
BIN = Path(sys.executable).parent
OTHER = "00000000-0000-4000-8000-000000000000"


@dataclasses.dataclass
class Patient:
    """A pool that is broken, its driver, and a place for what is moved out of the pool."""

    driver: Driver
    pool: Path
    folder: Path
    disk: str = ""
    options: tuple[str, ...] = ()
    stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def volume(self, name: str) -> Path:
        return self.pool / "volumes" / f"{name}@node-1"

    def make(self, name: str, **parameters: str) -> str:
        """Make a volume, an image by default."""
        given = {"type": "image", **parameters}
        capability = EXT4 if given["type"] == "image" else None
        made = self.driver.create(name, 32 * MIB, capability=capability, parameters=given)
        return made.volume_id

    def use(self, name: str) -> Path:
        """Stage and publish a volume as it stays when the driver is killed; return its target."""
        staging, target = self.folder / f"staging-{name}", self.folder / f"target-{name}"
        self.driver.stage(f"{name}@node-1", staging, EXT4)
        self.driver.publish(f"{name}@node-1", staging, target, EXT4)
        for place in (staging, target):
            self.stack.callback(unmounted, place)
        return target

    def kill(self) -> None:
        self.driver.stop(signal.SIGKILL)

    def diagnose(self, *words: str) -> list[dict[str, Any]]:
        """Return the findings; the exit status says whether there are any."""
        option = f"--pool={self.driver.pools[0]}"
        done = piped("doctor", "-o", "json", option, *self.options, *words)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        assert (done.returncode, done.stderr) == (1 if found else 0, "")
        for finding in found:
            assert Path(finding["page"]).name == f"{finding['code']}.md"
            assert finding["subject"].split("/")[-1] in finding["message"]
            assert finding["command"]
        return found

    def mend(self, found: list[dict[str, Any]]) -> None:
        """Run the commands of findings, each once, as somebody types them."""
        words = {"ELSEWHERE": str(self.folder / "elsewhere"), "DISK": self.disk}
        (self.folder / "elsewhere").mkdir(exist_ok=True)
        for command in dict.fromkeys(finding["command"] for finding in found):
            typed = command
            for word, meant in words.items():
                typed = typed.replace(f" {word}", f" {meant}")
            shell(typed, self.folder)


def unmounted(place: Path) -> None:
    subprocess.run(["umount", place], check=False, capture_output=True)


def shell(command: str, folder: Path) -> str:
    path = f"{folder}:{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command],
        env=environment(PATH=path, PYCSI_ENDPOINT=f"unix://{folder}/none.sock"),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    mended = command.startswith("e2fsck ") and done.returncode == 1
    assert done.returncode == 0 or mended, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def patient(
    request: pytest.FixtureRequest,
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
) -> Iterator[Patient]:
    """Return a pool on a disk of its own, ext4 by default, with a volume that holds something."""
    kind, options = getattr(request, "param", ("ext4", ""))
    pool = filesystem(kind, GIB if kind == "btrfs" else 512 * MIB)
    driver = serve(f"default={pool}{options}")
    made = Patient(driver, pool, tmp_path)
    made.make("kept")
    with driver.published("kept@node-1", tmp_path, EXT4) as target:
        (target / "file").write_text(KEPT)
    with made.stack:
        yield made


Breaking = Iterator[None]
"""Makes what is needed, waits until the driver is killed, and then breaks it."""

# The data


def image_missing(patient: Patient) -> Breaking:
    patient.make("lost")
    yield
    (patient.volume("lost") / "disk.img").unlink()


def snapshot_without_data(patient: Patient) -> Breaking:
    patient.driver.snapshot("lost", "kept@node-1")
    yield
    (patient.pool / "snapshots/lost@node-1/disk.img").unlink()


def image_truncated(patient: Patient) -> Breaking:
    patient.make("short", allocation="thick")
    yield
    os.truncate(patient.volume("short") / "disk.img", 32 * MIB - 4096)


def superblock_overwritten(patient: Patient) -> Breaking:
    patient.driver.create("blank", 160 * MIB, capability=EXT4, type="image")
    yield
    with (patient.volume("blank") / "disk.img").open("r+b") as image:
        image.write(bytes(4096))


def growth_interrupted(patient: Patient) -> Breaking:
    """Leave what resize2fs does if it is killed when it has made its undo file."""
    patient.make("growing")
    yield
    (patient.volume("growing") / "resize.undo").write_bytes(b"E2UNDO02".ljust(2048, b"\0"))


# The records


def record_truncated(patient: Patient) -> Breaking:
    patient.make("torn")
    yield
    record = patient.volume("torn") / "volume.json"
    os.truncate(record, record.stat().st_size // 2)


def directory_renamed(patient: Patient) -> Breaking:
    patient.make("renamed")
    yield
    patient.volume("renamed").rename(patient.volume("other"))


def projects_damaged(patient: Patient) -> Breaking:
    yield
    (patient.pool / "projects.json").write_text("{")


def data_without_record(patient: Patient) -> Breaking:
    patient.make("bare")
    yield
    (patient.volume("bare") / "volume.json").unlink()


def empty_directory(patient: Patient) -> Breaking:
    yield
    patient.volume("empty").mkdir()


def notes_lost(patient: Patient) -> Breaking:
    yield
    (patient.volume("kept") / "node.json").write_text("")


def unknown_entry(patient: Patient) -> Breaking:
    yield
    (patient.pool / "volumes/a backup").mkdir()


def volume_of_another_pool(patient: Patient) -> Breaking:
    patient.make("foreign")
    yield
    record = patient.volume("foreign") / "volume.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"pool_uuid": OTHER}))


# What is left


def stale_build(patient: Patient) -> Breaking:
    yield
    build = patient.pool / "tmp/v@node-1.00000000"
    build.mkdir()
    (build / "disk.img").write_bytes(b"half made")


def adopted_image(patient: Patient, name: str) -> Path:
    """Adopt an image file that lies beside the pool; return its old path."""
    image = patient.pool.parent / name
    run("truncate", "-s", "32M", image)
    run("mkfs.ext4", "-q", image)
    option = f"--pool={patient.driver.pools[0]}"
    done = piped("adopt", "--from", image, "--yes", "--node-id=node-1", option)
    assert done.returncode == 0, done.stderr
    return image


def adoption_not_begun(patient: Patient) -> Breaking:
    yield
    place = patient.pool / "adoptions" / "early@node-1"
    place.mkdir(parents=True)
    (place / "notes.json").touch()


def adoption_cut_off(patient: Patient) -> Breaking:
    """Have the data in its old place, with the records of its adoption."""
    image = adopted_image(patient, "before")
    yield
    place = patient.pool / "adoptions" / "before@node-1"
    patient.volume("before").rename(place)
    (place / "disk.img").rename(image)


def adoption_not_completed(patient: Patient) -> Breaking:
    """Have the data in the pool, but not among the volumes."""
    adopted_image(patient, "after")
    yield
    patient.volume("after").rename(patient.pool / "adoptions" / "after@node-1")


def adoption_without_record(patient: Patient) -> Breaking:
    adopted_image(patient, "unread")
    yield
    place = patient.pool / "adoptions" / "unread@node-1"
    patient.volume("unread").rename(place)
    (place / "adoption.json").write_text("{")


def group_without_record(patient: Patient) -> Breaking:
    taken = patient.driver.snapshot_group("unrecorded", "kept@node-1")
    yield
    (patient.pool / "groups" / f"{taken.group_snapshot_id}.json").unlink()


def group_never_committed(patient: Patient) -> Breaking:
    taken = patient.driver.snapshot_group("prepared", "kept@node-1")
    yield
    record = patient.pool / "groups" / f"{taken.group_snapshot_id}.json"
    prepared = {"attempt": "1", "prepared": True}
    record.write_text(json.dumps(json.loads(record.read_text()) | prepared))


def trash_not_emptied(patient: Patient) -> Breaking:
    patient.driver.delete(patient.make("deleted", onDelete="retain"))
    yield
    (entry,) = (patient.pool / "trash").iterdir()
    volume_id, _, _, number = entry.name.rsplit(".", 3)
    entry.rename(entry.with_name(f"{volume_id}.1700000000.gone.{number}"))


def frozen(patient: Patient) -> Breaking:
    patient.make("frozen")
    target = patient.use("frozen")
    yield
    (patient.pool / "frozen/frozen@node-1").touch()
    run("fsfreeze", "--freeze", target)


def loop_device_leaked(patient: Patient) -> Breaking:
    driver = patient.driver
    driver.create("raw", 4 * MIB, capability=block_capability())
    driver.stage("raw@node-1", patient.folder / "staging-raw", block_capability())
    yield
    (patient.volume("raw") / "node.json").write_text('{"schema":2,"staged":{},"published":{}}')


def loop_device_in_trash(patient: Patient) -> Breaking:
    patient.driver.delete(patient.make("trashed", onDelete="retain"))
    yield
    (entry,) = (patient.pool / "trash").iterdir()
    run("losetup", "-f", entry / "disk.img")


def loop_device_foreign(patient: Patient) -> Breaking:
    patient.make("attached")
    yield
    run("losetup", "-f", patient.volume("attached") / "disk.img")


def mount_left(patient: Patient) -> Breaking:
    patient.make("left")
    patient.use("left")
    yield
    shutil.rmtree(patient.volume("left"))


def directory_left(patient: Patient) -> Breaking:
    patient.make("tree", type="directory", quota="none")
    staging, target = patient.folder / "staging-tree", patient.folder / "target-tree"
    patient.driver.stage("tree@node-1", staging)
    patient.driver.publish("tree@node-1", staging, target)
    yield
    shutil.rmtree(patient.volume("tree"))


def mounted_over_data(patient: Patient) -> Breaking:
    patient.make("covered")
    yield
    run("mount", "-t", "tmpfs", "tmpfs", patient.volume("covered"))
    patient.stack.callback(unmounted, patient.volume("covered"))


def mounted_over_records(patient: Patient) -> Breaking:
    yield
    run("mount", "-t", "tmpfs", "tmpfs", patient.pool / "snapshots")
    patient.stack.callback(unmounted, patient.pool / "snapshots")


# The pool


def foreign_pool_record(patient: Patient) -> Breaking:
    yield
    (patient.pool / "pool.json").write_text(json.dumps({"schema": 2, "uuid": OTHER, "created": 1}))


def pool_record_truncated(patient: Patient) -> Breaking:
    yield
    os.truncate(patient.pool / "pool.json", 10)


def mounted_over(patient: Patient) -> Breaking:
    yield
    run("mount", "-t", "tmpfs", "tmpfs", patient.pool)
    patient.stack.callback(unmounted, patient.pool)


def read_only(patient: Patient) -> Breaking:
    yield
    run("mount", "-o", "remount,ro", patient.pool.parent)


def disk_not_mounted(patient: Patient) -> Breaking:
    """Move the pool, which a bind mount brings back as mounting its disk does."""
    yield
    patient.disk = f"--bind {patient.pool.rename(patient.pool.with_name('moved'))}"
    patient.stack.callback(unmounted, patient.pool)


BROKEN: dict[str, dict[Callable[[Patient], Breaking], str]] = {
    "data": {
        image_missing: "DataMissing lost@node-1",
        snapshot_without_data: "DataMissing lost@node-1",
        image_truncated: "ImageTruncated short@node-1",
        superblock_overwritten: "ForeignData blank@node-1",
        growth_interrupted: "GrowthInterrupted growing@node-1",
    },
    "records": {
        record_truncated: "RecordDamaged torn@node-1/volume.json",
        directory_renamed: "RecordDamaged other@node-1",
        projects_damaged: "RecordDamaged projects.json",
        data_without_record: "RecordMissing bare@node-1",
        empty_directory: "RecordMissing empty@node-1",
        notes_lost: "NotesLost kept@node-1",
        adoption_cut_off: "AdoptionUnfinished before@node-1",
        adoption_without_record: "RecordDamaged unread@node-1",
        trash_not_emptied: "TrashNotEmptied deleted@node-1",
        unknown_entry: "UnknownEntry a backup",
        volume_of_another_pool: "VolumeOfAnotherPool foreign@node-1",
    },
    "crash": {
        stale_build: "BuildUnfinished tmp",
        adoption_not_begun: "AdoptionUnfinished early@node-1",
        adoption_not_completed: "AdoptionUnfinished after@node-1",
        group_without_record: "GroupUnfinished unrecorded@node-1",
        group_never_committed: "GroupInDoubt prepared@node-1",
        frozen: "FrozenAfterCrash frozen@node-1",
    },
    "left": {
        loop_device_leaked: "LoopDeviceLeaked /dev/loop",
        loop_device_in_trash: "LoopDeviceForeign /dev/loop",
        loop_device_foreign: "LoopDeviceForeign /dev/loop",
        mount_left: "MountLeft target-left",
        directory_left: "MountLeft target-tree",
        mounted_over_data: "MountReplaced covered@node-1",
        mounted_over_records: "PoolHidden snapshots",
    },
    "foreign pool": {foreign_pool_record: "PoolRecordDamaged pool"},
    "torn pool": {pool_record_truncated: "PoolRecordDamaged pool"},
    "hidden pool": {mounted_over: "PoolHidden pool"},
    "read-only pool": {read_only: "PoolReadOnly pool"},
    "missing pool": {disk_not_mounted: "PoolMissing pool"},
}


def break_all(patient: Patient, ways: Iterable[Callable[[Patient], Breaking]]) -> None:
    started = [way(patient) for way in ways]
    for breaking in started:
        next(breaking)
    patient.kill()
    for breaking in started:
        next(breaking, None)


def is_well(patient: Patient) -> None:
    """Expect that the driver serves the pool, and what was in it, and that nothing is wrong."""
    option = f"--pool={patient.driver.pools[0]}"
    patient.driver.start()
    assert patient.diagnose() == []
    done = piped("get", "volumes", option, "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["id"]: row["condition"] for row in json.loads(done.stdout)}
    assert set(rows.values()) == {"healthy"}
    with patient.driver.published("kept@node-1", patient.folder, EXT4) as target:
        assert (target / "file").read_text() == KEPT
    patient.driver.delete(patient.make("new"))


@pytest.mark.parametrize("what", BROKEN)
def test_mended(patient: Patient, what: str) -> None:
    """What is broken is found, all at once, and the commands that are shown mend it."""
    break_all(patient, BROKEN[what])
    found = patient.diagnose()
    seen = [f"{finding['code']} {finding['subject']}" for finding in found]
    for way, told in BROKEN[what].items():
        code, subject = told.split(" ", 1)
        assert any(one.startswith(f"{code} ") and subject in one for one in seen), (way, seen)
    patient.mend(found)
    assert patient.diagnose() == []
    if what == "crash":
        (patient.folder / "target-frozen/more").write_text("it is not frozen")
    if what in {"crash", "left"}:
        patient.stack.close()
    is_well(patient)
    patient.driver.stop()
    patient.stack.close()


@pytest.mark.parametrize("patient", [("btrfs", "")], indirect=True)
@pytest.mark.parametrize("way", ["limits", "no quotas"])
def test_limits(patient: Patient, way: str) -> None:
    """A wrong limit is set again, with a driver or without; quotas are switched on again."""
    patient.make("dir", type="directory")
    data = patient.volume("dir") / "data"
    patient.kill()
    if way == "no quotas":
        run("btrfs", "quota", "disable", patient.pool)
        (found,) = patient.diagnose()
        assert (found["code"], found["subject"]) == ("LimitNotEnforced", str(patient.pool))
        patient.mend([found])
        run("btrfs", "quota", "rescan", "-w", patient.pool)
    else:
        run("btrfs", "qgroup", "limit", "none", data)
        done = piped("doctor", "--fix", "--yes", f"--pool={patient.driver.pools[0]}")
        assert done.returncode == 0
        assert done.stderr == "done: set the limit of dir@node-1 to its size\n"
        run("btrfs", "qgroup", "limit", "1M", data)
    (found,) = patient.diagnose()
    assert (found["code"], found["subject"]) == ("LimitDiffers", "dir@node-1")
    assert found["fix"]
    patient.mend([found])
    assert patient.diagnose() == []
    is_well(patient)


@pytest.mark.parametrize("patient", [("ext4", ",overcommit=4")], indirect=True)
def test_overcommitted(patient: Patient) -> None:
    """What is promised beyond the disk is told, and the trash is emptied to make room."""
    for name in ("a", "b", "c"):
        made = patient.driver.create(name, 200 * MIB, type="image", onDelete="retain")
        patient.driver.delete(made.volume_id)
    (found,) = patient.diagnose()
    assert (found["code"], found["severity"]) == ("PoolOvercommitted", "warning")
    assert patient.diagnose("--ignore", "pooloverCOMMITTED") == []
    patient.mend([found])
    patient.kill()
    is_well(patient)


def test_while_the_driver_runs(patient: Patient) -> None:
    """A driver that runs serves what was mended, without being started again."""
    patient.make("v")
    patient.kill()
    (patient.volume("v") / "volume.json").write_text("{")
    patient.driver.start()
    with refused(StatusCode.FAILED_PRECONDITION, "move"):
        patient.driver.delete("v@node-1")
    patient.mend(patient.diagnose())
    assert patient.diagnose() == []
    patient.driver.delete("v@node-1")
    assert patient.driver.volume_ids() == ["kept@node-1"]


def test_node_beside_it_on_the_machine(patient: Patient) -> None:
    """Another node, as kind makes them, has its pool at the same path, and loop devices on it."""
    image = patient.pool / "volumes" / "v@node-2" / "disk.img"
    other = f"""mount -t tmpfs none {patient.pool}
        mkdir -p {image.parent}
        truncate --size 1M {image}
        losetup --find --show {image}
        exec sleep 60"""
    enter = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", other)
    with subprocess.Popen(enter, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        device = node.stdout.readline().strip()
        try:
            assert str(image) in run("losetup", "--list", device)
            assert patient.diagnose() == []
        finally:
            run("losetup", "--detach", device)
            node.terminate()


def test_lost_disk_of_two(patient: Patient, tmp_path: Path) -> None:
    """A pool that is missing keeps no other one from being looked at; one id is in one pool."""
    copy = tmp_path / "copy"
    patient.kill()
    run("cp", "-a", patient.pool, copy)
    option = f"--pool=copy={copy}"
    (found,) = patient.diagnose(option)
    assert (found["code"], found["subject"]) == ("VolumeInTwoPools", "kept@node-1")
    patient.mend([found])
    assert patient.diagnose(option) == []
    (found,) = patient.diagnose(f"--pool=gone={tmp_path}/gone")
    assert (found["code"], found["pool"]) == ("PoolMissing", "gone")
    (found,) = patient.diagnose(f"--pool=copy={copy},uuid={OTHER}")
    assert (found["code"], found["pool"]) == ("PoolForeign", "copy")
    patient.driver.start()


KUBECTL = """#!{python}
import json, pathlib, sys
words = [word for word in sys.argv[1:] if not word.startswith("-")]
assert words[0] == "delete", words
place = pathlib.Path("{list}")
listed = json.loads(place.read_text())
named = lambda item: {{item["metadata"]["name"], item["spec"].get("claimRef", {{}}).get("name")}}
listed["items"] = [item for item in listed["items"] if words[2] not in named(item)]
place.write_text(json.dumps(listed))
"""


def item(kind: str, name: str, **spec: object) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name}, "spec": spec, "status": {}}


def pv(name: str, handle: str, **more: object) -> dict[str, Any]:
    csi = {"driver": "pycsi.storage", "volumeHandle": handle}
    return item("PersistentVolume", name, csi=csi, **more)


def content(name: str, handle: str) -> dict[str, Any]:
    made = item("VolumeSnapshotContent", name, driver="pycsi.storage")
    return made | {"status": {"snapshotHandle": handle}}


def age(record: Path) -> None:
    """Make a volume or snapshot look as if it was made long ago."""
    record.write_text(json.dumps(json.loads(record.read_text()) | {"created": 1700000000.0}))


def test_cluster(patient: Patient, tmp_path: Path) -> None:
    """Objects without a volume or snapshot, and those without an object, are found and mended."""
    for name in ("unknown", "young", "trashed"):
        patient.make(name, onDelete="retain")
    patient.driver.snapshot("s", "kept@node-1")
    patient.driver.snapshot("unknown", "kept@node-1")
    patient.driver.delete("trashed@node-1")
    patient.kill()
    age(patient.volume("unknown") / "volume.json")
    age(patient.pool / "snapshots/unknown@node-1/snapshot.json")
    claim = {"namespace": "shop", "name": "orders"}
    leaving = pv("leaving", "gone@node-1")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    listed = tmp_path / "cluster.json"
    objects = [
        pv("pv-kept", "kept@node-1"),
        pv("pv-lost", "lost@node-1"),
        pv("pv-claimed", "claimed@node-1", claimRef=claim),
        pv("pv-trashed", "trashed@node-1"),
        pv("elsewhere", "lost@node-2"),
        leaving,
        item("PersistentVolume", "foreign", csi={"driver": "other", "volumeHandle": "x@node-1"}),
        item("PersistentVolume", "odd", csi=[]),
        content("s", "s@node-1"),
        content("lost", "lost@node-1"),
        {"kind": "Pod"},
        None,
    ]
    listed.write_text(json.dumps({"kind": "List", "items": [*objects]}))
    (tmp_path / "kubectl").write_text(KUBECTL.format(python=sys.executable, list=listed))
    (tmp_path / "kubectl").chmod(0o755)
    patient.options = ("--cluster", str(listed))
    found = patient.diagnose()
    assert {(finding["code"], finding["subject"]) for finding in found} == {
        ("ObjectWithoutVolume", "pv-lost"),
        ("ObjectWithoutVolume", "pv-claimed"),
        ("ObjectWithoutVolume", "pv-trashed"),
        ("VolumeWithoutObject", "unknown@node-1"),
        ("ObjectWithoutSnapshot", "lost"),
        ("SnapshotWithoutObject", "unknown@node-1"),
    }
    commands = {finding["subject"]: finding["command"] for finding in found}
    assert commands["pv-claimed"] == "kubectl delete pvc orders -n shop"
    listed.write_text(
        json.dumps({"items": [one for one in objects if isinstance(one, dict) and "spec" in one]})
    )
    patient.mend(found)
    assert patient.diagnose() == []
    on_node = piped(
        "doctor", f"--pool={patient.driver.pools[0]}", *patient.options, "--node-id=node-2"
    )
    assert "elsewhere" in on_node.stdout
    patient.options = ()
    is_well(patient)


ODD_LISTS = {
    "": "no JSON",
    "[]": "no list of objects",
    '{"items": {}}': "no list of objects",
    '{"items": [], "metadata": {"continue": "x"}}': "not the whole list",
    "[" * 100000: "no JSON",
    '{"items": []}': "the list has no PersistentVolume",
}


def test_odd_list(patient: Patient) -> None:
    """A list that tells nothing leads to no finding: nobody deletes volumes for want of it."""
    option = f"--pool={patient.driver.pools[0]}"
    for text, says in ODD_LISTS.items():
        done = subprocess.run(
            [sys.executable, "-m", "pycsi", "doctor", option, "--cluster=-"],
            input=text, capture_output=True, text=True, check=False, env=environment(),
        )  # fmt: skip
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert "WithoutObject" not in done.stdout


def test_lost_while_a_pool_is_missing(patient: Patient, tmp_path: Path) -> None:
    """While a pool cannot be looked at, nothing is said to be missing from the cluster."""
    listed = tmp_path / "cluster.json"
    listed.write_text(json.dumps(pv("pv-lost", "lost@node-1")))
    patient.options = ("--cluster", str(listed), f"--pool=gone={tmp_path}/gone")
    assert [finding["code"] for finding in patient.diagnose()] == ["PoolMissing"]


def test_machine(patient: Patient, tmp_path: Path) -> None:
    """Programs that are not there are told, with the package that has them."""
    done = piped("doctor", f"--pool={patient.driver.pools[0]}", "-o", "json", PATH=str(tmp_path))
    found = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert found["mkfs.ext4"]["code"] == "ProgramMissing"
    assert found["mkfs.ext4"]["command"].endswith(" e2fsprogs")


def test_fix(patient: Patient) -> None:
    """What is safe is mended, once somebody has agreed; the rest is only told."""
    option = f"--pool={patient.driver.pools[0]}"
    break_all(patient, [stale_build, unknown_entry])
    before = sorted(patient.pool.rglob("*"))
    done = piped("doctor", "--fix", option)
    assert done.returncode == 2
    assert "BuildUnfinished" in done.stdout
    assert "add --yes" in done.stderr
    status, lines = on_terminal(80, "doctor", "--fix", option, answer="n\n", NO_COLOR="1")
    assert status == 1
    assert lines[-1].endswith("not confirmed; nothing was changed")
    assert sorted(patient.pool.rglob("*")) == before
    status, lines = on_terminal(80, "doctor", "--fix", option, answer="y\n", NO_COLOR="1")
    assert status == 1
    done = piped("doctor", option, "-o", "yaml")
    assert "BuildUnfinished" not in done.stdout
    assert "UnknownEntry" in done.stdout
    assert piped("doctor", "--yes", option).returncode == 2
    patient.driver.start()


def test_fix_while_it_is_used(patient: Patient) -> None:
    """A mount that somebody uses, and a loop device, stay; that is said, with the status 2."""
    break_all(patient, [directory_left])
    option = f"--pool={patient.driver.pools[0]}"
    with subprocess.Popen(["sleep", "60"], cwd=patient.folder / "target-tree") as sleep:
        done = piped("doctor", "--fix", "--yes", option)
        assert done.returncode == 2
        assert f"in use by process {sleep.pid} (sleep)" in done.stderr
        sleep.kill()
    assert piped("doctor", "--fix", "--yes", option).returncode == 0
    patient.driver.start()


def test_terminal(patient: Patient) -> None:
    """Sentences are broken where the terminal ends, and commands never; tables fit."""
    break_all(patient, [record_truncated, stale_build])
    option = f"--pool={patient.driver.pools[0]}"
    for columns in (80, 120):
        status, lines = on_terminal(columns, "doctor", option, NO_COLOR="1")
        assert status == 1
        commands = [line for line in lines if line.startswith(("$ ", "+ "))]
        assert len(commands) == 2
        assert all(len(line) <= columns for line in lines if line not in commands)
        assert "\x1b" not in "".join(lines)
        status, lines = on_terminal(columns, "doctor", option, "-o", "table", NO_COLOR="1")
        assert (status, len(lines)) == (1, 3)
        assert max(map(len, lines)) <= columns
    assert "\x1b[31m" in "".join(on_terminal(80, "doctor", option)[1])
    told = piped("doctor", option).stdout.splitlines()
    assert all(command in told for command in commands)
    patient.driver.start()


def test_output_that_cannot_be_written(patient: Patient) -> None:
    """A closed pipe and a full disk are no reason for a traceback."""
    break_all(patient, [unknown_entry])
    command = [sys.executable, "-m", "pycsi", "doctor", f"--pool={patient.driver.pools[0]}", "-o"]
    full = "pycsi: standard output: No space left on device; write it elsewhere\n"
    for output in ("text", "table", "json", "yaml"):
        with Path("/dev/full").open("w") as disk:
            done = subprocess.run(
                [*command, output], stdout=disk, stderr=subprocess.PIPE, text=True, check=False
            )
        assert (done.returncode, done.stderr) == (1, full)
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*command, output], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")
    patient.driver.start()


def test_without_root(tmp_path: Path) -> None:
    """Who is not root is told so, and nothing is said to be well."""
    needs("root", met=os.geteuid() == 0)
    needs("setpriv", met=shutil.which("setpriv") is not None)
    as_nobody = ("setpriv", "--reuid=65534", "--clear-groups", "--")
    done = subprocess.run(
        [*as_nobody, sys.executable, "-m", "pycsi", "doctor", f"--pool=default={tmp_path}"],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    if "Permission denied" in done.stderr:
        pytest.skip("needs a Python that others may run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "takes root" in done.stderr
