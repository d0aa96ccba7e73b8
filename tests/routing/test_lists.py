"""Lists over all nodes: their pages miss nothing, repeat nothing, and look whole only if they are.

The nodes are filled very differently, and two have names of the greatest length.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import Cluster, NodeDriver, cluster
from driver import Driver, refused
from routing.conftest import create, ending, killed, reaches, stopped
from rpc.conftest import wait_for

from pycsi.proto import csi_pb2 as csi

COUNTS = {"a": 5, "b": 0, 63 * "c": 1, "d": 13, 62 * "d" + "e": 0}
ALL = sum(COUNTS.values())
SIZES = [0, 1, 2, 3, 5, 6, 13, ALL - 1, ALL, ALL + 1, 2**31 - 1]
LONGEST_MESSAGE = 4 * 1024 * 1024

KINDS = ("volumes", "snapshots", "unwell")


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster whose volumes, each with a snapshot, have lost their data."""
    with cluster(tmp_path_factory.mktemp("stocked"), *COUNTS) as running:
        for (name, node), count in zip(running.nodes.items(), COUNTS.values(), strict=True):
            for number in range(count):
                volume_id = create(node, f"{name}{number:02}"[-63:])
                node.snapshot(f"{name}{number:02}"[-63:], volume_id)
            for data in node.pool.glob("volumes/*/data"):
                data.rename(data.with_name("aside"))
        yield running


def page(driver: Driver, kind: str, size: int, token: str = "") -> tuple[list[str], str]:
    """Return the ids on a page of one of `KINDS`, and the token of the next."""
    fields = {"max_entries": size, "starting_token": token}
    answer: Any
    if kind == "volumes":
        answer = driver.controller.ListVolumes(csi.ListVolumesRequest(**fields))  # type: ignore[arg-type]
        ids = [entry.volume.volume_id for entry in answer.entries]
    elif kind == "snapshots":
        answer = driver.controller.ListSnapshots(csi.ListSnapshotsRequest(**fields))  # type: ignore[arg-type]
        ids = [entry.snapshot.snapshot_id for entry in answer.entries]
    else:
        answer = driver.controller.ControllerListVolumeHealth(
            csi.ControllerListVolumeHealthRequest(**fields)  # type: ignore[arg-type]
        )
        ids = [entry.volume_id for entry in answer.entries]
    assert len(answer.next_token.encode()) <= 128
    assert answer.ByteSize() < LONGEST_MESSAGE
    return ids, answer.next_token


def pages(driver: Driver, kind: str, size: int, token: str = "") -> Iterator[list[str]]:
    while True:
        ids, token = page(driver, kind, size, token)
        assert len(ids) <= size or not size
        yield ids
        if not token:
            return


def whole(driver: Driver, kind: str, size: int = 0, token: str = "") -> list[str]:
    return list(itertools.chain(*pages(driver, kind, size, token)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_pages(stocked: Cluster, kind: str, size: int) -> None:
    """Pages of any size add up to what the nodes list, in one order."""
    own = {id_ for node in stocked.nodes.values() for id_ in whole(node, kind)}
    found = whole(stocked.controller, kind, size)
    assert len(found) == ALL
    assert set(found) == own
    assert found == whole(stocked.controller, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_pages_are_full(stocked: Cluster, kind: str, size: int) -> None:
    """A page goes on with the next node, until it has as many entries as were asked for."""
    lengths = [len(ids) for ids in pages(stocked.controller, kind, size)]
    assert lengths[: ALL // size] == [size] * (ALL // size)


@pytest.mark.parametrize("kind", KINDS)
def test_rest_in_one_page(stocked: Cluster, kind: str) -> None:
    """A list can go on from any token in pages of another size."""
    every = whole(stocked.controller, kind)
    for size in range(1, ALL):
        ids, token = page(stocked.controller, kind, size)
        assert ids == every[:size]
        assert whole(stocked.controller, kind, 0, token) == every[size:]
        assert whole(stocked.controller, kind, 4, token) == every[size:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "token",
    [
        "invalid-token",
        ">",
        "a>",
        "a>x",
        "a>a00@a>",
        "nowhere",
        "nowhere>a00@nowhere",
        ">a00@nowhere",
        "a00@a",
        "\0",
        "a\0",
        "a\n",
        " ",
        5000 * "x",
        "a>" + 5000 * "x",
        "../a",
    ],
)
def test_token_that_is_not_ours(stocked: Cluster, kind: str, token: str) -> None:
    """A token that was never given, or names a node that is gone, is ABORTED."""
    for size in (0, 1):
        with refused(grpc.StatusCode.ABORTED):
            page(stocked.controller, kind, size, token)


def test_token_of_a_node(stocked: Cluster) -> None:
    """A token that a node gave is refused, or goes on where it says: it repeats nothing."""
    every = whole(stocked.controller, "volumes")
    ids, token = page(stocked.nodes["d"], "volumes", 4)
    rest = every[every.index(ids[-1]) + 1 :]
    code, _ = ending(lambda: whole(stocked.controller, "volumes", 0, token))
    assert code is grpc.StatusCode.ABORTED or whole(stocked.controller, "volumes", 0, token) == rest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [-1, -(2**31)])
def test_negative_page(stocked: Cluster, kind: str, size: int) -> None:
    """A negative number of entries is INVALID_ARGUMENT."""
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        page(stocked.controller, kind, size)


def test_filters(stocked: Cluster) -> None:
    """Snapshots can be asked for by their id, and by that of their source."""
    controller = stocked.controller
    for node in stocked.nodes.values():
        for snapshot in node.snapshots():
            assert controller.snapshots(snapshot_id=snapshot.snapshot_id) == [snapshot]
            assert controller.snapshots(source_volume_id=snapshot.source_volume_id) == [snapshot]
            both = controller.snapshots(snapshot.source_volume_id, snapshot.snapshot_id)
            assert both == [snapshot]
            other = "d12@d" if snapshot.source_volume_id != "d12@d" else "a00@a"
            assert controller.snapshots(other, snapshot.snapshot_id) == []
    for nothing in ("none@a", "none", "../a00@a"):
        assert controller.snapshots(snapshot_id=nothing) == []
        assert controller.snapshots(source_volume_id=nothing) == []
    with refused(grpc.StatusCode.UNAVAILABLE, "nowhere"):
        controller.snapshots(snapshot_id="x@nowhere")


def test_pages_of_a_filter(stocked: Cluster) -> None:
    """A page of a filtered list ends, and goes on, as that of the node does."""
    controller, node = stocked.controller, stocked.nodes["d"]
    data = node.pool / "volumes" / "d00@d" / "data"
    data.with_name("aside").rename(data)
    more = [node.snapshot(f"more-{number}", "d00@d").snapshot_id for number in range(2)]
    data.rename(data.with_name("aside"))
    asked = csi.ListSnapshotsRequest(source_volume_id="d00@d", max_entries=1)
    found = []
    while True:
        answer = controller.controller.ListSnapshots(asked)
        found += [entry.snapshot.snapshot_id for entry in answer.entries]
        asked.starting_token = answer.next_token
        if not answer.next_token:
            break
    assert found == [item.snapshot_id for item in node.snapshots(source_volume_id="d00@d")]
    assert set(more) < set(found)
    for snapshot_id in more:
        node.delete_snapshot(snapshot_id)


def test_changes_between_pages(stocked: Cluster) -> None:
    """What comes and goes between pages disturbs nothing else."""
    every = whole(stocked.controller, "volumes")
    ids, token = page(stocked.controller, "volumes", 3)
    node = stocked.nodes["a"]
    made = [create(node, name) for name in ("0-before", "z-after")]
    data = stocked.nodes["a"].pool / "volumes" / ids[-1]
    (data / "aside").rename(data / "data")
    node.snapshot("kept", ids[-1])
    node.delete(ids[-1])
    rest = whole(stocked.controller, "volumes", 2, token)
    assert [item for item in rest if item in every] == every[3:]
    assert "z-after@a" in rest
    assert made[0] not in rest
    for volume_id in made:
        node.delete(volume_id)
    create(node, ids[-1].partition("@")[0])
    node.delete_snapshot("kept@a")
    lost = node.pool / "volumes" / ids[-1] / "data"
    lost.rename(lost.with_name("aside"))


@pytest.mark.parametrize("kind", KINDS)
def test_dead_node(stocked: Cluster, kind: str) -> None:
    """While a node is dead a list that needs it is UNAVAILABLE, whichever it is; others go on."""
    every = whole(stocked.controller, kind)
    for name in ("a", "d", 62 * "d" + "e"):
        with killed(stocked, name):
            with refused(grpc.StatusCode.UNAVAILABLE, f"node {name}"):
                page(stocked.controller, kind, 0)
            with refused(grpc.StatusCode.UNAVAILABLE, f"node {name}"):
                whole(stocked.controller, kind, 2)
        assert whole(stocked.controller, kind) == every


def test_dead_nodes(stocked: Cluster) -> None:
    """Two dead nodes are as bad as one, and say no more in the log than the answers."""
    with killed(stocked, "a"), killed(stocked, "d"):
        for _ in range(3):
            with refused(grpc.StatusCode.UNAVAILABLE, "node "):
                page(stocked.controller, "volumes", 0)
            with refused(grpc.StatusCode.UNAVAILABLE, "node "):
                stocked.controller.controller.GetCapacity(csi.GetCapacityRequest())
    lines = stocked.controller.log.splitlines()
    assert all(line.startswith("{") for line in lines), "only lines of the log are in the log"


def test_silent_node(stocked: Cluster) -> None:
    """A list waits for a node until the caller's deadline, or until it is known not to answer."""
    every = whole(stocked.controller, "volumes")
    asked = csi.ListVolumesRequest()
    with stopped(stocked.nodes["d"]):
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            stocked.controller.controller.ListVolumes(asked, timeout=0.5)
        with refused(grpc.StatusCode.UNAVAILABLE, "node d"):
            stocked.controller.controller.ListVolumes(asked, timeout=60)
    wait_for(lambda: reaches(stocked.controller, "d"))
    assert whole(stocked.controller, "volumes") == every


# More than one message


def multiply(node: NodeDriver, count: int) -> None:
    """Have a stopped node find `count` copies of its only volume when it starts.

    Each is described with 30,000 bytes.
    """
    (sample,) = node.pool.glob("volumes/*")
    record = json.loads((sample / "volume.json").read_text())
    for number in range(count):
        name = f"{number:063}"
        made = sample.with_name(sample.name.replace("sample", name))
        shutil.copytree(sample, made, copy_function=shutil.copyfile)
        record |= {"id": made.name, "name": name, "reason": 30_000 * "x"}
        (made / "volume.json").write_text(json.dumps(record))


def test_lists_of_many_messages(tmp_path: Path) -> None:
    """A list too long for a message is cut into several, that each fit, and add up."""
    names = [letter * 63 for letter in "xyz"]
    counts = dict(zip(names, (150, 0, 100), strict=True))
    with cluster(tmp_path, *names) as running:
        for name, node in running.nodes.items():
            create(node, "sample")
            node.stop()
            multiply(node, counts[name])
            node.start()
        controller = running.controller
        total = sum(counts.values()) + len(names)

        wait_for(lambda: all(reaches(controller, name) for name in names))
        for size in (0, 10_000, total):
            found = list(pages(controller, "volumes", size))
            every = [id_ for ids in found for id_ in ids]
            assert len(every) == len(set(every)) == total
            assert every == sorted(every, key=lambda item: (item.partition("@")[2], item))
            assert len(found) == 2 if size == 0 else 2 <= len(found) <= 4
