"""A volume that moves to another node, of which a node or the controller is killed at any point.

Never can both the old and the new be used; one of them is whole. A repeated command ends the move,
or the volume is as before if it is given up.
"""

import contextlib
import dataclasses
import functools
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver, block_capability, mount_capability
from relay import Relayed, relayed
from reliability.conftest import Counter, check_whole, names_in
from reliability.faults import CHANGING, Point, Worker, died, points, some, traced
from reliability.test_groups_over_nodes import again, kill
from relocation import Traveller, content_of, look
from terminal import piped

more = functools.partial(pytest.param, marks=pytest.mark.thorough)
_SIZE = 64 * MIB
_ENDS = ("rename", "unlink", "fsync")
"""Calls by which the last steps, which any thread may take, change something."""


@dataclasses.dataclass
class Scene:
    """A volume of a kind that moves from a to b, again and again; `phase` is what is cut off."""

    nodes: Relayed
    kind: str
    phase: str
    turn: int = 0

    def __post_init__(self) -> None:
        self.a, self.b = self.nodes.nodes["a"], self.nodes.nodes["b"]

    def begin(self) -> Traveller:
        """Make the volume, and do what comes before the phase."""
        self.turn += 1
        moving = Traveller(self.nodes, self.kind, _SIZE)
        if self.phase == "move":
            moving.move(prepare=True)
            moving.change(self.turn)
        return moving

    def act(self, moving: Traveller) -> None:
        moving.move(prepare=self.phase == "prepare")

    def revive(self) -> None:
        """Start whoever was killed."""
        for driver in (self.a, self.b, self.nodes.controller):
            assert driver.process is not None
            if driver.process.poll() is not None:
                assert driver.process.returncode == -signal.SIGKILL
                driver.channel.close()
                driver.start()

    def check_one(self, moving: Traveller) -> None:
        """Check that the volume is whole, and is not on both nodes."""
        old, new = self.a.volume_ids(), self.b.volume_ids()
        assert old + new in (["v@a"], ["v@b"], [])
        if old:
            assert look(moving.content) == moving.before
        elif new:
            assert look(content_of(self.b, "v@b")) == moving.before
        else:
            left = self.a.pool / "leaving" / "v@a"
            data = left / "data" if (left / "data").exists() else left / "disk.img"
            assert look(data) == moving.before
            assert names_in(self.b.pool / "arriving") == {"v@b"}

    def end(self, moving: Traveller) -> None:
        """End the move, or every second time give it up first; then delete the volume."""
        self.check_one(moving)
        if self.turn % 2 and self.a.volume_ids():
            again(moving.cancel)
            self.use(moving)
            assert names_in(self.b.pool / "arriving") == set()
            assert not self.a.snapshots()
        again(moving.move)
        moving.arrived()
        self.b.delete("v@b")
        emptied = piped("trash", "empty", "--all", "--yes", f"--pool={self.a.pools[0]}")
        assert emptied.returncode == 0, emptied.stderr
        for node in (self.a, self.b):
            check_whole(node, node.pool)
            assert names_in(node.pool / "leaving") == names_in(node.pool / "arriving") == set()

    def use(self, moving: Traveller) -> None:
        """Check that the volume can be used on its own node."""
        capability = block_capability() if self.kind == "block" else mount_capability()
        with self.a.published(moving.id, self.nodes.folder, capability):
            pass
        assert look(moving.content) == moving.before


@pytest.fixture(params=[more("prepare"), "move"])
def scene(
    request: pytest.FixtureRequest, filesystem: FilesystemFactory, tmp_path: Path, kind: str
) -> Iterator[Scene]:
    pools = {name: filesystem(ground, GIB) for name, ground in (("a", "xfs"), ("b", "ext4"))}
    with relayed(tmp_path, pools) as nodes:
        yield Scene(nodes, kind, request.param)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [more("block"), "directory"])
@pytest.mark.parametrize("who", ["controller", "a", "b"])
def test_killed_at_every_message(scene: Scene, thorough: bool, counted: Counter, who: str) -> None:
    """One of the three is killed before a piece of what passes between them."""
    victim: Driver = scene.nodes.controller if who == "controller" else scene.nodes.nodes[who]
    watch = scene.nodes.watch
    moving = scene.begin()
    watch.begin()
    scene.act(moving)
    every = range(1, watch.passed + 1)
    scene.end(moving)
    chosen = some(every, 1 if thorough else len(every), ord(who[0]))
    killed = 0
    for at in chosen:
        moving = scene.begin()
        watch.begin(at, lambda: kill(victim))
        with contextlib.suppress(grpc.RpcError):
            scene.act(moving)
        watch.begin()
        assert victim.process is not None
        killed += victim.process.poll() is not None
        scene.revive()
        scene.end(moving)
    assert killed >= len(chosen) / 2, f"{killed} of {len(chosen)} points were reached"
    counted(f"kills of {who} in pycsi move to another node", killed)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["block", more("directory")])
@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("fault", ["signal=KILL", more("error=EIO")])
def test_fault_at_every_system_call(
    scene: Scene, tmp_path: Path, thorough: bool, counted: Counter, fault: str, who: str
) -> None:
    """A node is killed before each call that changes something, or that fails."""
    node, log = scene.nodes.nodes[who], tmp_path / "log"
    moving = scene.begin()
    with traced(node, Worker.RPC, log, "-e", f"trace={CHANGING}"):
        scene.act(moving)
    found = [point for point in points(log, asking=False) if f"{node.pool}" in point.text]
    scene.end(moving)
    chosen = found if thorough else list(some(found, len(found), len(fault)))
    chosen += [Point(name, 1) for name in _ENDS]
    reached = 0
    for point in chosen:
        moving = scene.begin()
        with (
            traced(node, Worker.RPC, log, *point.inject(fault)),
            contextlib.suppress(grpc.RpcError),
        ):
            scene.act(moving)
        reached += died(node) or "(INJECTED)" in log.read_text()
        scene.revive()
        scene.end(moving)
    assert reached >= len(chosen) / 2, f"{reached} of {len(chosen)} points were reached"
    counted(f"{fault} of {who} in pycsi move to another node", reached)
