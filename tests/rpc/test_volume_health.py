"""The health RPCs of CSI 1.13: what they take, what they refuse, and whom they tell of what."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from driver import MIB, Driver, refused
from rpc.conftest import SlowPrograms, code_of, wait_for

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
COUNT = 5
POD = {
    "csi.storage.k8s.io/ephemeral": "true",
    "csi.storage.k8s.io/pod.name": "web-0",
    "csi.storage.k8s.io/pod.namespace": "shop",
}


def data_of(pool: Path, volume_id: str) -> Path:
    return pool / "volumes" / volume_id / "data"


@pytest.fixture
def unwell(driver: Driver, pool: Path) -> list[str]:
    """Return the ids of five volumes without their data; there are others between them."""
    made = [driver.create(f"v{number}", MIB, quota="none").volume_id for number in range(2 * COUNT)]
    for volume_id in made[::2]:
        data_of(pool, volume_id).rmdir()
    return made[::2]


def test_well(driver: Driver, tmp_path: Path) -> None:
    """Of a volume that is well nothing is told, in use or not, and it is not listed."""
    volume_id = driver.create("v", MIB, quota="none").volume_id
    expected = csi.VolumeHealth(volume_id=volume_id)
    assert driver.health(volume_id) == driver.node_health(volume_id) == expected
    with driver.published(volume_id, tmp_path) as target:
        staging = tmp_path / f"staging-{volume_id}"
        assert driver.health(volume_id) == expected
        assert driver.node_health(volume_id, staging, target) == expected
    assert driver.unwell() == []
    assert driver.storage_health() == []


def test_unwell(driver: Driver, unwell: list[str]) -> None:
    """What is wrong is told alike by each RPC: a status, a stable reason, and words for people."""
    found = driver.unwell()
    assert [health.volume_id for health in found] == unwell
    for health in found:
        assert driver.health(health.volume_id) == health
        assert driver.node_health(health.volume_id) == health
        (entry,) = health.health_statuses
        assert entry.status == csi.DATA_LOSS
        assert entry.reason == "DataMissing"
        assert 0 < len(entry.message.encode()) <= 128
        assert driver.condition(health.volume_id).abnormal


def page(driver: Driver, entries: int, token: str = "") -> tuple[list[str], str]:
    answer = driver.controller.ControllerListVolumeHealth(
        csi.ControllerListVolumeHealthRequest(max_entries=entries, starting_token=token)
    )
    assert len(answer.next_token.encode()) <= 128
    return [health.volume_id for health in answer.entries], answer.next_token


@pytest.mark.parametrize("entries", [0, 1, 2, COUNT - 1, COUNT, COUNT + 1, 2**31 - 1])
def test_pages(driver: Driver, unwell: list[str], entries: int) -> None:
    """Pages of any size add up to all volumes that are not well; a full last one has no token."""
    found, token = page(driver, entries)
    pages = 1
    while token:
        assert len(found) == pages * entries
        more, token = page(driver, entries, token)
        found += more
        pages += 1
    assert found == unwell


def test_page_whose_last_entry_is_deleted(driver: Driver, unwell: list[str]) -> None:
    """A token stays good when the last volume of its page has gone, or is well again."""
    found, token = page(driver, 2)
    driver.delete(found[-1])
    assert page(driver, 0, token) == (unwell[2:], "")


@pytest.mark.parametrize("token", ["invalid-token", "1", ">", "v0@node-1", "\0", "x" * 5000])
def test_token_that_is_not_ours(shared: Driver, token: str) -> None:
    """A token that was never given is ABORTED."""
    assert code_of(lambda: page(shared, 1, token)) is Code.ABORTED


@pytest.mark.parametrize("entries", [-1, -(2**31)])
def test_negative_page(shared: Driver, entries: int) -> None:
    """A negative number of entries is INVALID_ARGUMENT."""
    assert code_of(lambda: page(shared, entries)) is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("volume_id", "code", "words"),
    [
        ("", Code.INVALID_ARGUMENT, ["volume_id"]),
        ("gone", Code.NOT_FOUND, ["gone"]),
        ("gone@node-1", Code.NOT_FOUND, ["gone@node-1"]),
        ("../../etc", Code.NOT_FOUND, ["etc"]),
        ("x" * 5000, Code.NOT_FOUND, ["no volume"]),
        ("v@node-2", Code.FAILED_PRECONDITION, ["node-2", "node-1"]),
    ],
)
def test_volume_that_is_not_here(
    shared: Driver, volume_id: str, code: grpc.StatusCode, words: list[str]
) -> None:
    """No answer says of a volume that it is well where nothing is known of it."""
    for ask in (shared.health, shared.node_health):
        with refused(code, *words):
            ask(volume_id)


def test_volume_of_a_missing_pool(serve: Callable[..., Driver], pool: Path, tmp_path: Path) -> None:
    """While its pool is missing, a volume is neither well nor gone."""
    driver = serve(f"default={pool}", f"fast={tmp_path}/fast")
    for ask in (driver.health, driver.node_health):
        with refused(Code.FAILED_PRECONDITION, "fast"):
            ask("v@node-1")
    (health,) = driver.storage_health()
    assert (health.status, health.reason) == (csi.STORAGE_UNREACHABLE, "PoolMissing")
    assert "fast" in health.message
    assert not health.HasField("volume_capability")


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/", "/nul\0", f"/{'x' * 300}"])
def test_path_that_is_none(shared: Driver, path: str) -> None:
    """A path has to be absolute and possible, and is not looked for in vain."""
    volume_id = shared.create("paths", MIB, quota="none").volume_id
    for fields in ({"staging": path}, {"target": path}):
        with refused(Code.INVALID_ARGUMENT, "path"):
            shared.node_health(volume_id, **fields)


def test_path_in_the_pool(driver: Driver, pool: Path) -> None:
    """A path in the pool is nobody's to publish at."""
    volume_id = driver.create("v", MIB, quota="none").volume_id
    for fields in ({"staging": pool / "x"}, {"target": data_of(pool, volume_id)}):
        with refused(Code.INVALID_ARGUMENT, "pool"):
            driver.node_health(volume_id, **fields)


def test_volume_whose_staging_failed(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """The paths may be those of calls that have failed: what is wrong is told all the same."""
    volume_id = driver.create("v", MIB, quota="none").volume_id
    data_of(pool, volume_id).rmdir()
    assert code_of(lambda: driver.stage(volume_id, tmp_path / "staging")) is not Code.OK
    for target in ("", tmp_path / "target"):
        health = driver.node_health(volume_id, tmp_path / "staging", target)
        assert [entry.reason for entry in health.health_statuses] == ["DataMissing"]


@pytest.fixture
def checking(
    root: None, serve: Callable[..., Driver], pool: Path, tmp_path: Path
) -> Iterator[tuple[Driver, str, SlowPrograms]]:
    """Return a driver, and an ext4 that it stages, which takes until the check is let go on."""
    slow = SlowPrograms(tmp_path / "bin", "e2fsck")
    driver = serve(pool, PATH=slow.path)
    volume_id = driver.create("v", 16 * MIB, type="image", fsck="true").volume_id
    staging = tmp_path / "staging"
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(driver.stage, volume_id, staging)
        wait_for(lambda: slow.started)
        try:
            yield driver, volume_id, slow
        finally:
            slow.go()
            done.exception(60)
    driver.unstage(volume_id, staging)


def test_operation_under_way(checking: tuple[Driver, str, SlowPrograms], pool: Path) -> None:
    """What an operation has in hand is not examined, and that is no news: neither ill nor well."""
    driver, volume_id, slow = checking
    image = pool / "volumes" / volume_id / "disk.img"
    aside = image.rename(image.with_name("aside"))
    for ask in (driver.health, driver.node_health):
        with refused(Code.ABORTED, "under way"):
            ask(volume_id)
    assert driver.unwell() == []
    assert not driver.condition(volume_id).abnormal
    aside.rename(image)
    slow.go()
    wait_for(lambda: code_of(lambda: driver.health(volume_id)) is Code.OK)
    assert driver.health(volume_id) == csi.VolumeHealth(volume_id=volume_id)


@pytest.mark.usefixtures("root")
def test_inline_volume(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """The node tells the health of an inline volume by the orchestrator's id for it."""
    handle, target = "csi-" + "0" * 64, tmp_path / "target"
    driver.publish(handle, None, target, context=POD | {"size": "32Mi"})
    assert driver.node_health(handle, target=target) == csi.VolumeHealth(volume_id=handle)
    with refused(Code.NOT_FOUND, handle):
        driver.health(handle)
    (image,) = (pool / "volumes").glob("*/disk.img")
    aside = image.rename(image.with_name("aside"))
    assert driver.node_health(handle).volume_id == handle
    assert driver.node_health(handle).health_statuses
    assert driver.unwell() == []
    aside.rename(image)
    driver.unpublish(handle, target)
    with refused(Code.NOT_FOUND, handle):
        driver.node_health(handle)
