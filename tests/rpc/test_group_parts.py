"""A node's part of a group over several nodes: taken step by step, committed or gone."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import NodeDriver, make_certificates
from driver import MIB, from_snapshot, refused
from rpc.conftest import limited_pool, on_disk, wait_for
from taker import POINT_IN_TIME, STEPS, Taker, calling

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import groups_pb2 as groups

Code = grpc.StatusCode
FILES = {"type": "directory", "quota": "none"}
COORDINATOR, OTHER = "a", "b"
GROUP = "g@a"
VOLUMES = ("v@a", "v@b", "w@a", "w@b")
ANSWERS = ("ready", "frozen", "captured", "prepared", "committed")


@pytest.fixture(params=[COORDINATOR, OTHER])
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of the node: of the coordinator, or of the other one."""
    return str(request.param)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates") / "tls")


@pytest.fixture
def node(name: str, tmp_path: Path, pool: Path, tls: Path) -> Iterator[NodeDriver]:
    """Return one of the nodes, with two of the volumes."""
    limited = limited_pool("default", pool, 256 * MIB)
    with NodeDriver(name, tmp_path / name, [limited], tls) as driver:
        for volume in ("v", "w"):
            driver.create(volume, 4 * MIB, parameters=FILES)
        yield driver


@pytest.fixture
def stub(node: NodeDriver, tls: Path) -> Iterator[Any]:
    with calling(node, tls) as found:
        yield found


def prepared(stub: Any) -> list[tuple[str, str]]:
    answer = stub.ListPrepared(groups.ListPreparedRequest())
    return [(item.group_snapshot_id, item.attempt) for item in answer.entries]


def finish(stub: Any, taker: Taker, *, commit: bool) -> groups.Part:
    request = groups.FinishPartRequest(
        group_snapshot_id=GROUP, attempt=taker.attempt, commit=commit
    )
    part: groups.Part = stub.FinishPart(request).part
    return part


def decision(stub: Any, taker: Taker) -> bool:
    request = groups.GetDecisionRequest(group_snapshot_id=GROUP, attempt=taker.attempt)
    return bool(stub.GetDecision(request, wait_for_ready=True).committed)


def part(stub: Any) -> groups.Part | None:
    answer = stub.GetPart(groups.GetPartRequest(group_snapshot_id=GROUP), wait_for_ready=True)
    return answer.part if answer.HasField("part") else None


def left(stub: Any) -> groups.Part | None:
    """Return the part that there is once no take is under way."""

    def is_over() -> bool:
        try:
            part(stub)
        except grpc.RpcError as error:
            failure: Any = error
            assert failure.code() is Code.ABORTED
            return False
        return True

    wait_for(is_over)
    return part(stub)


def test_part(node: NodeDriver, stub: Any) -> None:
    """The snapshots are there when the part is committed, and not before."""
    with Taker(stub, GROUP, *VOLUMES) as taker:
        for step, wanted in zip(STEPS, ANSWERS, strict=True):
            assert node.snapshots() == []
            answer = taker.step(step)
            assert answer.WhichOneof("step") == wanted
    found = answer.committed
    assert list(found.source_volume_ids) == list(VOLUMES)
    assert found.attempt == taker.attempt
    assert node.snapshots() == sorted(found.snapshots, key=lambda item: item.snapshot_id)
    assert {item.source_volume_id for item in found.snapshots} == {
        f"v@{node.name}",
        f"w@{node.name}",
    }
    for item in found.snapshots:
        assert item.group_snapshot_id == GROUP
        assert item.creation_time.ToNanoseconds() == int(POINT_IN_TIME * 10**9)
        with refused(Code.INVALID_ARGUMENT, GROUP):
            node.delete_snapshot(item.snapshot_id)
    node.restart(signal.SIGKILL)
    assert part(stub) == found
    with Taker(stub, GROUP, *VOLUMES) as again:
        if node.name == COORDINATOR:
            assert again.step("begin").found == found
            assert decision(stub, taker)
            assert not decision(stub, again)
        else:
            with refused(Code.FAILED_PRECONDITION, "a has none"):
                again.step("begin")
            assert finish(stub, taker, commit=True) == found
            with refused(Code.FAILED_PRECONDITION, "committed"):
                finish(stub, taker, commit=False)


@pytest.mark.parametrize("last", STEPS[:3])
def test_stream_that_breaks(node: NodeDriver, stub: Any, last: str) -> None:
    """Before it is prepared a part leaves nothing, whatever its node is."""
    before, room = on_disk(node), node.capacity().available_capacity
    with Taker(stub, GROUP, *VOLUMES) as taker:
        taker.up_to(last)
        with refused(Code.ABORTED):
            part(stub)
    assert left(stub) is None
    assert on_disk(node) == before
    assert node.capacity().available_capacity == room
    with Taker(stub, GROUP, *VOLUMES) as again:
        assert again.up_to("commit").committed.attempt == again.attempt
    if node.name == COORDINATOR:
        assert not decision(stub, taker)


@pytest.mark.parametrize("end", ["hang up", "stop", "kill"])
def test_prepared_part(node: NodeDriver, stub: Any, end: str) -> None:
    """Of a prepared part the coordinator's is undone, another's stays until it is finished."""
    before, room = on_disk(node), node.capacity().available_capacity
    with Taker(stub, GROUP, *VOLUMES) as taker:
        taker.up_to("prepare")
        assert node.snapshots() == []
        if end == "kill":
            node.restart(signal.SIGKILL)
    if end == "stop":
        node.restart()
    found = left(stub)
    assert node.snapshots() == []
    if node.name == COORDINATOR:
        assert found is None
        assert on_disk(node) == before
        assert node.capacity().available_capacity == room
        assert not decision(stub, taker)
        return
    assert found is not None
    assert found.prepared
    assert prepared(stub) == [(GROUP, taker.attempt)]
    assert len(on_disk(node) - before) == 3
    member = next(iter(on_disk(node) - before - {f"groups/{GROUP}.json"})).removeprefix(
        "snapshots/"
    )
    with refused(Code.NOT_FOUND):
        node.create("r", 4 * MIB, parameters=FILES, source=from_snapshot(member))
    node.delete_snapshot(member)
    for _ in range(2):
        committed = finish(stub, taker, commit=True)
        assert {item.snapshot_id for item in node.snapshots()} == {
            item.snapshot_id for item in committed.snapshots
        }
        assert prepared(stub) == []
        node.restart(signal.SIGKILL)
        assert part(stub) == committed
    node.create("r", 4 * MIB, parameters=FILES, source=from_snapshot(member))


@pytest.mark.parametrize("name", [OTHER], indirect=True)
def test_prepared_part_that_is_undone(node: NodeDriver, stub: Any) -> None:
    """An aborted part leaves nothing; another take is told of it, and does not touch it."""
    before, room = on_disk(node), node.capacity().available_capacity
    with Taker(stub, GROUP, *VOLUMES) as taker:
        taker.up_to("prepare")
    left(stub)
    assert node.capacity().available_capacity <= room
    for _ in range(2):
        finish(stub, taker, commit=False)
        assert on_disk(node) == before
        assert node.capacity().available_capacity == room
    with refused(Code.NOT_FOUND):
        finish(stub, taker, commit=True)
    with Taker(stub, GROUP, *VOLUMES) as second:
        second.up_to("prepare")
    left(stub)
    with Taker(stub, GROUP, *VOLUMES) as third:
        assert third.step("begin").found == left(stub)
    assert prepared(stub) == [(GROUP, second.attempt)]
    finish(stub, second, commit=False)
    with Taker(stub, GROUP, *VOLUMES) as third:
        assert third.up_to("commit").committed.attempt == third.attempt
    for stale in (taker, second):
        stub.DeletePart(groups.DeletePartRequest(group_snapshot_id=GROUP, attempt=stale.attempt))
    assert len(node.snapshots()) == 2
    for _ in range(2):
        stub.DeletePart(groups.DeletePartRequest(group_snapshot_id=GROUP, attempt=third.attempt))
    assert on_disk(node) == before


@pytest.mark.parametrize("name", [COORDINATOR], indirect=True)
def test_undecided(node: NodeDriver, stub: Any) -> None:
    """While a take is under way nobody is told what becomes of it."""
    with Taker(stub, GROUP, *VOLUMES) as taker:
        taker.up_to("prepare")
        with refused(Code.ABORTED):
            decision(stub, taker)
        with Taker(stub, GROUP, *VOLUMES) as other, refused(Code.ABORTED):
            other.step("begin")
        taker.step("commit")
    assert decision(stub, taker)


def test_what_the_socket_says(node: NodeDriver, stub: Any) -> None:
    """The kubelet's socket neither serves parts nor takes a part for a group."""
    with Taker(stub, GROUP, *VOLUMES) as taker:
        taker.up_to("prepare")
        with refused(Code.ABORTED):
            node.delete_group(GROUP)
        members = [item.snapshot_id for item in taker.step("commit").committed.snapshots]
    with refused(Code.FAILED_PRECONDITION, "controller"):
        node.delete_group(GROUP, *members)
    with refused(Code.FAILED_PRECONDITION, "controller"):
        node.group.GetVolumeGroupSnapshot(
            csi.GetVolumeGroupSnapshotRequest(group_snapshot_id=GROUP, snapshot_ids=members)
        )
    with refused(Code.ALREADY_EXISTS):
        node.snapshot_group("g", f"v@{node.name}")
    local: Any = node.channel.unary_unary("/pycsi.v1.GroupParts/ListPrepared")
    with refused(Code.UNIMPLEMENTED):
        local(b"")


@pytest.mark.parametrize("name", [OTHER], indirect=True)
def test_another_coordinator(node: NodeDriver, stub: Any) -> None:
    """A name stands for one group, whoever coordinates it."""
    with Taker(stub, GROUP, *VOLUMES) as taker:
        taker.up_to("prepare")
    left(stub)
    other = ("g@b", "v@b", "v@c")
    with Taker(stub, *other) as second, refused(Code.ABORTED, "controller"):
        second.step("begin")
    with refused(Code.ABORTED, "controller"):
        node.snapshot_group("g", "v@b")
    finish(stub, taker, commit=True)
    with Taker(stub, *other) as second, refused(Code.ALREADY_EXISTS, GROUP):
        second.step("begin")
    with refused(Code.ALREADY_EXISTS, GROUP):
        node.snapshot_group("g", "v@b")


def begin(**fields: Any) -> groups.TakePartRequest:
    given: dict[str, Any] = {"name": "g", "attempt": "1", "source_volume_ids": VOLUMES} | fields
    group_id = given.pop("group_snapshot_id", GROUP)
    return groups.TakePartRequest(
        group_snapshot_id=group_id, begin=groups.TakePartRequest.Begin(**given)
    )


WRONG = [
    (begin(attempt=""), Code.INVALID_ARGUMENT),
    (begin(name=""), Code.INVALID_ARGUMENT),
    (begin(name="h"), Code.INVALID_ARGUMENT),
    (begin(group_snapshot_id="g@b"), Code.INVALID_ARGUMENT),
    (begin(group_snapshot_id="../g@a"), Code.INVALID_ARGUMENT),
    (begin(source_volume_ids=[]), Code.INVALID_ARGUMENT),
    (begin(source_volume_ids=["v@a", "v@b", "v@a"]), Code.INVALID_ARGUMENT),
    (begin(source_volume_ids=["v@a", "v@b", ""]), Code.INVALID_ARGUMENT),
    (begin(source_volume_ids=["v@a", "v@b", "../x"]), Code.NOT_FOUND),
    (begin(source_volume_ids=["v@a", "v@b", "x@a", "x@b"]), Code.NOT_FOUND),
    (begin(source_volume_ids=["v@a"]), Code.INVALID_ARGUMENT),
    (begin(source_volume_ids=["v@c", "v@d"]), Code.INVALID_ARGUMENT),
    (begin(parameters={"consistency": "none"}), Code.INVALID_ARGUMENT),
    (begin(parameters={"a": "b" * 5000}), Code.INVALID_ARGUMENT),
    (groups.TakePartRequest(), Code.INVALID_ARGUMENT),
    (groups.TakePartRequest(commit=groups.TakePartRequest.Commit()), Code.INVALID_ARGUMENT),
]


def test_wrong_beginnings(node: NodeDriver, stub: Any) -> None:
    """What cannot be a part is refused, and leaves nothing."""
    before = on_disk(node)
    for wrong, code in WRONG:
        with Taker(stub, GROUP) as taker:
            with pytest.raises(grpc.RpcError) as caught:
                taker.say(wrong)
            failure: Any = caught.value
            assert failure.code() is code, wrong
            assert failure.details()
        assert left(stub) is None
    assert on_disk(node) == before


@pytest.mark.parametrize("name", [OTHER], indirect=True)
def test_steps_out_of_order(node: NodeDriver, stub: Any) -> None:
    """Each step has its turn; a wrong one ends the take."""
    before = on_disk(node)
    for number, wanted in enumerate(STEPS[1:]):
        for wrong in {*STEPS} - {wanted}:
            with Taker(stub, GROUP, *VOLUMES) as taker:
                taker.up_to(STEPS[number])
                with refused(Code.INVALID_ARGUMENT, wanted):
                    taker.step(wrong)
            found = left(stub)
            if found is not None:
                assert wanted == "commit"
                finish(stub, taker, commit=False)
    assert on_disk(node) == before
    kind = groups.TakePartRequest
    for created in (float("nan"), float("inf"), 0, -1):
        with Taker(stub, GROUP, *VOLUMES) as taker:
            taker.up_to("freeze")
            with refused(Code.INVALID_ARGUMENT, "created"):
                taker.say(kind(capture=kind.Capture(created=created)))
    assert left(stub) is None
    assert on_disk(node) == before


@pytest.mark.parametrize("committed", [0, 1])
def test_part_in_two_pools(name: str, tmp_path: Path, tls: Path, committed: int) -> None:
    """A part that a crash has left committed in one pool is committed in both.

    The same holds where one of the pools is back only later.
    """
    pools = [tmp_path / "one", tmp_path / "two"]
    for pool in pools:
        pool.mkdir()
    given = [f"{pool.name}={pool}" for pool in pools]
    with NodeDriver(name, tmp_path / name, given, tls) as driver, calling(driver, tls) as stub:
        for volume, pool in zip(("v", "w"), pools, strict=True):
            driver.create(volume, 4 * MIB, parameters=FILES, pool=pool.name)
        records = [pool / "groups" / f"{GROUP}.json" for pool in pools]
        with Taker(stub, GROUP, *VOLUMES) as taker:
            taker.up_to("prepare")
            undecided = [record.read_bytes() for record in records]
            found = taker.step("commit").committed
        driver.stop(signal.SIGKILL)
        records[1 - committed].write_bytes(undecided[1 - committed])
        driver.start()
        assert part(stub) == found
        assert len(driver.snapshots()) == 2
        driver.stop(signal.SIGKILL)
        records[1 - committed].write_bytes(undecided[1 - committed])
        pools[committed].rename(tmp_path / "away")
        driver.start()
        with refused(Code.FAILED_PRECONDITION, "missing"):
            decision(stub, taker) if name == COORDINATOR else finish(stub, taker, commit=True)
        assert driver.snapshots() == []
        (tmp_path / "away").rename(pools[committed])
        wait_for(lambda: len(driver.snapshots()) == 2)
        assert part(stub) == found
