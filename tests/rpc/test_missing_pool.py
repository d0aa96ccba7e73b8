"""A pool that is missing: the others are served, and so is this one once it is there."""

import fcntl
import os
import shutil
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import mounted, run
from driver import MIB, Driver, from_snapshot, from_volume, refused
from metrics import scrape
from rpc.conftest import OK, code_of, free_port, on_node, pycsi, request, wait_for

from pycsi.linux.descriptor import closing
from pycsi.linux.record import read_record, write_record
from pycsi.model import ids
from pycsi.proto import csi_pb2 as csi

FAILED = grpc.StatusCode.FAILED_PRECONDITION
MEMBERS = [ids.member_id("both@node-1", f"{name}@node-1", "node-1") for name in ("there", "here")]


def probe(driver: Driver) -> grpc.StatusCode:
    return code_of(lambda: driver.identity.Probe(csi.ProbeRequest()))


def room(driver: Driver, **parameters: str) -> int:
    asked = csi.GetCapacityRequest(parameters={"quota": "none", **parameters})
    return int(driver.controller.GetCapacity(asked).available_capacity)


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    return tmp_path / "fast"


@pytest.fixture
def one_missing(serve: Callable[..., Driver], pool: Path, fast: Path) -> Driver:
    """Return a driver on the pools `default`, and `fast` whose directory does not exist."""
    return serve(f"default={pool}", f"fast={fast}")


@pytest.fixture
def lost(serve: Callable[..., Driver], pool: Path, fast: Path, tmp_path: Path) -> Driver:
    """Return such a driver, whose pool `fast` had a volume, a snapshot and a group."""
    fast.mkdir()
    driver = serve(f"default={pool}", f"fast={fast}", options=("--enable-attach",))
    volume_id = driver.create("there", quota="none", pool="fast").volume_id
    driver.snapshot("moment", volume_id)
    here = driver.create("here", quota="none").volume_id
    driver.snapshot_group("both", volume_id, here)
    driver.stop()
    fast.rename(tmp_path / "away")
    driver.start()
    return driver


# While the driver runs


def test_lost_pool(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """While a pool's directory is away nothing works on it, and all is well when it is back."""
    volume = driver.create("a", quota="none")
    image = driver.create("i", type="image")
    pool.rename(tmp_path / "away")
    stage = tmp_path / "staging"
    with refused(FAILED, "default", str(pool)):
        driver.create("b", quota="none")
    calls: list[Callable[[], object]] = [
        lambda: driver.expand(volume.volume_id, 2**30),
        lambda: driver.expand(image.volume_id, 2**30),
        lambda: driver.delete(volume.volume_id),
        lambda: driver.delete(image.volume_id),
        lambda: driver.stage(volume.volume_id, stage),
        lambda: driver.stage(image.volume_id, stage),
        lambda: driver.publish(volume.volume_id, stage, tmp_path / "target"),
    ]
    assert [code_of(call) for call in calls] == [FAILED] * len(calls)
    assert room(driver) == 0
    assert driver.condition(volume.volume_id).abnormal
    assert driver.volume_ids() == [volume.volume_id, image.volume_id]
    assert probe(driver) is OK, "a driver is not restarted for a disk"
    wait_for(lambda: "a pool is missing" in driver.log)
    (tmp_path / "away").rename(pool)
    driver.delete(volume.volume_id)
    assert driver.volume_ids() == [image.volume_id]
    wait_for(lambda: "the pool is there again" in driver.log)
    assert driver.log.count("a pool is missing") == 1


def test_empty_directory_in_place(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """An empty directory, as below a disk that is not mounted, is not begun as a new pool."""
    pool.rename(tmp_path / "away")
    pool.mkdir()
    assert code_of(lambda: driver.create("a", quota="none")) is FAILED
    assert list(pool.iterdir()) == []
    pool.rmdir()
    (tmp_path / "away").rename(pool)
    driver.create("a", quota="none")


@pytest.mark.parametrize("content", ['{"schema": 1}', "{"])
def test_damaged_pool_in_place(driver: Driver, pool: Path, tmp_path: Path, content: str) -> None:
    """A directory whose record cannot be read is not the pool."""
    pool.rename(tmp_path / "away")
    pool.mkdir()
    (pool / "pool.json").write_text(content)
    with refused(FAILED, "pool.json"):
        driver.create("a", quota="none")


def test_another_pool_in_place(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """Another pool at the same path is recognised by its UUID, and left alone."""
    pool.rename(tmp_path / "away")
    pool.mkdir()
    write_record(pool / "pool.json", {"uuid": str(uuid.uuid4())})
    with refused(FAILED, "default"):
        driver.create("a", quota="none")
    assert [entry.name for entry in pool.iterdir()] == ["pool.json"]


def test_another_uuid(driver: Driver, pool: Path) -> None:
    """A pool whose record is replaced is no longer the pool that was opened."""
    record = read_record(pool / "pool.json")
    write_record(pool / "pool.json", record | {"uuid": str(uuid.uuid4())})
    assert room(driver) == 0
    write_record(pool / "pool.json", record)
    assert room(driver) > 0


def test_moved_pool(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """The same pool in another directory, as after a new mount, is found again and is locked."""
    volume = driver.create("a", quota="none")
    shutil.copytree(pool, tmp_path / "copy")
    pool.rename(tmp_path / "away")
    (tmp_path / "copy").rename(pool)
    driver.delete(volume.volume_id)
    assert list((pool / "volumes").iterdir()) == []
    assert [entry.name for entry in (tmp_path / "away/volumes").iterdir()] == [volume.volume_id]


def test_pool_that_comes_and_goes(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """Whichever directory the pool is in now, as when a disk comes and goes, is the locked one."""
    assert room(driver) > 0
    away, copy = tmp_path / "away", tmp_path / "copy"
    shutil.copytree(pool, copy)
    for last, now in ((away, copy), (copy, away), (away, copy)):
        pool.rename(last)
        now.rename(pool)
        assert room(driver) > 0
        with closing(os.open(pool, os.O_RDONLY)) as fd, pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


# At start


def test_one_of_two(one_missing: Driver, fast: Path) -> None:
    """The pool that is there is served; the other one has no room, and says what to do."""
    volume = one_missing.create("a", quota="none")
    assert one_missing.volume_ids() == [volume.volume_id]
    assert probe(one_missing) is OK
    with refused(FAILED, "fast", str(fast), "mount"):
        one_missing.create("b", quota="none", pool="fast")
    assert room(one_missing) > 0
    assert room(one_missing, pool="fast") == 0
    one_missing.delete(volume.volume_id)
    assert not fast.exists()
    assert one_missing.log.count("a pool is missing") == 1


def test_missing_default(serve: Callable[..., Driver], pool: Path, fast: Path) -> None:
    """A request that names no pool never gets another one than it would if all were there."""
    driver = serve(f"default={fast}", f"slow={pool}")
    with refused(FAILED, "default"):
        driver.create("a", quota="none")
    driver.create("a", quota="none", pool="slow")


def test_only_pool(serve: Callable[..., Driver], fast: Path) -> None:
    """A driver whose only pool is missing serves, too, and tells what it lacks."""
    driver = serve(f"default={fast}")
    assert probe(driver) is OK
    assert driver.volume_ids() == []
    with refused(FAILED, str(fast)):
        driver.create("a", quota="none")
    assert "a pool is missing" in driver.log


def test_required(pool: Path, fast: Path, tmp_path: Path) -> None:
    """With `require-pool` the driver does not start without it."""
    pools = f"--pool=default={pool}", f"--pool=fast={fast},require-pool"
    done = pycsi(f"--endpoint=unix://{tmp_path}/csi.sock", "--node-id=n", *pools)
    assert done.returncode == 1
    assert str(fast) in done.stderr.splitlines()[-1]
    assert "require-pool" in done.stderr.splitlines()[-1]


def test_elsewhere_there_may_be_room(one_missing: Driver) -> None:
    """Who can choose another node is told so: there the pool may be."""
    wanted = request("a", parameters={"quota": "none", "pool": "fast"})
    wanted.accessibility_requirements.CopyFrom(on_node("node-1"))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "fast"):
        one_missing.controller.CreateVolume(wanted)


def test_deletion_is_repeated(lost: Driver) -> None:
    """What was deleted is so for whoever asks again, also after a crash: it was not missing."""
    lost.create("more", quota="none")
    lost.snapshot("later", "more@node-1")
    calls: list[Callable[[], object]] = [
        lambda: lost.delete_snapshot("later@node-1"),
        lambda: lost.delete("more@node-1"),
    ]
    for call in calls * 2:
        call()
    lost.restart(signal.SIGKILL)
    for call in calls * 2:
        call()
    with refused(grpc.StatusCode.NOT_FOUND, "more"):
        lost.condition("more@node-1")
    with refused(FAILED, "may be in one that is missing"):
        lost.delete("never@node-1")


def test_deletion_is_forgotten_when_the_pool_comes(
    lost: Driver, fast: Path, tmp_path: Path
) -> None:
    """What is made in the pool that was missing counts, whatever was deleted elsewhere before."""
    lost.create("same", quota="none")
    lost.delete("same@node-1")
    (tmp_path / "away").rename(fast)
    wait_for(lambda: room(lost, pool="fast") > 0)
    lost.create("same", quota="none", pool="fast")
    lost.stop()
    fast.rename(tmp_path / "away")
    lost.start()
    with refused(FAILED, "may be in one that is missing"):
        lost.delete("same@node-1")


def test_nothing_is_deleted_that_may_be_there(lost: Driver, tmp_path: Path) -> None:
    """What is not found may be in the missing pool: nobody is told that it is gone."""
    there = "there@node-1"
    target = tmp_path / "target"
    calls: dict[str, Callable[[], object]] = {
        "delete": lambda: lost.delete(there),
        "delete snapshot": lambda: lost.delete_snapshot("moment@node-1"),
        "get": lambda: lost.condition(there),
        "list snapshot": lambda: lost.snapshots(snapshot_id="moment@node-1"),
        "list snapshots of a volume": lambda: lost.snapshots(there),
        "get snapshot": lambda: lost.controller.GetSnapshot(
            csi.GetSnapshotRequest(snapshot_id="moment@node-1")
        ),
        "get group": lambda: lost.group.GetVolumeGroupSnapshot(
            csi.GetVolumeGroupSnapshotRequest(group_snapshot_id="both@node-1", snapshot_ids=MEMBERS)
        ),
        "detach": lambda: lost.controller.ControllerUnpublishVolume(
            csi.ControllerUnpublishVolumeRequest(volume_id=there, node_id="node-1")
        ),
        "clone": lambda: lost.create("c", quota="none", source=from_volume(there)),
        "restore": lambda: lost.create("r", quota="none", source=from_snapshot("moment@node-1")),
        "stage": lambda: lost.stage(there, tmp_path / "stage"),
        "inline": lambda: lost.unpublish("csi-0123", target),
        "delete group": lambda: lost.delete_group("both@node-1", *MEMBERS),
    }
    ends = {name: code_of(call) for name, call in calls.items()}
    assert ends == dict.fromkeys(ends, FAILED)
    assert lost.volume_ids() == ["here@node-1"]
    assert code_of(lambda: lost.delete("no id")) is OK, "that is nobody's id"


def test_lists_while_a_pool_is_missing(lost: Driver, fast: Path, tmp_path: Path) -> None:
    """Those of all say what is in the pools that are there; one about a volume there is whole."""
    (member,) = (item for item in MEMBERS if item in {one.snapshot_id for one in lost.snapshots()})
    assert [item.snapshot_id for item in lost.snapshots("here@node-1")] == [member]
    assert lost.snapshots("there@node-2") == lost.snapshots("no id") == []
    (tmp_path / "away").rename(fast)
    assert len(lost.snapshots("there@node-1")) == 2
    assert lost.snapshots("never@node-1") == []
    assert len(lost.snapshots()) == 3


def test_all_is_there_when_it_comes(lost: Driver, fast: Path, tmp_path: Path) -> None:
    """A pool that was missing at start is opened when it comes, by the RPC that needs it."""
    (tmp_path / "away").rename(fast)
    assert not lost.condition("there@node-1").abnormal
    assert lost.volume_ids() == ["here@node-1", "there@node-1"]
    with closing(os.open(fast, os.O_RDONLY)) as fd, pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lost.delete_group("both@node-1", *MEMBERS)
    lost.delete_snapshot("moment@node-1")
    lost.delete("there@node-1")
    lost.reaped()
    assert list((fast / "snapshots").iterdir()) == list((fast / "trash").iterdir()) == []


def test_it_is_looked_for(lost: Driver, fast: Path, tmp_path: Path) -> None:
    """Nobody has to ask: it is found within seconds, recovered, and its trash is emptied."""
    away = tmp_path / "away"
    (away / "volumes/there@node-1").rename(away / "trash/there@node-1.1.gone.00000000")
    (away / "tmp/litter").mkdir()
    away.rename(fast)
    wait_for(lambda: lost.log.count("pool is open") == 4)
    lost.reaped()
    assert list((fast / "tmp").iterdir()) == []
    assert lost.volume_ids() == ["here@node-1"]


def test_part_of_a_group_that_was_deleted(lost: Driver, fast: Path, tmp_path: Path) -> None:
    """What a crash has left of a group in the missing pool is deleted when it comes."""
    (record,) = (tmp_path / "away/groups").glob("*.json")
    record.unlink()
    (tmp_path / "away").rename(fast)
    lost.condition("there@node-1")
    assert [item.snapshot_id for item in lost.snapshots()] == ["moment@node-1"]
    assert list(fast.glob("groups/*")) == []


def test_double(lost: Driver, fast: Path, tmp_path: Path) -> None:
    """Of two volumes with one id the one that is served stays, the other one is kept as it is."""
    lost.create("there", quota="none")
    (tmp_path / "away").rename(fast)
    assert room(lost, pool="fast") > 0
    assert lost.volume_ids() == ["here@node-1", "there@node-1"]
    lost.delete("there@node-1")
    assert (fast / "volumes/there@node-1/volume.json").exists()


def test_empty_directory_that_comes_later(one_missing: Driver, fast: Path) -> None:
    """It may be the mount point of the disk that is missing: only a start makes it a pool."""
    fast.mkdir()
    with refused(FAILED, "empty", "restart"):
        one_missing.create("a", quota="none", pool="fast")
    assert list(fast.iterdir()) == []
    one_missing.restart()
    one_missing.create("a", quota="none", pool="fast")


def test_foreign_directory_that_comes_later(one_missing: Driver, fast: Path) -> None:
    """What may not be at start is refused later, too, and does not end the driver."""
    fast.mkdir()
    (fast / "photos").mkdir()
    with refused(FAILED, "photos"):
        one_missing.create("a", quota="none", pool="fast")
    one_missing.create("a", quota="none")
    assert [entry.name for entry in fast.iterdir()] == ["photos"]


def foreign(fast: Path) -> None:
    (fast / "photos").mkdir(parents=True)


def in_memory(fast: Path) -> None:
    fast.symlink_to("/dev/shm")


def file(fast: Path) -> None:
    fast.touch()


@pytest.mark.parametrize(
    ("what", "says"),
    [(foreign, "photos"), (in_memory, "allow-volatile"), (file, "Not a directory")],
)
def test_something_else_in_place_at_start(
    serve: Callable[..., Driver],
    pool: Path,
    fast: Path,
    tmp_path: Path,
    what: Callable[[Path], None],
    says: str,
) -> None:
    """What cannot be a pool takes no other one away, unless that pool is required."""
    what(fast)
    driver = serve(f"default={pool}", f"fast={fast}")
    driver.create("a", quota="none")
    with refused(FAILED, says):
        driver.create("b", quota="none", pool="fast")
    assert room(driver, pool="fast") == 0
    driver.stop()
    for options in ([f"fast={fast},require-pool", f"default={pool}"], [f"fast={fast}"]):
        pools = [f"--pool={option}" for option in options]
        done = pycsi(f"--endpoint=unix://{tmp_path}/csi.sock", "--node-id=n", *pools)
        assert done.returncode == 1
        assert says in done.stderr.splitlines()[-1]


def test_path_in_a_missing_pool(one_missing: Driver, fast: Path, tmp_path: Path) -> None:
    """Nothing is mounted where a missing pool will be."""
    volume = one_missing.create("a", quota="none")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "fast"):
        one_missing.stage(volume.volume_id, fast)
    fast.rmdir()  # the test's own


@pytest.mark.parametrize("content", ["", '{"schema": 99}', '{"schema": 1, "uuid": "x"}'])
def test_damaged_record(serve: Callable[..., Driver], pool: Path, content: str) -> None:
    """A pool whose record cannot be read is not begun anew, and not served."""
    (pool / "pool.json").write_text(content)
    driver = serve(pool)
    with refused(FAILED, "pool.json"):
        driver.create("a", quota="none")
    assert (pool / "pool.json").read_text() == content


def test_wrong_disk(serve: Callable[..., Driver], pool: Path) -> None:
    """With `uuid` another pool, or an empty directory, is not taken for this one."""
    driver = serve(f"default={pool},uuid={uuid.uuid4()}")
    with refused(FAILED, "is not the pool"):
        driver.create("a", quota="none")
    assert list(pool.iterdir()) == []


def test_read_only_disk(serve: Callable[..., Driver], pool: Path, root: None) -> None:
    """A pool on a read-only filesystem is served once it can be written to."""
    serve(pool).stop()
    with mounted("--bind", "-o", "ro", pool, pool):
        driver = serve(pool)
        with refused(FAILED, "read-only"):
            driver.create("a", quota="none")
        run("mount", "-o", "remount,bind,rw", pool)
        driver.create("a", quota="none")
        driver.stop()


def test_bound_directory_is_no_disk(serve: Callable[..., Driver], pool: Path, root: None) -> None:
    """A directory of another filesystem, as a container gets it, is no disk for `require-mount`."""
    with mounted("--bind", pool, pool):
        driver = serve(f"default={pool},require-mount")
        with refused(FAILED, "is mounted"):
            driver.create("a", quota="none")
        assert list(pool.iterdir()) == []
        driver.stop()


@pytest.fixture
def disk(tmp_path: Path, root: None) -> Path:
    """Return the image of an empty ext4."""
    image = tmp_path / "disk.img"
    run("truncate", "-s", "64M", image)
    run("mkfs.ext4", "-q", image)
    return image


def test_disk_that_is_mounted_later(
    serve: Callable[..., Driver], pool: Path, fast: Path, disk: Path
) -> None:
    """A disk that comes after the driver is opened; an empty one becomes a pool."""
    fast.mkdir()
    driver = serve(f"default={pool}", f"fast={fast},require-mount")
    assert room(driver, pool="fast") == 0
    with mounted("-o", "loop", disk, fast):
        driver.create("a", 4 * MIB, quota="none", pool="fast")
        driver.stop()
    driver.start()
    assert driver.volume_ids() == []
    assert list(fast.iterdir()) == []
    with mounted("-o", "loop", disk, fast):
        assert not driver.condition("a@node-1").abnormal
        driver.stop()


def test_metrics(serve: Callable[..., Driver], pool: Path, fast: Path) -> None:
    """Which pool is there can be seen in the metrics; a missing one has no other numbers."""
    port = free_port()
    pools = f"default={pool}", f"fast={fast}"
    serve(*pools, options=(f"--metrics-address=127.0.0.1:{port}",))
    found = scrape(port)
    assert found("pycsi_pool_up", pool="default") == 1
    assert found("pycsi_pool_up", pool="fast") == 0
    assert found("pycsi_pool_size_bytes", pool="fast") is None
