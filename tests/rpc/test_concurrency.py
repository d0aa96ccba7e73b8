"""Many calls at once: one volume per name, and no byte promised twice."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from driver import GIB, MIB, Driver
from rpc.conftest import OK, code_of, on_disk, pool_of, request

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
THREADS = 16


def together(*calls: Callable[[], Any]) -> list[grpc.StatusCode]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(code_of, calls))


@pytest.mark.parametrize("parameters", [{"quota": "none"}, {"type": "image"}])
def test_one_name(shared: Driver, parameters: dict[str, str]) -> None:
    """Of 16 equal requests one makes the volume; the others find it or are told to come back."""
    before = on_disk(shared)
    wanted = request("one", parameters=parameters)
    wanted.capacity_range.required_bytes = 16 * MIB
    codes = together(*[lambda: shared.controller.CreateVolume(wanted)] * THREADS)
    assert OK in codes
    assert set(codes) <= {OK, Code.ABORTED}
    assert on_disk(shared) - before == {"volumes/one@node-1"}
    shared.delete("one@node-1")
    assert on_disk(shared) == before


def test_last_gigabyte(limited: Callable[..., Driver]) -> None:
    """Of 16 volumes for which there is half the room, exactly half are made."""
    driver = limited(GIB)
    wanted = [request(f"v{number}") for number in range(THREADS)]
    for item in wanted:
        item.capacity_range.required_bytes = GIB // 8
    codes = together(*[lambda item=item: driver.controller.CreateVolume(item) for item in wanted])
    assert sorted(code.name for code in codes) == ["OK"] * 8 + ["RESOURCE_EXHAUSTED"] * 8
    assert len(driver.volume_ids()) == 8
    assert len(on_disk(driver)) == 8
    assert driver.capacity(quota="none").available_capacity == 0


def test_different_names(shared: Driver) -> None:
    """Calls for different volumes never abort each other."""
    names = [f"v{number}" for number in range(THREADS)]
    codes = together(
        *[lambda name=name: shared.controller.CreateVolume(request(name)) for name in names]
    )
    assert codes == [OK] * THREADS
    deletions = [csi.DeleteVolumeRequest(volume_id=f"{name}@node-1") for name in names]
    codes = together(
        *[lambda item=item: shared.controller.DeleteVolume(item) for item in deletions]
    )
    assert codes == [OK] * THREADS
    assert on_disk(shared) == set()


def test_creation_against_deletion(shared: Driver) -> None:
    """However creations and deletions of one name meet, the listing and the disk agree."""
    deletion = csi.DeleteVolumeRequest(volume_id="race@node-1")
    for _ in range(10):
        codes = together(
            *[
                lambda: shared.controller.CreateVolume(request("race")),
                lambda: shared.controller.DeleteVolume(deletion),
            ]
            * 8
        )
        assert set(codes) <= {OK, Code.ABORTED}
        found = {entry.name for entry in (pool_of(shared) / "volumes").iterdir()}
        assert found == set(shared.volume_ids())
        assert not list((pool_of(shared) / "tmp").iterdir())
    shared.delete("race@node-1")
