"""ListVolumes: pages that miss nothing and repeat nothing, whatever happens in between."""

from pathlib import Path

import grpc
import pytest
from driver import MIB, Driver
from rpc.conftest import code_of, request

from pycsi.proto import csi_pb2 as csi

COUNT = 7


@pytest.fixture(scope="module")
def stocked(shared: Driver) -> Driver:
    """Return a driver with seven volumes."""
    for number in range(COUNT):
        shared.controller.CreateVolume(request(f"v{number}"))
    shared.controller.CreateVolume(request("x" * 128))
    shared.delete(shared.create("gone", MIB, quota="none").volume_id)
    shared.delete(shared.create("x" * 128, 4 * MIB, quota="none").volume_id)
    return shared


def page(driver: Driver, entries: int, token: str = "") -> tuple[list[str], str]:
    answer = driver.controller.ListVolumes(
        csi.ListVolumesRequest(max_entries=entries, starting_token=token)
    )
    assert len(answer.next_token.encode()) <= 128
    return [entry.volume.volume_id for entry in answer.entries], answer.next_token


def follow(driver: Driver, entries: int, token: str = "") -> list[str]:
    found: list[str] = []
    while True:
        ids, token = page(driver, entries, token)
        assert len(ids) <= entries or not entries
        found += ids
        if not token:
            return found


@pytest.mark.parametrize("entries", [0, 1, 2, 3, COUNT - 1, COUNT, COUNT + 1, 2**31 - 1])
def test_pages(stocked: Driver, entries: int) -> None:
    """Pages of any size add up to the whole listing, and a full last page has no token."""
    every = stocked.volume_ids()
    assert len(every) == len(set(every)) == COUNT
    assert follow(stocked, entries) == every


def test_page_whose_last_entry_is_deleted(stocked: Driver) -> None:
    """A token stays good when the last volume of its page has gone."""
    every = stocked.volume_ids()
    ids, token = page(stocked, 3)
    stocked.delete(ids[-1])
    assert follow(stocked, 2, token) == every[3:]
    stocked.controller.CreateVolume(request(ids[-1].partition("@")[0]))


def test_volume_added_between_pages(stocked: Driver) -> None:
    """Volumes that come while somebody pages disturb nothing; later ones are found."""
    every = stocked.volume_ids()
    _, token = page(stocked, 3)
    stocked.controller.CreateVolume(request("a-before"))
    stocked.controller.CreateVolume(request("z-after"))
    rest = follow(stocked, 2, token)
    assert [item for item in rest if item in every] == every[3:]
    assert "z-after@node-1" in rest
    stocked.delete("a-before@node-1")
    stocked.delete("z-after@node-1")


def test_token_after_everything_is_deleted(stocked: Driver) -> None:
    """A token good a moment ago leads to an empty page, not to an error."""
    _, token = page(stocked, COUNT - 1)
    last = stocked.volume_ids()[-1]
    stocked.delete(last)
    assert page(stocked, 5, token) == ([], "")
    stocked.controller.CreateVolume(request(last.partition("@")[0]))


def test_token_after_a_restart(stocked: Driver) -> None:
    """A token survives the process."""
    every = stocked.volume_ids()
    _, token = page(stocked, 2)
    stocked.restart()
    assert follow(stocked, 0, token) == every[2:]


@pytest.mark.parametrize("token", ["invalid-token", "1", ">", "v0@node-1", "\0", "x" * 5000, " "])
def test_token_that_is_not_ours(stocked: Driver, token: str) -> None:
    """A token that was never given is ABORTED."""
    assert code_of(lambda: page(stocked, 1, token)) is grpc.StatusCode.ABORTED


@pytest.mark.parametrize("entries", [-1, -(2**31)])
def test_negative_page(stocked: Driver, entries: int) -> None:
    """A negative number of entries is INVALID_ARGUMENT."""
    assert code_of(lambda: page(stocked, entries)) is grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_listed_is_how_it_is(driver: Driver, pool: Path) -> None:
    """Each listing shows volumes as they are at that time, whatever an earlier one has shown."""

    def entry() -> csi.ListVolumesResponse.Entry:
        answer: csi.ListVolumesResponse = driver.controller.ListVolumes(csi.ListVolumesRequest())
        (found,) = answer.entries
        return found

    volume_id = driver.create("v", MIB, quota="none").volume_id
    assert entry().volume.capacity_bytes == MIB
    driver.expand(volume_id, 2 * MIB)
    assert entry().volume.capacity_bytes == 2 * MIB
    data = pool / "volumes" / volume_id / "data"
    for _ in range(2):
        aside = data.rename(data.with_name("aside"))
        assert entry().status.volume_condition.abnormal
        aside.rename(data)
        assert not entry().status.volume_condition.abnormal
    driver.delete(volume_id)
    driver.create("v", 4 * MIB, quota="none")
    assert entry().volume.capacity_bytes == 4 * MIB
