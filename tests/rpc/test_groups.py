"""The GroupController: all or nothing, the same ids for ever, members that belong together."""

from collections.abc import Callable, Iterator

import grpc
import pytest
from driver import MIB, Driver, from_snapshot, refused
from rpc.conftest import code_of, on_disk, on_node

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
FILES = {"type": "directory", "quota": "none"}


@pytest.fixture
def volumes(shared: Driver) -> Iterator[list[str]]:
    """Return three volumes; all is deleted afterwards."""
    yield [shared.create(f"v{n}", 4 * MIB, parameters=FILES).volume_id for n in range(3)]
    for snapshot in shared.snapshots():
        if snapshot.group_snapshot_id:
            members = [
                item.snapshot_id
                for item in shared.snapshots()
                if item.group_snapshot_id == snapshot.group_snapshot_id
            ]
            shared.delete_group(snapshot.group_snapshot_id, *members)
        shared.delete_snapshot(snapshot.snapshot_id)
    for volume_id in shared.volume_ids():
        shared.delete(volume_id)


def get(driver: Driver, group_id: str, *members: str) -> csi.VolumeGroupSnapshot:
    group: csi.VolumeGroupSnapshot = driver.group.GetVolumeGroupSnapshot(
        csi.GetVolumeGroupSnapshotRequest(group_snapshot_id=group_id, snapshot_ids=members)
    ).group_snapshot
    return group


def ids(group: csi.VolumeGroupSnapshot) -> list[str]:
    return [member.snapshot_id for member in group.snapshots]


def test_group(shared: Driver, volumes: list[str]) -> None:
    """A group is the same whenever it is asked for, until it goes with all its members."""
    before = on_disk(shared)
    group = shared.snapshot_group("g", *volumes)
    assert group.ready_to_use
    assert [member.source_volume_id for member in group.snapshots] == volumes
    assert {member.group_snapshot_id for member in group.snapshots} == {group.group_snapshot_id}
    assert {str(member.creation_time) for member in group.snapshots} == {str(group.creation_time)}
    assert all(member.ready_to_use for member in group.snapshots)
    here = on_node("node-1").requisite
    assert all(member.accessible_topology == here for member in group.snapshots)
    assert shared.snapshot_group("g", *volumes) == group
    assert shared.snapshot_group("g", *reversed(volumes)) == group
    shared.restart()
    assert shared.snapshot_group("g", *volumes) == group
    assert get(shared, group.group_snapshot_id, *ids(group)) == group
    assert sorted(ids(group)) == [item.snapshot_id for item in shared.snapshots()]
    for member in ids(group):
        with refused(Code.INVALID_ARGUMENT, group.group_snapshot_id):
            shared.delete_snapshot(member)
        source = from_snapshot(member)
        copy = shared.create(f"r-{member}", 4 * MIB, parameters=FILES, source=source)
        assert copy.content_source == source
        shared.delete(copy.volume_id)
    for _ in range(3):
        shared.delete_group(group.group_snapshot_id, *ids(group))
    assert on_disk(shared) == before
    with refused(Code.NOT_FOUND):
        get(shared, group.group_snapshot_id, *ids(group))


def test_members_must_be_named(shared: Driver, volumes: list[str]) -> None:
    """Who deletes or asks for a group names its members."""
    group = shared.snapshot_group("g", *volumes)
    members = ids(group)
    for wrong in ([], members[:2], [*members, "other@node-1"]):
        for call in (Driver.delete_group, get):
            with refused(Code.INVALID_ARGUMENT, members[0]):
                call(shared, group.group_snapshot_id, *wrong)
    assert get(shared, group.group_snapshot_id, *reversed(members)) == group


def test_other_groups(shared: Driver, volumes: list[str]) -> None:
    """A name stands for one group of volumes, with one set of parameters."""
    group = shared.snapshot_group("g", *volumes)
    for others in (volumes[:2], [volumes[0]]):
        with refused(Code.ALREADY_EXISTS, "volumes"):
            shared.snapshot_group("g", *others)
    other = csi.CreateVolumeGroupSnapshotRequest(
        name="g", source_volume_ids=volumes, parameters={"consistency": "files"}
    )
    assert code_of(lambda: shared.group.CreateVolumeGroupSnapshot(other)) is Code.ALREADY_EXISTS
    second = shared.snapshot_group("h", *volumes)
    assert not set(ids(group)) & set(ids(second))


def test_deletion_policy_among_the_parameters(shared: Driver, volumes: list[str]) -> None:
    """The class's own field decides nothing where a client repeats it among the parameters."""
    request = csi.CreateVolumeGroupSnapshotRequest(
        name="g", source_volume_ids=volumes, parameters={"deletionPolicy": "Retain"}
    )
    group = shared.group.CreateVolumeGroupSnapshot(request).group_snapshot
    shared.delete_group(group.group_snapshot_id, *ids(group))
    assert not shared.snapshots()


@pytest.mark.parametrize(
    ("name", "more", "code"),
    [
        ("", [], Code.INVALID_ARGUMENT),
        ("x" * 129, [], Code.INVALID_ARGUMENT),
        ("g", ["gone@node-1"], Code.NOT_FOUND),
        ("g", ["gone@node-2"], Code.NOT_FOUND),
        ("g", ["v0@node-1"], Code.INVALID_ARGUMENT),
        ("g", [""], Code.INVALID_ARGUMENT),
    ],
)
def test_groups_that_cannot_be(
    shared: Driver, volumes: list[str], name: str, more: list[str], code: object
) -> None:
    """A group that cannot be taken leaves nothing, not even of those members that could."""
    before = on_disk(shared)
    assert code_of(lambda: shared.snapshot_group(name, *volumes, *more)) is code
    assert on_disk(shared) == before
    assert shared.snapshots() == []
    with refused(Code.INVALID_ARGUMENT, "source_volume_ids"):
        shared.snapshot_group("g")


def test_member_whose_place_is_taken(shared: Driver, volumes: list[str]) -> None:
    """Where one member cannot be put in its place the others are taken back."""
    probe = shared.snapshot_group("g", *volumes)
    members = ids(probe)
    shared.delete_group(probe.group_snapshot_id, *members)
    shared.reaped()
    foreign = shared.folders[0] / "snapshots" / members[2]
    foreign.mkdir()
    with refused(Code.FAILED_PRECONDITION, str(foreign)):
        shared.snapshot_group("g", *volumes)
    assert shared.snapshots() == []
    assert on_disk(shared) == {f"volumes/{item}" for item in volumes} | {f"snapshots/{members[2]}"}
    foreign.rmdir()
    assert ids(shared.snapshot_group("g", *volumes)) == members


def test_what_is_not_there(shared: Driver) -> None:
    """Deletion is idempotent, but for another node's groups."""
    shared.delete_group("gone")
    shared.delete_group("../volumes")
    with refused(Code.FAILED_PRECONDITION, "node-2"):
        shared.delete_group("g@node-2")
    with refused(Code.INVALID_ARGUMENT):
        shared.delete_group("")
    with refused(Code.INVALID_ARGUMENT):
        get(shared, "")


def test_group_over_two_pools(two_pools: Driver) -> None:
    """A group is whole over several pools, also after a crash between its records."""
    driver = two_pools
    volumes = [
        driver.create(f"v{n}", 4 * MIB, parameters=FILES, pool=name).volume_id
        for n, name in enumerate(["default", "other"])
    ]
    group = driver.snapshot_group("g", *volumes)
    record = f"groups/{group.group_snapshot_id}.json"
    first, second = driver.folders
    assert (first / record).exists()
    assert (second / record).exists()
    driver.stop(9)
    (second / record).unlink()
    driver.start()
    assert driver.snapshots() == []
    assert not (first / record).exists()
    assert driver.snapshot_group("g", *volumes).group_snapshot_id == group.group_snapshot_id


def test_members_without_their_group(serve: Callable[..., Driver], driver: Driver) -> None:
    """What a crash has left of a group that was being taken is gone at the next start."""
    volumes = [driver.create(f"v{n}", 4 * MIB, parameters=FILES).volume_id for n in range(2)]
    group = driver.snapshot_group("g", *volumes)
    alone = driver.snapshot("alone", volumes[0])
    driver.stop(9)
    (driver.folders[0] / "groups" / f"{group.group_snapshot_id}.json").unlink()
    driver.start()
    assert driver.snapshots() == [alone]
    driver.stop(9)
    driver.start()
    group = driver.snapshot_group("g", *volumes)
    driver.stop(9)
    (driver.folders[0] / "groups" / f"{group.group_snapshot_id}.json").write_text("damaged")
    driver.start()
    assert len(driver.snapshots()) == 3


def test_half_written_record_of_a_group(driver: Driver) -> None:
    """What a crash has left of a record is gone at the next start."""
    litter = driver.folders[0] / "groups/.g@node-1.json.new"
    litter.write_text('{"schema"')
    driver.restart(9)
    assert not litter.exists()


def test_group_with_a_damaged_member(driver: Driver) -> None:
    """A group goes with all its members, whether their records can be read or not."""
    volumes = [driver.create(f"v{n}", 4 * MIB, parameters=FILES).volume_id for n in range(3)]
    group = driver.snapshot_group("g", *volumes)
    members = ids(group)
    (driver.folders[0] / "snapshots" / members[0] / "snapshot.json").write_text("damaged")
    driver.restart()
    assert len(driver.snapshots()) == 2
    driver.delete_group(group.group_snapshot_id, *members)
    assert driver.snapshots() == []
    assert on_disk(driver) == {f"volumes/{item}" for item in volumes}
