"""Group snapshots of volumes in use on several nodes: one point in time, nothing stays frozen."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import recorder
from conftest import FilesystemFactory
from driver import GIB, MIB, block_capability, from_snapshot, refused
from relay import Relayed, relayed
from rpc.conftest import code_of, on_disk, wait_for

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
LIMIT = 3.0
GROUNDS = {"a": "xfs", "b": "btrfs", "c": "ext4"}


@pytest.fixture
def three(filesystem: FilesystemFactory, tmp_path: Path) -> Iterator[Relayed]:
    """Return three nodes with pools on different filesystems, and their controller."""
    pools = {name: filesystem(kind, 2 * GIB) for name, kind in GROUNDS.items()}
    with relayed(tmp_path, pools, f",freeze-limit={LIMIT:g}s") as found:
        yield found


def create(three: Relayed, *names: str) -> list[str]:
    """Create an image on each of the named nodes."""
    return [three.nodes[name].create("v", 64 * MIB, type="image").volume_id for name in names]


def disks(three: Relayed) -> list[set[str]]:
    return [on_disk(node) for node in three.nodes.values()]


def writable_within(target: Path, seconds: float) -> bool:
    """Tell whether a file can be made in time: a frozen filesystem lets nobody begin."""
    begin = f"open({str(target / 'probe')!r}, 'w').write('x')"
    writer = subprocess.Popen([sys.executable, "-S", "-c", begin])
    try:
        return writer.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        writer.kill()
        return False


@contextlib.contextmanager
def recording(*files: Path) -> Iterator[None]:
    """Write numbered records to the files, in turns and each durably, during the `with` block."""
    with subprocess.Popen([sys.executable, recorder.__file__, *files]) as writer:
        try:
            wait_for(lambda: all(file.exists() and file.stat().st_size for file in files))
            yield
        finally:
            writer.kill()


def recorded(three: Relayed, snapshot_id: str) -> list[int]:
    """Return the records in a snapshot's file."""
    node = three.of(snapshot_id)
    copy = node.create("copy", 64 * MIB, type="image", source=from_snapshot(snapshot_id))
    with node.published(copy.volume_id, three.folder) as target:
        found = recorder.records(target / "records")
    node.delete(copy.volume_id)
    return found


def test_one_point_in_time(three: Relayed) -> None:
    """A copy that has a record has all that were written before, to whatever node."""
    volumes = create(three, *GROUNDS)
    with three.published(*volumes) as targets:
        for number in range(6):
            files = [target / "records" for target in targets]
            with recording(*files):
                time.sleep(0.2 * number)
                group = three.controller.snapshot_group(f"g{number}", *volumes)
                time.sleep(0.1)
            found = [recorded(three, item.snapshot_id) for item in group.snapshots]
            everything = sorted(record for part in found for record in part)
            assert everything == list(range(len(everything)))
            assert all(found)
            for file in files:
                file.unlink()
            three.controller.delete_group(
                group.group_snapshot_id, *(item.snapshot_id for item in group.snapshots)
            )


def test_volumes_that_cannot_be_frozen(three: Relayed) -> None:
    """Of volumes in use that cannot be frozen there is one in a group, on all nodes together."""
    raw = [
        three.nodes[name].create("r", 16 * MIB, capability=block_capability()).volume_id
        for name in ("a", "b")
    ]
    (image,) = create(three, "c")
    before = disks(three)
    with three.published(image):
        with three.published(*raw, capability=block_capability()):
            with refused(Code.FAILED_PRECONDITION, *raw):
                three.controller.snapshot_group("g", *raw, image)
            wait_for(lambda: disks(three) == before)
        with three.published(raw[1], capability=block_capability()):
            group = three.controller.snapshot_group("g", *raw, image)
    assert [item.source_volume_id for item in group.snapshots] == [*raw, image]


@pytest.mark.parametrize("how", ["stopped", "cut off"])
def test_freeze_that_nobody_ends(three: Relayed, how: str) -> None:
    """If the controller stops in the midst of a freeze, all nodes thaw by themselves, in time.

    The take fails, and nothing is left of it; a retry takes the group.
    """
    volumes = create(three, *GROUNDS)
    before = disks(three)
    process = three.controller.process
    assert process is not None
    stopped_at: list[float] = []

    def act() -> bool:
        if three.are_frozen(*volumes) and not stopped_at:
            stopped_at.append(time.monotonic())
            if how == "stopped":
                process.send_signal(signal.SIGSTOP)
        return how == "stopped" or not stopped_at

    with three.published(*volumes) as targets, ThreadPoolExecutor(1) as pool:
        three.watch.begin(1, act)
        taking = pool.submit(three.controller.snapshot_group, "g", *volumes)
        wait_for(lambda: bool(stopped_at))
        for target in targets:
            left = stopped_at[0] + LIMIT + 2 - time.monotonic()
            assert writable_within(target, left), f"{target} is frozen"
        assert not three.are_frozen(volumes[0])
        three.watch.begin()
        process.send_signal(signal.SIGCONT)
        with pytest.raises(grpc.RpcError) as caught:
            taking.result()
        failure: object = caught.value
        assert isinstance(failure, grpc.Call)
        assert failure.code() in {Code.FAILED_PRECONDITION, Code.UNAVAILABLE, Code.ABORTED}
        wait_for(lambda: disks(three) == before)
        group = retried(three, *volumes)
        assert len(three.controller.snapshots()) == len(group.snapshots) == 3


def retried(three: Relayed, *volume_ids: str) -> csi.VolumeGroupSnapshot:
    """Take the group as a sidecar does: until it succeeds."""
    taken: list[csi.VolumeGroupSnapshot] = []

    def take() -> bool:
        with contextlib.suppress(grpc.RpcError):
            taken.append(three.controller.snapshot_group("g", *volume_ids))
        return bool(taken)

    wait_for(take, 30)
    return taken[0]


def test_caller_that_hangs_up(three: Relayed) -> None:
    """At whatever moment the caller hangs up, there is a whole group, or nothing."""
    volumes = create(three, *GROUNDS)
    before = disks(three)
    outcomes = set()
    with three.published(*volumes) as targets:
        for at in range(1, 60, 3):
            hung_up = hanging_up(three, at, *volumes)
            wait_for(lambda: not three.in_doubt() and not three.are_frozen(volumes[0]))
            for target in targets:
                assert writable_within(target, 5)
            members = [item.snapshot_id for item in settled(three)]
            outcomes.add((hung_up, len(members)))
            if members:
                three.controller.delete_group("g@a", *members)
            wait_for(lambda: disks(three) == before)
    # How many pieces come before the coordinator's commit, and how many after, is gRPC's matter.
    assert outcomes <= {(True, 0), (True, 3), (False, 3)}, outcomes
    assert {members for _, members in outcomes} == {0, 3}, outcomes


def hanging_up(three: Relayed, at: int, *volume_ids: str) -> bool:
    """Take the group, and hang up before piece `at` is passed on; tell whether that was so."""
    request = csi.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=volume_ids)
    taking: list[grpc.Future[csi.CreateVolumeGroupSnapshotResponse]] = []
    hung_up: list[bool] = []

    def act() -> bool:
        if taking and not hung_up:
            hung_up.append(taking[0].cancel())
        return True

    three.watch.begin(at, act)
    taking.append(three.controller.group.CreateVolumeGroupSnapshot.future(request))
    with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
        taking[0].result()
    return any(hung_up)


def settled(three: Relayed) -> list[csi.Snapshot]:
    """Return the snapshots once no take is under way any more: all, or none."""
    request = csi.GetVolumeGroupSnapshotRequest(group_snapshot_id="g@a")
    get = three.controller.group.GetVolumeGroupSnapshot
    wait_for(lambda: code_of(lambda: get(request)) is not Code.ABORTED)
    wait_for(lambda: len(three.controller.snapshots()) in {0, 3})
    return three.controller.snapshots()
