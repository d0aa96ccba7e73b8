"""A group over several nodes whose controller, or any node, is killed or fails at every step.

Afterwards nothing is frozen, and the group is whole or absent; a repeated call gets there.
"""

import contextlib
import dataclasses
import itertools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from cluster import NodeDriver
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver, from_snapshot
from relay import Relayed, relayed
from reliability.conftest import Counter, check_whole, names_in
from reliability.faults import Point, Worker, died, record, some, traced
from rpc.conftest import code_of, wait_for
from taker import Taker, calling

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import groups_pb2 as groups

_NODES = ("a", "b", "c")
_SHARE = 6
_WITHIN = 5.0
_PATIENCE = 40.0

T = TypeVar("T")


def writable(target: Path) -> bool:
    """Tell whether a file can be made soon: a frozen filesystem lets nobody begin."""
    begin = f"open({str(target / 'probe')!r}, 'w').write('x')"
    writer = subprocess.Popen([sys.executable, "-S", "-c", begin])
    try:
        return writer.wait(_WITHIN) == 0
    except subprocess.TimeoutExpired:
        writer.kill()
        return False


def again(call: Callable[[], T]) -> T:
    """Call as a sidecar does, until it succeeds."""
    found: list[T] = []

    def ask() -> bool:
        try:
            found.append(call())
        except grpc.RpcError as error:
            failure: Any = error
            passing = {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE}
            assert failure.code() in passing, f"{failure.code()}: {failure.details()}"
            return False
        return True

    wait_for(ask, _PATIENCE)
    return found[0]


@dataclasses.dataclass
class Scene:
    """A group of volumes in use on all nodes, taken and deleted again and again."""

    nodes: Relayed
    volumes: list[str]
    targets: list[Path]
    names: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    @property
    def driver(self) -> Driver:
        return self.nodes.controller

    def take(self, name: str) -> csi.VolumeGroupSnapshot:
        return self.driver.snapshot_group(name, *self.volumes)

    def delete(self, name: str, members: list[str]) -> None:
        self.driver.delete_group(f"{name}@a", *members)

    def revive(self) -> None:
        """Start whoever was killed; what nobody works on is not frozen before, either."""
        for driver in (*self.nodes.nodes.values(), self.driver):
            assert driver.process is not None
            if driver.process.poll() is not None:
                assert driver.process.returncode == -signal.SIGKILL
                driver.channel.close()
                driver.start()
        for target in self.targets:
            assert writable(target), f"{target} is frozen"

    def check_settled(self) -> None:
        """Check that without a repeated call there are soon all members, or none."""
        wait_for(lambda: not again(self.nodes.in_doubt), _PATIENCE)
        wait_for(lambda: len(again(self.driver.snapshots)) in {0, len(self.volumes)}, _PATIENCE)
        wait_for(lambda: not self.unfinished())

    def unfinished(self) -> set[str]:
        """Return the names of what is being made or frozen on the nodes."""
        pools = [node.pool for node in self.nodes.nodes.values()]
        return {
            name
            for pool in pools
            for folder in ("tmp", "frozen")
            for name in names_in(pool / folder)
        }

    def members_of(self, name: str) -> list[str]:
        """Take a group; return its members."""
        return [item.snapshot_id for item in again(lambda: self.take(name)).snapshots]

    def check_taken(self, group: csi.VolumeGroupSnapshot) -> list[str]:
        """Check that the group is there, once and whole, and can be restored."""
        members = [item.snapshot_id for item in group.snapshots]
        assert [item.source_volume_id for item in group.snapshots] == self.volumes
        assert len({str(item.creation_time) for item in group.snapshots}) == 1
        assert sorted(item.snapshot_id for item in self.driver.snapshots()) == sorted(members)
        for node in self.nodes.nodes.values():
            check_whole(node, node.pool)
        source = from_snapshot(members[next(self.names) % len(members)])
        copy = self.driver.create("copy", 16 * MIB, type="image", source=source)
        self.driver.delete(copy.volume_id)
        return members

    def check_gone(self) -> None:
        """Check that nothing of a group is left, not even room that is promised to it."""
        assert self.driver.snapshots() == []
        for node in self.nodes.nodes.values():
            check_whole(node, node.pool)
            assert names_in(node.pool / "groups") == set()
            assert names_in(node.pool / "snapshots") == set()
            assert node.capacity().available_capacity == self.room[node.name]

    def __post_init__(self) -> None:
        self.room = {
            name: node.capacity().available_capacity for name, node in self.nodes.nodes.items()
        }


@pytest.fixture
def scene(filesystem: FilesystemFactory, tmp_path: Path) -> Iterator[Scene]:
    """Return three nodes with pools on different filesystems, and a volume in use on each."""
    kinds = ("xfs", "btrfs", "ext4")
    pools = {name: filesystem(kind, 2 * GIB) for name, kind in zip(_NODES, kinds, strict=True)}
    # Promised bytes are to be counted, and not what the filesystem has for itself.
    with relayed(tmp_path, pools, ",overcommit=0.5") as nodes:
        volumes = [
            node.create("v", 16 * MIB, type="image").volume_id for node in nodes.nodes.values()
        ]
        with nodes.published(*volumes) as targets:
            yield Scene(nodes, volumes, targets)


def kill(driver: Driver) -> bool:
    """Kill a process; what it was about to send, or to get, is lost."""
    assert driver.process is not None
    driver.process.kill()
    driver.process.wait(10)
    return False


@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["take", "delete"])
def test_controller_killed_at_every_message(
    scene: Scene, thorough: bool, counted: Counter, what: str
) -> None:
    """The controller is killed before each message to or from a node."""
    watch = scene.nodes.watch
    watch.begin()
    members = scene.check_taken(scene.take("g"))
    count = watch.passed
    watch.begin()
    scene.delete("g", members)
    count = count if what == "take" else watch.passed
    chosen = range(1, count + 1) if thorough else some(range(1, count + 1), _SHARE, 0)
    killed = 0
    for at in chosen:
        name = f"g{next(scene.names)}"
        if what == "delete":
            members = scene.members_of(name)
        watch.begin(at, lambda: kill(scene.driver))
        with contextlib.suppress(grpc.RpcError):
            if what == "take":
                scene.take(name)
            else:
                scene.delete(name, members)
        watch.begin()
        assert scene.driver.process is not None
        killed += scene.driver.process.poll() is not None
        scene.revive()
        end(scene, name, members, what)
    assert killed >= len(chosen) / 2, f"{killed} of {len(chosen)} points were reached"
    counted(f"kills of a controller in {what}", killed)


def end(scene: Scene, name: str, members: list[str], what: str) -> None:
    """Repeat what was under way, and see that it was done completely."""
    if what == "take":
        scene.check_settled()
        members = scene.check_taken(again(lambda: scene.take(name)))
    again(lambda: scene.delete(name, members))
    scene.check_gone()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("what", ["take", "delete"])
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO"])
def test_fault_at_every_system_call_of_a_node(
    scene: Scene,
    tmp_path: Path,
    thorough: bool,
    counted: Counter,
    fault: str,
    what: str,
    name: str,
) -> None:
    """The coordinator, or another node, is killed before each call that changes something.

    Or that call fails.
    """
    node, log = scene.nodes.nodes[name], tmp_path / "log"
    chosen = points(scene, node, log, what)
    chosen = chosen if thorough else list(some(chosen, _SHARE, ord(name) + len(fault)))
    reached = 0
    for point in chosen:
        group = f"g{next(scene.names)}"
        members = scene.members_of(group) if what == "delete" else []
        with (
            traced(node, Worker.RPC, log, *point.inject(fault)),
            contextlib.suppress(grpc.RpcError),
        ):
            if what == "take":
                scene.take(group)
            else:
                scene.delete(group, members)
        reached += died(node) or "(INJECTED)" in log.read_text()
        scene.revive()
        end(scene, group, members, what)
    assert reached >= len(chosen) / 2, f"{reached} of {len(chosen)} points were reached"
    counted(f"{fault} in a node's part of {what}", reached)


def points(scene: Scene, node: NodeDriver, log: Path, what: str) -> list[Point]:
    """Return the system calls of a node in a take, or in a deletion."""
    taken: list[csi.VolumeGroupSnapshot] = []

    def take() -> None:
        taken.append(scene.take("g"))

    def delete() -> None:
        scene.delete("g", [item.snapshot_id for item in taken[0].snapshots])

    if what == "take":
        found = record(node, Worker.RPC, log, take, asking=False)
        delete()
    else:
        take()
        found = record(node, Worker.RPC, log, delete, asking=False)
    scene.check_gone()
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("commit", [True, False])
def test_node_killed_while_it_finishes(
    scene: Scene, tmp_path: Path, thorough: bool, counted: Counter, commit: bool
) -> None:
    """A node is killed while it commits, or undoes, what a killed controller left in doubt."""
    node = scene.nodes.nodes["b"]
    attempt = in_doubt(scene, "g", commit=commit)
    log = tmp_path / "log"
    found = record(
        node,
        Worker.RPC,
        log,
        lambda: finish(scene, node, "g", attempt, commit=commit),
        asking=False,
    )
    end_in_doubt(scene, "g", commit=commit)
    chosen = found if thorough else list(some(found, _SHARE, int(commit)))
    killed = 0
    for point in chosen:
        name = f"g{next(scene.names)}"
        attempt = in_doubt(scene, name, commit=commit)
        with (
            traced(node, Worker.RPC, log, *point.inject("signal=KILL")),
            contextlib.suppress(grpc.RpcError),
        ):
            finish(scene, node, name, attempt, commit=commit)
        killed += died(node)
        end_in_doubt(scene, name, commit=commit)
    assert killed >= len(chosen) / 2, f"{killed} of {len(chosen)} points were reached"
    counted("kills of a node that finishes its part", killed)


def in_doubt(scene: Scene, name: str, *, commit: bool) -> str:
    """Leave a group as a killed controller does: prepared, or committed by the coordinator alone.

    Return the attempt. There is no controller then.
    """
    kill(scene.driver)
    with contextlib.ExitStack() as opened:
        takers = []
        for node in scene.nodes.nodes.values():
            stub = opened.enter_context(calling(node, scene.nodes.tls))
            takers.append(opened.enter_context(Taker(stub, f"{name}@a", *scene.volumes)))
        for taker in takers:
            taker.attempt = takers[0].attempt
            taker.up_to("prepare")
        if commit:
            takers[0].step("commit")
    wait_for(lambda: not any(is_busy(scene, node, name) for node in scene.nodes.nodes.values()))
    return takers[0].attempt


def is_busy(scene: Scene, node: NodeDriver, name: str) -> bool:
    """Tell whether a node is working on a group."""
    request = groups.GetPartRequest(group_snapshot_id=f"{name}@a")
    with calling(node, scene.nodes.tls) as stub:
        return code_of(lambda: stub.GetPart(request)) is grpc.StatusCode.ABORTED


def finish(scene: Scene, node: NodeDriver, name: str, attempt: str, *, commit: bool) -> None:
    request = groups.FinishPartRequest(
        group_snapshot_id=f"{name}@a", attempt=attempt, commit=commit
    )
    with calling(node, scene.nodes.tls) as stub:
        stub.FinishPart(request)


def end_in_doubt(scene: Scene, name: str, *, commit: bool) -> None:
    """Start the controller, and see that it settles the group by itself."""
    scene.revive()
    scene.check_settled()
    members = len(scene.driver.snapshots())
    assert members == (len(scene.volumes) if commit else 0)
    group = scene.check_taken(again(lambda: scene.take(name)))
    scene.delete(name, group)
    scene.check_gone()
