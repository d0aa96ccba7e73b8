"""What was renamed into its place, and could not be synchronised: undone, on disk and in memory."""

import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import run
from driver import MIB, Driver, from_snapshot, refused
from reliability.conftest import check_unused, check_whole
from reliability.faults import Point, Worker, record, traced

from pycsi.proto import csi_pb2 as csi

REFUSED = grpc.StatusCode.FAILED_PRECONDITION

_ATTEMPTS = 5


@pytest.fixture
def served(big_pool: Path, serve: Callable[..., Driver]) -> Driver:
    """Return a driver on a pool of each kind."""
    return serve(big_pool, options=("--enable-attach",))


def failing(
    driver: Driver, tmp_path: Path, call: str, number: int
) -> contextlib.AbstractContextManager[None]:
    """Let a system call of the next RPC fail with EIO."""
    fault = Point(call, number).inject("error=EIO")
    return traced(driver, Worker.RPC, tmp_path / "log", *fault)


def nodes(driver: Driver, volume_id: str) -> list[str]:
    request = csi.ControllerGetVolumeRequest(volume_id=volume_id)
    return list(driver.controller.ControllerGetVolume(request).status.published_node_ids)


def test_record(served: Driver, big_pool: Path, tmp_path: Path) -> None:
    """After a refusal the driver says the same before and after its next start."""
    volume_id = served.create("v", 16 * MIB, type="image").volume_id
    request = csi.ControllerUnpublishVolumeRequest(volume_id=volume_id)
    attach = csi.ControllerPublishVolumeRequest(volume_id=volume_id, node_id="node-1")
    attach.volume_capability.mount.SetInParent()
    attach.volume_capability.access_mode.mode = csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
    with failing(served, tmp_path, "fsync", 2), refused(REFUSED, "Input/output error"):
        served.controller.ControllerPublishVolume(attach)
    before = nodes(served, volume_id)
    assert before == []
    served.restart()
    assert nodes(served, volume_id) == before
    served.controller.ControllerPublishVolume(attach)
    with failing(served, tmp_path, "fsync", 1), refused(REFUSED, "Input/output error"):
        served.controller.ControllerUnpublishVolume(request)
    served.restart()
    assert nodes(served, volume_id) == ["node-1"]


def test_size(served: Driver, big_pool: Path, tmp_path: Path) -> None:
    """An expansion whose record could not be synchronised leaves the volume as it was."""
    volume_id = served.create("v", 16 * MIB, type="image").volume_id
    with failing(served, tmp_path, "fsync", 3), refused(REFUSED, "Input/output error"):
        served.expand(volume_id, 32 * MIB)
    served.restart()
    check_whole(served, big_pool)
    assert (big_pool / "volumes" / volume_id / "disk.img").stat().st_size == 16 * MIB
    assert served.expand(volume_id, 32 * MIB).capacity_bytes == 32 * MIB


def test_group(served: Driver, big_pool: Path, tmp_path: Path) -> None:
    """A group whose deletion could not be synchronised is there, with all its members."""
    volume_id = served.create("v", 16 * MIB, type="image").volume_id
    group = served.snapshot_group("g", volume_id)
    members = [item.snapshot_id for item in group.snapshots]
    with failing(served, tmp_path, "fsync", 1), refused(REFUSED, "Input/output error"):
        served.delete_group(group.group_snapshot_id, *members)
    check_whole(served, big_pool)
    served.restart()
    assert served.snapshots() == list(group.snapshots)
    served.delete_group(group.group_snapshot_id, *members)
    check_whole(served, big_pool)


@pytest.mark.parametrize("number", [1, 2])
def test_member(served: Driver, big_pool: Path, tmp_path: Path, number: int) -> None:
    """A group of which a member could not be deleted is there with all of them, or gone."""
    volumes = [served.create(name, 16 * MIB, type="image").volume_id for name in ("v", "w")]
    group = served.snapshot_group("g", *volumes)
    members = [item.snapshot_id for item in group.snapshots]
    fault = failing(served, tmp_path, "rename", number)
    with fault, contextlib.suppress(grpc.RpcError):
        served.delete_group(group.group_snapshot_id, *members)
    check_whole(served, big_pool)
    assert len(served.members(group.group_snapshot_id)) in {0, 2}
    served.restart()
    served.delete_group(group.group_snapshot_id, *members)
    assert served.snapshots() == []
    check_whole(served, big_pool)


def failing_at(
    driver: Driver,
    tmp_path: Path,
    call: str,
    word: str,
    play: Callable[[], None],
    act: Callable[[int], object],
) -> grpc.RpcError | None:
    """Let the last system call `call` with `word` in it fail in `act`; return what that raises.

    `play` shows where that call is. Which thread serves an RPC differs, and how many of the loop
    devices have files called alike: where another call has failed it is tried again.
    """
    for number in range(_ATTEMPTS):
        points = record(driver, Worker.RPC, tmp_path / "log", play, asking=True)
        there = [point for point in points if point.name == call and word in point.text]
        answer: grpc.RpcError | None = None
        if there:
            try:
                with failing(driver, tmp_path, call, there[-1].number):
                    act(number)
            except grpc.RpcError as error:
                answer = error
            lines = (tmp_path / "log").read_text().splitlines()
            if any("(INJECTED)" in line and word in line for line in lines):
                return answer
    pytest.fail(f"{call} {word} was not met in {_ATTEMPTS} attempts")


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_unwritten(served: Driver, big_pool: Path, tmp_path: Path, call: str) -> None:
    """Of the record of a group that could not be written nothing is left."""
    volume_id = served.create(uuid.uuid4().hex, 16 * MIB, type="image").volume_id

    def play() -> None:
        group = served.snapshot_group("g", volume_id)
        served.delete_group("g@node-1", *[item.snapshot_id for item in group.snapshots])

    def act(number: int) -> None:
        served.snapshot_group(f"g{number}", volume_id)

    answer: Any = failing_at(served, tmp_path, call, "pool/groups/.g", play, act)
    assert answer.code() is REFUSED
    check_whole(served, big_pool)


@pytest.mark.parametrize(("call", "word"), [("ioctl", ", FITHAW"), ("unlink", "pool/frozen/")])
def test_freezing(served: Driver, big_pool: Path, tmp_path: Path, call: str, word: str) -> None:
    """A filesystem that the kernel did not thaw at once is thawed, and its marker goes."""
    volume_id = served.create(uuid.uuid4().hex, 16 * MIB, type="image").volume_id

    def play() -> None:
        served.delete_snapshot(served.snapshot("s", volume_id).snapshot_id)

    def act(number: int) -> None:
        served.snapshot(f"t{number}", volume_id)

    with served.published(volume_id, tmp_path) as target:
        assert failing_at(served, tmp_path, call, word, play, act) is None
        check_whole(served, big_pool)
        run("timeout", "10", "touch", target / "file")


@pytest.mark.parametrize("number", [1, 2])
def test_deletion(served: Driver, big_pool: Path, tmp_path: Path, number: int) -> None:
    """A volume or snapshot that could not be deleted is there, with all that is in it."""
    volume_id = served.create("v", 16 * MIB, type="image").volume_id
    snapshot_id = served.snapshot("s", volume_id).snapshot_id
    with failing(served, tmp_path, "fsync", number), refused(REFUSED, "Input/output error"):
        served.delete(volume_id)
    with failing(served, tmp_path, "fsync", number), refused(REFUSED, "Input/output error"):
        served.delete_snapshot(snapshot_id)
    check_whole(served, big_pool)
    assert served.volume_ids() == [volume_id]
    with served.published(volume_id, tmp_path) as target:
        (target / "file").write_text("it can be used")
    copy = served.create("c", 16 * MIB, type="image", source=from_snapshot(snapshot_id))
    served.delete(copy.volume_id)
    served.delete_snapshot(snapshot_id)
    served.delete(volume_id)
    check_whole(served, big_pool)
    check_unused(big_pool)
