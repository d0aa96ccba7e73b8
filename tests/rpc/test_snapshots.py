"""The RPCs of snapshots: idempotent in every field, the right code, nothing half made."""

from collections.abc import Iterator

import grpc
import pytest
from driver import (
    MIB,
    Driver,
    block_capability,
    from_snapshot,
    from_volume,
    mount_capability,
    refused,
)
from rpc.conftest import code_of, on_disk, on_node

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
FILES = {"type": "directory", "quota": "none"}
STRANGE = ["..", "a/b", " ", "\n", "😀", "x" * 128, "pvc-1", "member-1", "sha256-1", "ephemeral-1"]


@pytest.fixture
def volume(shared: Driver) -> Iterator[str]:
    """Return a volume; it is deleted afterwards with all snapshots."""
    volume_id = shared.create("source", 4 * MIB, parameters=FILES).volume_id
    yield volume_id
    for snapshot in shared.snapshots():
        shared.delete_snapshot(snapshot.snapshot_id)
    for other in shared.volume_ids():
        shared.delete(other)


def test_snapshot(shared: Driver, volume: str) -> None:
    """It is ready at once, the same whenever it is asked for, and listed until it is deleted."""
    before = on_disk(shared)
    snapshot = shared.snapshot("s", volume)
    assert snapshot.snapshot_id == "s@node-1"
    assert snapshot.source_volume_id == volume
    assert snapshot.size_bytes == 4 * MIB
    assert snapshot.ready_to_use
    assert snapshot.group_snapshot_id == ""
    assert snapshot.creation_time.seconds > 1_700_000_000
    assert shared.snapshot("s", volume) == snapshot
    assert shared.snapshots() == [snapshot]
    get = csi.GetSnapshotRequest(snapshot_id=snapshot.snapshot_id)
    assert shared.controller.GetSnapshot(get).snapshot == snapshot
    shared.restart()
    assert shared.snapshot("s", volume) == snapshot
    assert shared.controller.GetSnapshot(get).snapshot == snapshot
    assert on_disk(shared) - before == {"snapshots/s@node-1"}
    for _ in range(3):
        shared.delete_snapshot(snapshot.snapshot_id)
    assert shared.snapshots() == []
    assert on_disk(shared) == before
    with refused(Code.NOT_FOUND, "s@node-1"):
        shared.controller.GetSnapshot(get)


@pytest.fixture(scope="module")
def v1_12(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Return a driver that answers as CSI 1.12 has it."""
    folder = tmp_path_factory.mktemp("1.12")
    (folder / "pool").mkdir()
    with Driver(folder / "driver", [f"default={folder}/pool"], ["--csi-version=1.12"]) as driver:
        yield driver


def on_nodes(volume_id: str, *nodes: str) -> csi.CreateSnapshotRequest:
    """Return a request for a snapshot that has to be usable on one of the nodes."""
    return csi.CreateSnapshotRequest(
        name="s", source_volume_id=volume_id, accessibility_requirements=on_node(*nodes)
    )


def test_topology(shared: Driver, volume: str) -> None:
    """Every answer says that a snapshot is usable where its data lies."""
    snapshot = shared.snapshot("s", volume)
    assert snapshot.accessible_topology == on_node("node-1").requisite
    get = csi.GetSnapshotRequest(snapshot_id=snapshot.snapshot_id)
    assert shared.controller.GetSnapshot(get).snapshot == snapshot
    assert shared.snapshots() == [snapshot]


@pytest.mark.parametrize(
    "requirement",
    [
        csi.TopologyRequirement(),
        on_node("node-1"),
        on_node("node-2", "node-1"),
        csi.TopologyRequirement(preferred=on_node("node-1").requisite),
    ],
)
def test_snapshot_wanted_here(
    shared: Driver, volume: str, requirement: csi.TopologyRequirement
) -> None:
    """A snapshot is taken, and found, if one of the topologies is this node."""
    request = on_nodes(volume)
    request.accessibility_requirements.CopyFrom(requirement)
    taken = shared.controller.CreateSnapshot(request)
    assert shared.controller.CreateSnapshot(request) == taken


@pytest.mark.parametrize(
    "requirement", [on_node("node-2"), csi.TopologyRequirement(preferred=on_node("x").requisite)]
)
def test_snapshot_wanted_elsewhere(
    shared: Driver, volume: str, requirement: csi.TopologyRequirement
) -> None:
    """A snapshot that has to be usable on another node is not taken, and not found."""
    request = on_nodes(volume)
    request.accessibility_requirements.CopyFrom(requirement)
    before = on_disk(shared)
    with refused(Code.RESOURCE_EXHAUSTED, "accessibility_requirements", "node-1"):
        shared.controller.CreateSnapshot(request)
    assert on_disk(shared) == before
    shared.snapshot("s", volume)
    with refused(Code.RESOURCE_EXHAUSTED, "accessibility_requirements", "node-1"):
        shared.controller.CreateSnapshot(request)


def test_topology_in_1_12(v1_12: Driver) -> None:
    """With CSI 1.12 a snapshot has no topology, and a request for one is not understood."""
    volume_id = v1_12.create("source", 4 * MIB, parameters=FILES).volume_id
    snapshot = v1_12.controller.CreateSnapshot(on_nodes(volume_id, "node-2")).snapshot
    group = v1_12.snapshot_group("g", volume_id)
    assert not any(item.accessible_topology for item in (snapshot, *group.snapshots))
    assert not any(item.accessible_topology for item in v1_12.snapshots())


def test_names(shared: Driver, volume: str) -> None:
    """Any legal name makes a snapshot of its own, with an id that works."""
    ids = [shared.snapshot(name, volume).snapshot_id for name in STRANGE]
    assert len(set(ids)) == len(STRANGE)
    assert all(len(item.encode()) <= 128 for item in ids)
    for name, snapshot_id in zip(STRANGE, ids, strict=True):
        assert shared.snapshot(name, volume).snapshot_id == snapshot_id
        assert [item.snapshot_id for item in shared.snapshots("", snapshot_id)] == [snapshot_id]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"name": ""}, Code.INVALID_ARGUMENT),
        ({"name": "x" * 129}, Code.INVALID_ARGUMENT),
        ({"name": "\x07"}, Code.INVALID_ARGUMENT),
        ({"source_volume_id": ""}, Code.INVALID_ARGUMENT),
        ({"source_volume_id": "gone"}, Code.NOT_FOUND),
        ({"source_volume_id": "../../etc"}, Code.NOT_FOUND),
        ({"source_volume_id": "gone@node-2"}, Code.NOT_FOUND),
        ({"parameters": {"color": "red"}}, Code.INVALID_ARGUMENT),
        ({"parameters": {"consistency": "some"}}, Code.INVALID_ARGUMENT),
        ({"parameters": {"deletionPolicy": "Retain"}}, Code.OK),
        ({"parameters": {"deletionPolicy": "retain"}}, Code.INVALID_ARGUMENT),
        ({"parameters": {"csi.storage.k8s.io/volumesnapshot/name": "x"}}, Code.OK),
        ({"parameters": {"consistency": "x" * 5000}}, Code.INVALID_ARGUMENT),
    ],
)
def test_create(shared: Driver, volume: str, fields: dict[str, object], code: object) -> None:
    """A request that cannot be met changes nothing."""
    before = on_disk(shared)
    given: dict[str, object] = {"name": "s", "source_volume_id": volume} | fields
    request = csi.CreateSnapshotRequest(**given)  # type: ignore[arg-type]
    assert code_of(lambda: shared.controller.CreateSnapshot(request)) is code
    assert (on_disk(shared) == before) is (code is not Code.OK)


def test_name_of_another_volumes_snapshot(shared: Driver, volume: str) -> None:
    """A name stands for a snapshot of one volume."""
    other = shared.create("other", 4 * MIB, parameters=FILES).volume_id
    shared.snapshot("s", volume)
    with refused(Code.ALREADY_EXISTS, volume):
        shared.snapshot("s", other)


@pytest.mark.parametrize("snapshot_id", ["gone", "gone@node-1", "..", "a/b", "\0", "x" * 300, "@"])
def test_delete_what_is_not_there(shared: Driver, volume: str, snapshot_id: str) -> None:
    """Deletion is idempotent, whatever the id; only another node's is not ours to delete."""
    before = on_disk(shared)
    shared.delete_snapshot(snapshot_id)
    assert on_disk(shared) == before
    with refused(Code.FAILED_PRECONDITION, "node-2"):
        shared.delete_snapshot("s@node-2")
    with refused(Code.INVALID_ARGUMENT):
        shared.delete_snapshot("")


def test_list(shared: Driver, volume: str) -> None:
    """Filters combine, and pages miss nothing when entries come and go."""
    other = shared.create("other", 4 * MIB, parameters=FILES).volume_id
    for number in range(5):
        shared.snapshot(f"s{number}", volume)
        shared.snapshot(f"t{number}", other)
    assert len(shared.snapshots()) == 10
    assert {item.source_volume_id for item in shared.snapshots(other)} == {other}
    assert len(shared.snapshots(other)) == 5
    assert len(shared.snapshots(other, "t1@node-1")) == 1
    assert shared.snapshots(other, "s1@node-1") == []
    assert shared.snapshots("gone") == []
    seen, token = [], ""
    while True:
        answer = shared.controller.ListSnapshots(
            csi.ListSnapshotsRequest(max_entries=3, starting_token=token)
        )
        seen += [entry.snapshot.snapshot_id for entry in answer.entries]
        if not (token := answer.next_token):
            break
        shared.delete_snapshot(seen[-1])
    assert seen == [*(f"s{n}@node-1" for n in range(5)), *(f"t{n}@node-1" for n in range(5))]
    bad = csi.ListSnapshotsRequest(starting_token="7")  # noqa: S106  (of a page)
    assert code_of(lambda: shared.controller.ListSnapshots(bad)) is Code.ABORTED
    bad = csi.ListSnapshotsRequest(max_entries=-1)
    assert code_of(lambda: shared.controller.ListSnapshots(bad)) is Code.INVALID_ARGUMENT


def test_volume_from_a_snapshot(shared: Driver, volume: str) -> None:
    """The source is told on the first answer, on retries, and wherever the volume is shown."""
    source = from_snapshot(shared.snapshot("s", volume).snapshot_id)
    made = shared.create("r", 4 * MIB, parameters=FILES, source=source)
    assert made.content_source == source
    assert shared.create("r", 4 * MIB, parameters=FILES, source=source) == made
    shared.delete_snapshot("s@node-1")
    shared.delete(volume)
    shared.restart()
    assert shared.create("r", 4 * MIB, parameters=FILES, source=source) == made
    listed = shared.controller.ListVolumes(csi.ListVolumesRequest()).entries
    assert [entry.volume for entry in listed] == [made]
    get = csi.ControllerGetVolumeRequest(volume_id=made.volume_id)
    assert shared.controller.ControllerGetVolume(get).volume == made
    for other in (None, from_volume("r@node-1"), from_snapshot("t@node-1")):
        with refused(Code.ALREADY_EXISTS, "volume_content_source"):
            shared.create("r", 4 * MIB, parameters=FILES, source=other)
    plain = shared.create("plain", 4 * MIB, parameters=FILES)
    assert not plain.HasField("content_source")
    with refused(Code.ALREADY_EXISTS, "volume_content_source"):
        shared.create("plain", 4 * MIB, parameters=FILES, source=source)


def test_source_that_is_not_there(shared: Driver, volume: str) -> None:
    """Another node's source sends the scheduler on; a missing one is not found."""
    before = on_disk(shared)
    for source in (from_snapshot, from_volume):
        for missing in ("gone", "gone@node-1", "../" + volume, "\n"):
            with refused(Code.NOT_FOUND, "volume_content_source"):
                shared.create("r", 4 * MIB, parameters=FILES, source=source(missing))
        with refused(Code.RESOURCE_EXHAUSTED, "node-2"):
            shared.create("r", 4 * MIB, parameters=FILES, source=source("v@node-2"))
        with refused(Code.INVALID_ARGUMENT, "volume_content_source"):
            shared.create("r", 4 * MIB, parameters=FILES, source=source(""))
    with refused(Code.NOT_FOUND):
        shared.create("r", 4 * MIB, parameters=FILES, source=from_volume("r@node-1"))
    assert on_disk(shared) == before


SIZES = [
    (None, 0, Code.OK, 8),
    (8, 0, Code.OK, 8),
    (8, 8, Code.OK, 8),
    (12, 0, Code.OK, 12),
    (0, 8, Code.OK, 8),
    (0, 12, Code.OK, 8),
    (4, 0, Code.OUT_OF_RANGE, 0),
    (4, 12, Code.OUT_OF_RANGE, 0),
    (0, 4, Code.OUT_OF_RANGE, 0),
]


@pytest.mark.parametrize(("required", "limit", "code", "expected"), SIZES)
@pytest.mark.parametrize("how", ["snapshot", "clone"])
def test_sizes(
    shared: Driver,
    volume: str,
    how: str,
    required: int | None,
    limit: int,
    code: object,
    expected: int,
) -> None:
    """A copy has the size that was asked for, and never less than its source."""
    block = block_capability()
    original = shared.create("block", 8 * MIB, capability=block).volume_id
    source = from_volume(original)
    if how == "snapshot":
        source = from_snapshot(shared.snapshot("s", original).snapshot_id)
    size = None if required is None else required * MIB
    if code is not Code.OK:
        with refused(code, "8 MiB"):  # type: ignore[arg-type]
            shared.create("c", size, limit=limit * MIB, capability=block, source=source)
        return
    made = shared.create("c", size, limit=limit * MIB, capability=block, source=source)
    assert made.capacity_bytes == expected * MIB


def test_kinds(shared: Driver, root: None, volume: str) -> None:
    """A copy is of its source's kind unless asked otherwise, and only of kinds that make sense."""
    mount, block = mount_capability(), block_capability()
    raw = from_snapshot(
        shared.snapshot(
            "raw", shared.create("raw", 16 * MIB, capability=block).volume_id
        ).snapshot_id
    )
    image = shared.create("image", 16 * MIB, type="image").volume_id
    filesystem = from_snapshot(shared.snapshot("image", image).snapshot_id)
    files = from_snapshot(shared.snapshot("files", volume).snapshot_id)
    wanted = [
        (raw, mount, {}, "raw block"),
        (raw, block, {}, None),
        (raw, block, {"type": "image", "allocation": "thick"}, None),
        (filesystem, mount, {}, None),
        (filesystem, mount_capability("ext4"), {"allocation": "thick"}, None),
        (filesystem, mount_capability("xfs"), {}, "has ext4, not xfs"),
        (filesystem, mount, FILES, "type image"),
        (filesystem, mount, {"csi.storage.k8s.io/fstype": "btrfs"}, "has ext4, not btrfs"),
        (filesystem, block, {}, None),
        (files, mount, {"quota": "none"}, None),
        (files, mount, {"type": "image"}, "type directory"),
        (files, block, {}, "block device"),
    ]
    for number, (source, capability, parameters, complaint) in enumerate(wanted):
        name = f"c{number}"
        if complaint is None:
            copy = shared.create(
                name, 16 * MIB, capability=capability, parameters=parameters, source=source
            )
            assert copy.content_source == source
        else:
            with refused(Code.INVALID_ARGUMENT, complaint):
                shared.create(
                    name, 16 * MIB, capability=capability, parameters=parameters, source=source
                )


def test_volume_with_snapshots_is_deleted(shared: Driver, volume: str) -> None:
    """Snapshots outlive their source, are listed as its, and can be restored."""
    shared.snapshot("s", volume)
    shared.delete(volume)
    (left,) = shared.snapshots(volume)
    source = from_snapshot(left.snapshot_id)
    assert shared.create("r", 4 * MIB, parameters=FILES, source=source).content_source == source
    again = shared.create("source", 8 * MIB, parameters=FILES).volume_id
    assert again == volume
    with refused(Code.OUT_OF_RANGE):
        shared.create("source-2", 2 * MIB, parameters=FILES, source=source)


def test_name_of_an_earlier_volumes_snapshot(shared: Driver, volume: str) -> None:
    """A snapshot of a volume that was deleted is not one of the volume that has its name now."""
    taken = shared.snapshot("s", volume)
    shared.delete(volume)
    assert shared.snapshot("s", volume) == taken  # a retry whose first answer was lost
    shared.create("source", 4 * MIB, parameters=FILES)
    with refused(Code.ALREADY_EXISTS, "earlier volume"):
        shared.snapshot("s", volume)
