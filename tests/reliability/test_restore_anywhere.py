"""A snapshot restored on another node, of which the controller or a node is killed at any point.

Afterwards nothing is left, and a repeated call makes the volume, whole.
"""

import contextlib
import dataclasses
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trees
from cluster import NodeDriver
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver, block_capability, from_snapshot, mount_capability
from exports import image_of, make_volume, same_image
from relay import Relayed, relayed
from reliability.conftest import Counter, check_whole, names_in
from reliability.faults import Point, Worker, died, record, some, traced
from reliability.test_groups_over_nodes import again, kill
from rpc.conftest import TOPOLOGY, wait_for

from pycsi.proto import csi_pb2 as csi

_SIZE = 64 * MIB
_SHARE = 12
_KINDS = ("block", "directory")
_DIRECTORY = {"type": "directory", "quota": "none"}


@dataclasses.dataclass
class Scene:
    """A snapshot of each kind of volume on the node a, restored on the node b again and again."""

    nodes: Relayed
    names: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.a, self.b = self.nodes.nodes["a"], self.nodes.nodes["b"]
        self.driver = self.nodes.controller
        for kind in _KINDS:
            origin = make_volume(self.a, kind, _SIZE)
            self.driver.snapshot(kind, origin)
            self.driver.delete(origin)
        self.a.reaped()
        self.room = self.b.capacity().available_capacity

    def restore(self, name: str, kind: str) -> csi.Volume:
        block = kind == "block"
        asked = csi.CreateVolumeRequest(
            name=name,
            volume_capabilities=[block_capability() if block else mount_capability()],
            parameters={"restoreAnywhere": "true"} | ({} if block else _DIRECTORY),
            volume_content_source=from_snapshot(f"{kind}@a"),
            accessibility_requirements=csi.TopologyRequirement(
                preferred=[csi.Topology(segments={TOPOLOGY: "b"})]
            ),
        )
        made: csi.Volume = self.driver.controller.CreateVolume(asked, timeout=60).volume
        return made

    def revive(self) -> None:
        """Start whoever was killed."""
        for driver in (self.a, self.b, self.driver):
            assert driver.process is not None
            if driver.process.poll() is not None:
                assert driver.process.returncode == -signal.SIGKILL
                driver.channel.close()
                driver.start()

    def end(self, name: str, kind: str) -> None:
        """Check that nothing is half made; repeat the call, check the volume, and delete it."""
        wait_for(lambda: names_in(self.b.pool / "tmp") == set())
        check_whole(self.b, self.b.pool)
        assert names_in(self.b.pool / "volumes") <= {f"{name}@b"}
        made = again(lambda: self.restore(name, kind))
        assert made.volume_id == f"{name}@b"
        check_whole(self.b, self.b.pool)
        if kind == "block":
            one = self.a.pool / "snapshots" / "block@a" / "disk.img"
            same_image(one, image_of(self.b, made.volume_id))
        else:
            one = self.a.pool / "snapshots" / "directory@a" / "data"
            other = self.b.pool / "volumes" / made.volume_id / "data"
            assert trees.describe(one) == trees.describe(other)
        again(lambda: self.driver.delete(made.volume_id))
        assert self.b.capacity().available_capacity == self.room
        assert {item.snapshot_id for item in self.a.snapshots()} == {f"{k}@a" for k in _KINDS}
        check_whole(self.a, self.a.pool)


@pytest.fixture
def scene(filesystem: FilesystemFactory, tmp_path: Path) -> Iterator[Scene]:
    pools = {name: filesystem(kind, GIB) for name, kind in (("a", "xfs"), ("b", "ext4"))}
    with relayed(tmp_path, pools, ",overcommit=0.5") as nodes:
        yield Scene(nodes)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("who", ["controller", "a", "b"])
def test_killed_at_every_message(
    scene: Scene, thorough: bool, counted: Counter, who: str, kind: str
) -> None:
    """One of the three is killed before a piece of what passes between them."""
    victim: Driver = scene.driver if who == "controller" else scene.nodes.nodes[who]
    watch = scene.nodes.watch
    watch.begin()
    scene.driver.delete(scene.restore("counted", kind).volume_id)
    every = range(1, watch.passed + 1)
    chosen = some(every, 3 if thorough else len(every) // 5, ord(who[0]))
    killed = 0
    for at in chosen:
        name = f"n{next(scene.names)}"
        watch.begin(at, lambda: kill(victim))
        with contextlib.suppress(grpc.RpcError):
            scene.restore(name, kind)
        watch.begin()
        assert victim.process is not None
        killed += victim.process.poll() is not None
        scene.revive()
        scene.end(name, kind)
    assert killed >= len(chosen) / 2, f"{killed} of {len(chosen)} points were reached"
    counted(f"kills of {who} in a restore on another node", killed)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC"])
def test_fault_at_every_system_call(
    scene: Scene, tmp_path: Path, thorough: bool, counted: Counter, fault: str, kind: str
) -> None:
    """The node that receives is killed before each call that changes something, or that fails."""
    log = tmp_path / "log"
    chosen = points(scene, scene.b, log, kind)
    chosen = chosen if thorough else list(some(chosen, _SHARE, len(fault)))
    reached = 0
    for point in chosen:
        name = f"n{next(scene.names)}"
        with (
            traced(scene.b, Worker.RPC, log, *point.inject(fault)),
            contextlib.suppress(grpc.RpcError),
        ):
            scene.restore(name, kind)
        reached += died(scene.b) or "(INJECTED)" in log.read_text()
        scene.revive()
        scene.end(name, kind)
    assert reached >= len(chosen) / 2, f"{reached} of {len(chosen)} points were reached"
    counted(f"{fault} in a restore on another node", reached)


def points(scene: Scene, node: NodeDriver, log: Path, kind: str) -> list[Point]:
    """Return the system calls of a node that receives, by which it changes something."""
    made: list[Any] = []
    found = record(
        node, Worker.RPC, log, lambda: made.append(scene.restore("seen", kind)), asking=False
    )
    scene.driver.delete(made[0].volume_id)
    node.reaped()
    return found
