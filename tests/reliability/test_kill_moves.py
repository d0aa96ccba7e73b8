"""Moves between pools, killed before system calls that write: the volume is whole, in one pool."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import pytest
import trees
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver, block_capability
from exports import scribble
from reliability.conftest import Counter, names_in
from reliability.faults import CHANGING, Point, Worker, died, points, some, traced
from reliability.test_kill_commands import KILL
from terminal import piped

from pycsi.proto import transfers_pb2 as transfers
from pycsi.proto import transfers_pb2_grpc

_FEW = 5
POOLS = ("one", "two")


class Moving:
    """A volume that is moved to and fro between two pools of a driver."""

    def __init__(self, driver: Driver, kind: str) -> None:
        self.driver = driver
        self.at = 0
        given = {"pool": "one"}
        if kind == "directory":
            given |= {"type": "directory", "quota": "none"}
            self.id = driver.create("v", 64 * MIB, parameters=given).volume_id
            trees.make(self.content)
        else:
            made = driver.create("v", 32 * MIB, capability=block_capability(), parameters=given)
            self.id = made.volume_id
            scribble(self.content)
        self.before = self.look()

    @property
    def content(self) -> Path:
        place = self.driver.folders[self.at] / "volumes" / self.id
        return place / "data" if (place / "data").exists() else place / "disk.img"

    def look(self) -> object:
        content = self.content
        return trees.describe(content) if content.is_dir() else content.read_bytes()

    def change(self, number: int) -> None:
        """Change the volume, so that a copy that was prepared is not what it is."""
        if self.content.is_dir():
            (self.content / f"file {number}").write_bytes(bytes([number]) * 70_000)
            (self.content / "deep" / "er" / "file 7").write_text(f"{number}")
        else:
            scribble(self.content, number)
        self.before = self.look()

    def call(self, *, prepare: bool) -> None:
        stub = transfers_pb2_grpc.TransfersStub(self.driver.channel)  # type: ignore[no-untyped-call]
        pool = POOLS[1 - self.at]
        list(stub.Move(transfers.MoveRequest(volume_id=self.id, pool=pool, prepare=prepare)))

    def move(self) -> None:
        self.call(prepare=False)
        self.at = 1 - self.at

    def check(self) -> None:
        """Check that it is whole, in this pool only, and nothing else is there."""
        assert self.look() == self.before
        assert self.driver.volume_ids() == [self.id]
        for pool in self.driver.folders:
            for folder in ("arriving", "leaving", "tmp"):
                assert names_in(pool / folder) == set()
        assert names_in(self.driver.folders[1 - self.at] / "volumes") == set()
        condition = self.driver.condition(self.id)
        assert not condition.abnormal, condition.message


@pytest.fixture(params=["block", "directory"])
def moving(
    request: pytest.FixtureRequest,
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
) -> Moving:
    """Return a volume in two pools on XFS for an image, on ext4 and btrfs for a directory."""
    kinds = ("xfs", "xfs") if request.param == "block" else ("ext4", "btrfs")
    pools = [f"{name}={filesystem(kind, GIB)}" for name, kind in zip(POOLS, kinds, strict=True)]
    return Moving(serve(*pools), request.param)


def recorded(moving: Moving, log: Path, *, prepare: bool) -> Sequence[Point]:
    with traced(moving.driver, Worker.RPC, log, "-f", "-e", f"trace={CHANGING}"):
        moving.call(prepare=prepare)
    return [point for point in points(log, asking=False) if "/pool" in point.text]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("phase", ["prepare", "move"])
def test_killed(
    moving: Moving, tmp_path: Path, thorough: bool, counted: Counter, phase: str
) -> None:
    """After the next start the volume is whole, and the repeated command moves it."""
    log = tmp_path / "strace.log"
    if phase == "move":
        moving.call(prepare=True)
        moving.change(0)
    found = recorded(moving, log, prepare=phase == "prepare")
    assert found
    if phase == "move":
        moving.at = 1 - moving.at
    else:
        moving.move()
    chosen = found if thorough else some(found, max(1, len(found) // _FEW), len(str(tmp_path)))
    killed = 0
    for number, point in enumerate(chosen):
        if phase == "move":
            moving.call(prepare=True)
            moving.change(number + 1)
        with traced(moving.driver, Worker.RPC, log, "-f", *point.inject(KILL)):
            try:
                moving.call(prepare=phase == "prepare")
            except grpc.RpcError:
                assert died(moving.driver), point
                killed += 1
                moving.driver.stop(signal.SIGKILL)
        if moving.driver.process and moving.driver.process.poll() is not None:
            moving.driver.start()
        moving.move()
        moving.check()
        emptied = piped(
            "trash", "empty", "--all", "--yes", f"--pool={moving.driver.pools[1 - moving.at]}"
        )
        assert emptied.returncode == 0
    assert killed >= len(chosen) / 2
    counted(f"kills in pycsi move ({phase})", killed)


def test_cancelled(moving: Moving) -> None:
    """A move that was prepared can be given up; nothing of it is left."""
    moving.call(prepare=True)
    moving.driver.restart(signal.SIGKILL)
    stub = transfers_pb2_grpc.TransfersStub(moving.driver.channel)  # type: ignore[no-untyped-call]
    for _ in range(2):
        stub.CancelMove(transfers.CancelMoveRequest(volume_id=moving.id))
        moving.check()
