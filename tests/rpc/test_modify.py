"""ControllerModifyVolume: all keys or none; and what onDelete then does."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import needs
from driver import MIB, Driver, mount_capability, refused
from rpc.conftest import code_of, wait_for

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
FILES = {"type": "directory", "quota": "none"}


def create(driver: Driver, name: str, mutable: dict[str, str], **parameters: str) -> csi.Volume:
    volume: csi.Volume = driver.controller.CreateVolume(
        csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=4 * MIB),
            volume_capabilities=[mount_capability()],
            parameters=FILES | parameters,
            mutable_parameters=mutable,
        )
    ).volume
    return volume


def trash(driver: Driver) -> list[str]:
    """Return what is kept in the trash."""
    return sorted(path.name for path in (driver.folders[0] / "trash").glob("*.kept.*"))


@pytest.mark.parametrize(
    ("mutable", "code"),
    [
        ({"onDelete": "retain"}, Code.OK),
        ({"onDelete": "delete"}, Code.OK),
        ({}, Code.INVALID_ARGUMENT),
        ({"onDelete": "later"}, Code.INVALID_ARGUMENT),
        ({"onDelete": ""}, Code.INVALID_ARGUMENT),
        ({"pool": "default"}, Code.INVALID_ARGUMENT),
        ({"onDelete": "retain", "color": "red"}, Code.INVALID_ARGUMENT),
        ({"csi.storage.k8s.io/pvc/name": "x"}, Code.INVALID_ARGUMENT),
        ({"onDelete": "x" * 5000}, Code.INVALID_ARGUMENT),
    ],
)
def test_modify(driver: Driver, mutable: dict[str, str], code: object) -> None:
    """What cannot be set as a whole is not set in part."""
    volume_id = create(driver, "v", {}).volume_id
    record = driver.folders[0] / "volumes" / volume_id / "volume.json"
    before = record.read_bytes()
    for _ in range(2):
        assert code_of(lambda: driver.modify(volume_id, **mutable)) is code
    assert record.read_bytes() == before or code is Code.OK
    driver.restart()
    driver.delete(volume_id)
    retained = code is Code.OK and mutable["onDelete"] == "retain"
    assert len(trash(driver)) == retained


def test_modify_what_is_not_there(driver: Driver) -> None:
    for volume_id in ("gone", "gone@node-1", "gone@node-2", ".."):
        with refused(Code.NOT_FOUND):
            driver.modify(volume_id, onDelete="retain")
    assert code_of(lambda: driver.modify("", onDelete="retain")) is Code.INVALID_ARGUMENT


def test_mutable_parameters_win(driver: Driver) -> None:
    """Those of the VolumeAttributesClass stand above the StorageClass's."""
    kept = create(driver, "kept", {"onDelete": "retain"}, onDelete="delete").volume_id
    gone = create(driver, "gone", {"onDelete": "delete"}, onDelete="retain").volume_id
    by_class = create(driver, "by-class", {}, onDelete="retain").volume_id
    for volume_id in (kept, gone, by_class):
        driver.delete(volume_id)
    assert [name.partition("@")[0] for name in trash(driver)] == ["by-class", "kept"]


def test_retry_after_a_change(driver: Driver) -> None:
    """A retried creation finds its volume whatever was modified since; another one does not."""
    made = create(driver, "v", {"onDelete": "retain"})
    assert create(driver, "v", {"onDelete": "retain"}) == made
    driver.modify(made.volume_id, onDelete="delete")
    assert create(driver, "v", {"onDelete": "retain"}) == made
    for other in ({}, {"onDelete": "delete"}):
        with refused(Code.ALREADY_EXISTS, "mutable_parameters"):
            create(driver, "v", other)
    for wrong in ({"onDelete": "x"}, {"x": "y"}):
        with refused(Code.INVALID_ARGUMENT):
            create(driver, "w", wrong)
    assert driver.volume_ids() == [made.volume_id]


def command(driver: Driver, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `pycsi trash`, or `pycsi get trash`, on the driver's pools."""
    pools = [f"--pool={pool}" for pool in driver.pools]
    return subprocess.run(
        [sys.executable, "-m", "pycsi", *arguments, *pools],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )


def test_table_that_is_not_for_a_terminal(driver: Driver) -> None:
    """Names can be copied from what a pipe is given: lines are as long as they have to be."""
    made = create(
        driver, "a-name-as-long-as-those-of-kubernetes-0123456789", {"onDelete": "retain"}
    )
    driver.delete(made.volume_id)
    (entry,) = trash(driver)
    assert any(entry in line for line in command(driver, "get", "trash").stdout.splitlines())


@pytest.mark.parametrize("running", [True, False])
def test_restore(limited: Callable[..., Driver], running: bool) -> None:
    """A retained volume comes back as it was, while the driver runs or not."""
    driver = limited(256 * MIB)
    made = create(driver, "v", {"onDelete": "retain"})
    data = driver.folders[0] / "volumes" / made.volume_id / "data"
    (data / "file").write_text("kept")
    available = driver.capacity(quota="none").available_capacity
    driver.delete(made.volume_id)
    assert driver.capacity(quota="none").available_capacity == available
    assert driver.volume_ids() == []
    (entry,) = trash(driver)
    if not running:
        driver.stop()
    done = command(driver, "trash", "restore", entry)
    assert (done.returncode, done.stdout.strip()) == (0, made.volume_id), done.stderr
    if not running:
        driver.start()
    assert driver.volume_ids() == [made.volume_id]
    assert create(driver, "v", {"onDelete": "retain"}) == made
    assert (data / "file").read_text() == "kept"
    assert driver.capacity(quota="none").available_capacity == available
    driver.delete(made.volume_id)
    assert len(trash(driver)) == 1


def test_restore_what_cannot_be(driver: Driver) -> None:
    """A volume of the same name is not overwritten, and a snapshot is no volume."""
    made = create(driver, "v", {"onDelete": "retain"})
    driver.delete(made.volume_id)
    create(driver, "v", {"onDelete": "retain"})
    (entry,) = trash(driver)
    done = command(driver, "trash", "restore", entry)
    assert done.returncode == 1
    assert "a volume v@node-1 exists" in done.stderr
    assert trash(driver) == [entry]
    done = command(driver, "trash", "restore", "../volumes/v@node-1")
    assert (done.returncode, trash(driver)) == (3, [entry])
    assert "get trash" in done.stderr


@pytest.mark.parametrize("running", [True, False])
def test_empty(limited: Callable[..., Driver], running: bool) -> None:
    """What is kept goes when a person says so, one by one or all at once."""
    driver = limited(256 * MIB)
    before = driver.capacity(quota="none").available_capacity
    for name in ("a", "b", "c"):
        driver.delete(create(driver, name, {"onDelete": "retain"}).volume_id)
    names = trash(driver)
    listed = json.loads(command(driver, "get", "trash", "-o", "json").stdout)
    assert sorted(row["entry"] for row in listed) == names
    assert command(driver, "get", "trash").returncode == 0
    if not running:
        driver.stop()
    assert command(driver, "trash", "empty", "--yes").returncode == 2
    assert trash(driver) == names
    assert command(driver, "trash", "empty", "--yes", names[0]).returncode == 0
    assert trash(driver) == names[1:]
    assert command(driver, "trash", "empty", "--yes", "--all").returncode == 0
    assert list((driver.folders[0] / "trash").iterdir()) == []
    if not running:
        driver.start()
    assert driver.capacity(quota="none").available_capacity == before


def test_time_to_live(serve: Callable[..., Driver], pool: Path) -> None:
    """What is kept goes when its time has come, also if the driver was not running then."""
    driver = serve(f"default={pool},retain-for=1.5s")
    driver.delete(create(driver, "v", {"onDelete": "retain"}).volume_id)
    assert len(trash(driver)) == 1
    wait_for(lambda: not trash(driver))
    driver.delete(create(driver, "w", {"onDelete": "retain"}).volume_id)
    driver.stop(9)
    assert len(trash(driver)) == 1
    time.sleep(2.6)
    driver.start()
    wait_for(lambda: not trash(driver))


def test_for_ever(serve: Callable[..., Driver], pool: Path) -> None:
    driver = serve(f"default={pool},retain-for=ever")
    driver.delete(create(driver, "v", {"onDelete": "retain"}).volume_id)
    (entry,) = trash(driver)
    driver.stop()
    path = pool / "trash" / entry
    path.rename(path.with_name(entry.replace(entry.split(".")[1], "1000")))
    driver.start()
    driver.delete(create(driver, "w", {}).volume_id)
    driver.reaped()
    assert len(trash(driver)) == 1


def test_deletion_answers_at_once(driver: Driver, pool: Path) -> None:
    """A large tree is gone from the orchestrator's view at once, and freed in the background."""
    volume_id = create(driver, "v", {}).volume_id
    data = pool / "volumes" / volume_id / "data"
    for number in range(200):
        folder = data / str(number)
        folder.mkdir()
        for name in range(100):
            (folder / str(name)).touch()
    driver.delete(volume_id)
    assert driver.volume_ids() == []
    assert not data.exists()
    assert list((pool / "trash").iterdir()), "20,000 files were deleted before the answer"
    driver.stop()  # in the middle of the tree
    driver.start()
    driver.reaped()


def test_restore_beside_another_pool(serve: Callable[..., Driver], tmp_path: Path) -> None:
    """No volume comes back beside one of its name in another pool, asked or not."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    driver = serve(*(f"{name}={tmp_path / name}" for name in ("a", "b")))
    driver.delete(create(driver, "v", {"onDelete": "retain"}, pool="a").volume_id)
    (entry,) = trash(driver)
    made = create(driver, "v", {}, pool="b")
    done = command(driver, "trash", "restore", entry)
    assert (done.returncode, trash(driver)) == (1, [entry])
    # As who knows of one pool only.
    (tmp_path / "a/trash" / entry).rename(tmp_path / "a/volumes/v@node-1")
    assert driver.volume_ids() == [made.volume_id]
    driver.restart()
    assert driver.volume_ids() == [made.volume_id]
    assert create(driver, "v", {}, pool="b") == made
    for _ in range(2):
        driver.delete(made.volume_id)
    driver.reaped()
    assert not (tmp_path / "b/volumes/v@node-1").exists()
    assert (tmp_path / "a/volumes/v@node-1").exists()
    assert driver.volume_ids() == []


def test_volumes_of_another_pool_are_not_adopted(
    limited: Callable[..., Driver], pool: Path, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """What lies in the folder and is another pool's is neither listed nor counted."""
    driver = limited(256 * MIB)
    other = tmp_path / "other"
    other.mkdir()
    second = serve(f"other={other}")
    foreign = create(second, "foreign", {}, pool="other").volume_id
    available = driver.capacity(quota="none").available_capacity
    shutil.copytree(other / "volumes" / foreign, pool / "volumes" / foreign)
    assert driver.volume_ids() == []
    driver.delete(foreign)
    assert (pool / "volumes" / foreign).exists()
    assert driver.capacity(quota="none").available_capacity == pytest.approx(available, abs=MIB)


@pytest.mark.parametrize("what", ["", "data"])
def test_delete_what_somebody_has_deleted(driver: Driver, pool: Path, what: str) -> None:
    """A volume whose directory has gone is gone."""
    volume_id = create(driver, "v", {}).volume_id
    shutil.rmtree(pool / "volumes" / volume_id / what)
    for _ in range(2):
        driver.delete(volume_id)
    assert driver.volume_ids() == []
    create(driver, "v", {})


@pytest.mark.parametrize("flag", ["+i", "+a"])
def test_protected_files_are_reaped(driver: Driver, pool: Path, flag: str) -> None:
    """Marks that keep root from deleting do not keep a deleted volume's room."""
    volume_id = create(driver, "v", {}).volume_id
    data = pool / "volumes" / volume_id / "data"
    (data / "sub/deep").mkdir(parents=True)
    for place in (data, data / "sub", data / "sub/deep"):
        (place / "file").touch()
    done = subprocess.run(["chattr", "-R", flag, data], check=False, capture_output=True)
    needs("files that can be made immutable", met=done.returncode == 0)
    driver.delete(volume_id)
    driver.reaped()
