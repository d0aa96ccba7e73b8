"""Group snapshots of volumes on several nodes, as the controller takes them: all, or none."""

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from cluster import Cluster, cluster, controller
from driver import MIB, Driver, from_snapshot, refused
from rpc.conftest import code_of, on_disk, wait_for
from taker import Taker, calling

from pycsi.model import ids
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import groups_pb2 as groups

Code = grpc.StatusCode
FILES = {"type": "directory", "quota": "none"}
ODD = "c with spaces"
"""A node whose name cannot be a topology value, so that a digest stands for it."""

C = ids.segment(ODD)
NAMES = {"a": "a", "b": "b", C: ODD}
"""The nodes' names, by their topology segments."""

VOLUMES = [f"v@{C}", "v@a", "w@a", "v@b"]
GROUP = "g@a"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return three nodes with a volume each, the first with one more, and their controller."""
    with cluster(tmp_path_factory.mktemp("cluster"), *NAMES.values()) as found:
        for volume_id in VOLUMES:
            name, _, node = volume_id.partition("@")
            found.nodes[NAMES[node]].create(name, 4 * MIB, parameters=FILES)
        yield found


@pytest.fixture
def nodes(running: Cluster) -> Iterator[Cluster]:
    """Return the nodes; in the end there are no snapshots on them."""
    yield running
    for node in running.nodes.values():
        if node.process is None or node.process.poll() is not None:
            node.start()
    if running.controller.process is None or running.controller.process.poll() is not None:
        running.controller.start()
    delete_all(running)
    assert disks(running) == [VOLUMES_ON[name] for name in NAMES]


VOLUMES_ON = {
    name: {f"volumes/{item}" for item in VOLUMES if item.endswith(f"@{name}")} for name in NAMES
}


def disks(found: Cluster) -> list[set[str]]:
    return [on_disk(node) for node in found.nodes.values()]


def delete_all(found: Cluster) -> None:
    wait_for(lambda: code_of(found.controller.snapshots) is Code.OK, 30)
    members: dict[str, list[str]] = {}
    for snapshot in found.controller.snapshots():
        members.setdefault(snapshot.group_snapshot_id, []).append(snapshot.snapshot_id)
    for group_id, theirs in members.items():
        found.controller.delete_group(group_id, *theirs)


def get(driver: Driver, group_id: str, *members: str) -> csi.VolumeGroupSnapshot:
    group: csi.VolumeGroupSnapshot = driver.group.GetVolumeGroupSnapshot(
        csi.GetVolumeGroupSnapshotRequest(group_snapshot_id=group_id, snapshot_ids=members)
    ).group_snapshot
    return group


def members_of(group: csi.VolumeGroupSnapshot) -> list[str]:
    return [member.snapshot_id for member in group.snapshots]


def again(call: Any) -> Any:
    """Call until it succeeds: another operation may be under way, or a node be away."""
    found: list[Any] = []

    def ask() -> bool:
        try:
            found.append(call())
        except grpc.RpcError as error:
            failure: Any = error
            assert failure.code() in {Code.ABORTED, Code.UNAVAILABLE}, failure.details()
            return False
        return True

    wait_for(ask, 30)
    return found[0]


def test_group(nodes: Cluster) -> None:
    """A group is the same whenever it is asked for, until it goes with all its members."""
    driver, before = nodes.controller, disks(nodes)
    group = driver.snapshot_group("g", *VOLUMES)
    assert group.group_snapshot_id == GROUP
    assert group.ready_to_use
    assert [item.source_volume_id for item in group.snapshots] == VOLUMES
    assert [item.snapshot_id.partition("@")[2] for item in group.snapshots] == [C, "a", "a", "b"]
    assert {item.group_snapshot_id for item in group.snapshots} == {GROUP}
    assert {str(item.creation_time) for item in group.snapshots} == {str(group.creation_time)}
    assert all(item.ready_to_use for item in group.snapshots)
    assert driver.snapshot_group("g", *reversed(VOLUMES)) == group
    for node in nodes.nodes.values():
        node.restart(signal.SIGKILL)
    driver.restart(signal.SIGKILL)
    assert again(lambda: driver.snapshot_group("g", *VOLUMES)) == group
    assert get(driver, GROUP, *reversed(members_of(group))) == group
    assert sorted(members_of(group)) == sorted(item.snapshot_id for item in driver.snapshots())
    for member in members_of(group):
        with refused(Code.INVALID_ARGUMENT, GROUP):
            driver.delete_snapshot(member)
        copy = driver.create("r", 4 * MIB, parameters=FILES, source=from_snapshot(member))
        assert copy.volume_id.partition("@")[2] == member.partition("@")[2]
        driver.delete(copy.volume_id)
    for _ in range(3):
        driver.delete_group(GROUP, *members_of(group))
        assert disks(nodes) == before
    with refused(Code.NOT_FOUND):
        get(driver, GROUP, *members_of(group))
    with refused(Code.NOT_FOUND):
        get(driver, GROUP)


def test_group_on_one_node(nodes: Cluster) -> None:
    """A group on one node is as its node makes it, through the controller too."""
    driver = nodes.controller
    for volumes in (["v@b"], ["v@a", "w@a"]):
        group = driver.snapshot_group("g", *volumes)
        local = nodes.nodes[volumes[0][-1]]
        assert local.snapshot_group("g", *volumes) == group
        assert get(driver, group.group_snapshot_id, *members_of(group)) == group
        with refused(Code.ALREADY_EXISTS, "volumes"):
            driver.snapshot_group("g", *VOLUMES)
        with refused(Code.INVALID_ARGUMENT):
            driver.delete_group(group.group_snapshot_id, *members_of(group), f"member-x@{C}")
        driver.delete_group(group.group_snapshot_id, *members_of(group))
        assert driver.snapshots() == []


def test_members_must_be_named(nodes: Cluster) -> None:
    """Who deletes or asks for a group names its members."""
    driver = nodes.controller
    group = driver.snapshot_group("g", *VOLUMES)
    members = members_of(group)
    for wrong in ([], members[:2], members[1:3], [*members, "x@gone"], [*members, "../x"]):
        for call in (Driver.delete_group, get):
            with refused(Code.INVALID_ARGUMENT, members[0]):
                call(driver, GROUP, *wrong)
    assert get(driver, GROUP, *members) == group


def test_other_groups(nodes: Cluster) -> None:
    """A name stands for one group of volumes, with one set of parameters."""
    driver = nodes.controller
    group = driver.snapshot_group("g", *VOLUMES)
    for others in (VOLUMES[:3], VOLUMES[1:], ["v@b", f"v@{C}"], ["v@a"], ["v@b"]):
        with refused(Code.ALREADY_EXISTS):
            driver.snapshot_group("g", *others)
    other = csi.CreateVolumeGroupSnapshotRequest(
        name="g", source_volume_ids=VOLUMES, parameters={"consistency": "files"}
    )
    assert code_of(lambda: driver.group.CreateVolumeGroupSnapshot(other)) is Code.ALREADY_EXISTS
    second = driver.snapshot_group("h", *VOLUMES)
    assert not set(members_of(group)) & set(members_of(second))
    assert driver.snapshot_group("g", *VOLUMES) == group


@pytest.mark.parametrize(
    ("name", "more", "code"),
    [
        ("", [], Code.INVALID_ARGUMENT),
        ("x" * 129, [], Code.INVALID_ARGUMENT),
        ("g", ["gone@a"], Code.NOT_FOUND),
        ("g", ["gone@b"], Code.NOT_FOUND),
        ("g", ["gone"], Code.NOT_FOUND),
        ("g", ["../v@a"], Code.NOT_FOUND),
        ("g", ["v@gone"], Code.UNAVAILABLE),
        ("g", ["v@a"], Code.INVALID_ARGUMENT),
        ("g", [""], Code.INVALID_ARGUMENT),
    ],
)
def test_groups_that_cannot_be(nodes: Cluster, name: str, more: list[str], code: object) -> None:
    """A group that cannot be taken leaves nothing on any node."""
    before = disks(nodes)
    assert code_of(lambda: nodes.controller.snapshot_group(name, *VOLUMES, *more)) is code
    assert disks(nodes) == before
    assert nodes.controller.snapshots() == []


def test_node_that_is_away(nodes: Cluster) -> None:
    """Without one of the nodes nothing is taken, and nothing is deleted; its name is told."""
    driver, away = nodes.controller, nodes.nodes["b"]
    before = disks(nodes)
    away.stop()
    with refused(Code.UNAVAILABLE, "node b"):
        driver.snapshot_group("g", *VOLUMES)
    assert disks(nodes) == before
    away.start()
    group = again(lambda: driver.snapshot_group("g", *VOLUMES))
    taken = disks(nodes)
    away.stop()
    with refused(Code.UNAVAILABLE, "node b"):
        driver.delete_group(GROUP, *members_of(group))
    with refused(Code.UNAVAILABLE, "node b"):
        get(driver, GROUP, *members_of(group))
    assert disks(nodes) == taken
    away.start()
    again(lambda: driver.delete_group(GROUP, *members_of(group)))
    assert disks(nodes) == before


@pytest.mark.parametrize("name", NAMES.values())
def test_node_that_does_not_answer(nodes: Cluster, name: str) -> None:
    """When the caller's deadline passes everything is undone; a retry takes the group."""
    stopped, before = nodes.nodes[name], disks(nodes)
    assert stopped.process is not None
    stopped.process.send_signal(signal.SIGSTOP)
    request = csi.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=VOLUMES)
    with refused(Code.DEADLINE_EXCEEDED):
        nodes.controller.group.CreateVolumeGroupSnapshot(request, timeout=1)
    stopped.process.send_signal(signal.SIGCONT)
    wait_for(lambda: disks(nodes) == before)
    group = again(lambda: nodes.controller.snapshot_group("g", *VOLUMES))
    assert len(nodes.controller.snapshots()) == len(group.snapshots) == len(VOLUMES)


def test_deleted_in_part(nodes: Cluster) -> None:
    """A group that is deleted in part is never described; deleting it again completes that."""
    driver, before = nodes.controller, disks(nodes)
    for gone in (["b"], [ODD], ["b", ODD]):
        group = driver.snapshot_group("g", *VOLUMES)
        for name in gone:
            with calling(nodes.nodes[name], nodes.tls) as stub:
                found = stub.GetPart(groups.GetPartRequest(group_snapshot_id=GROUP)).part
                stub.DeletePart(
                    groups.DeletePartRequest(group_snapshot_id=GROUP, attempt=found.attempt)
                )
        with refused(Code.FAILED_PRECONDITION, "delete it again"):
            get(driver, GROUP, *members_of(group))
        with refused(Code.FAILED_PRECONDITION, "delete it again"):
            driver.snapshot_group("g", *VOLUMES)
        with refused(Code.INVALID_ARGUMENT):
            driver.delete_group(GROUP, *members_of(group)[:1])
        driver.delete_group(GROUP, *members_of(group))
        assert disks(nodes) == before


@contextlib.contextmanager
def takers(found: Cluster, *names: str) -> Iterator[list[Taker]]:
    """Prepare the parts of a group on some of the nodes, as a controller that then is killed."""
    with contextlib.ExitStack() as opened:
        stubs = [opened.enter_context(calling(found.nodes[name], found.tls)) for name in names]
        made = [opened.enter_context(Taker(stub, GROUP, *VOLUMES)) for stub in stubs]
        for taker in made:
            taker.attempt = made[0].attempt
            taker.up_to("prepare")
        yield made


@pytest.mark.parametrize("how", ["by itself", "by a retry", "by another group"])
@pytest.mark.parametrize("committed", [False, True])
def test_parts_in_doubt(nodes: Cluster, how: str, committed: bool) -> None:
    """What a controller left prepared is committed if the coordinator has committed, or undone."""
    driver, before = nodes.controller, disks(nodes)
    driver.stop(signal.SIGKILL)
    with takers(nodes, *NAMES.values()) as made:
        if committed:
            made[0].step("commit")
    driver.start()
    count = len(VOLUMES) if committed else 0
    if how == "by itself":
        wait_for(lambda: len(driver.snapshots()) == count and not in_doubt(nodes), 30)
    elif how == "by a retry":
        group = again(lambda: driver.snapshot_group("g", *VOLUMES))
        assert len(driver.snapshots()) == len(VOLUMES)
        assert get(driver, GROUP, *members_of(group)) == group
        driver.delete_group(GROUP, *members_of(group))
        count = 0
    else:
        call = lambda: driver.snapshot_group("g", "v@b", f"v@{C}")  # noqa: E731
        if committed:
            wait_for(lambda: code_of(call) is Code.ALREADY_EXISTS, 30)
        else:
            assert again(call).group_snapshot_id == "g@b"
            delete_all(nodes)
    if not count:
        wait_for(lambda: disks(nodes) == before)
    assert len(driver.snapshots()) == count


def in_doubt(found: Cluster) -> bool:
    for node in found.nodes.values():
        with calling(node, found.tls) as stub:
            if stub.ListPrepared(groups.ListPreparedRequest()).entries:
                return True
    return False


def test_takes_at_once(nodes: Cluster) -> None:
    """Takes of the same volumes do not wait for each other for ever, nor does one disturb another.

    Two controllers can take the same group: one is told to try again, or both take the same.
    """
    other = controller(nodes.folder / "other", nodes.tls, nodes.nodes)
    other.folder.parent.mkdir()
    with other, ThreadPoolExecutor(8) as pool:
        drivers = [nodes.controller, other]
        calls = [
            pool.submit(
                again, lambda name=name, driver=driver: driver.snapshot_group(name, *VOLUMES)
            )
            for name in ("g", "h", "i")
            for driver in drivers
        ]
        taken = [call.result() for call in calls]
    assert taken[::2] == taken[1::2]
    assert len(nodes.controller.snapshots()) == 3 * len(VOLUMES)
