"""Playing a scene on a driver again and again, with a fault at another system call each time."""

import contextlib
import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path

import grpc
from driver import Driver, mount_capability
from reliability.conftest import check_unused, check_whole
from reliability.faults import Point, died, record, traced
from reliability.scenes import Kind, Scene

from pycsi.proto import csi_pb2 as csi


@dataclasses.dataclass
class Play:
    """A scene with a kind of volume, on a driver whose pool lies on `ground`."""

    driver: Driver
    ground: str
    folder: Path
    scene: type[Scene]
    kind: Kind

    @property
    def pool(self) -> Path:
        return self.driver.folders[0]

    @property
    def log(self) -> Path:
        return self.folder / "strace.log"

    def begin(self, tag: str) -> Scene:
        """Prepare the scene with objects of its own.

        What is done once only, before the first volume of a kind, must not be among its calls.
        """
        for filesystem in {self.kind.filesystem or "ext4", "ext4"}:
            request = csi.GetCapacityRequest(
                parameters={"type": "image"}, volume_capabilities=[mount_capability(filesystem)]
            )
            self.driver.controller.GetCapacity(request)
        played = self.scene(self.driver, self.ground, self.folder, tag, self.kind)
        played.prepare()
        return played

    def end(self, played: Scene) -> None:
        """Let the RPC be done, or find that it was, and see that it was done completely."""
        played.act()
        played.check()
        played.undo()
        check_whole(self.driver, self.pool)
        check_unused(self.pool)

    def points(self, *, asking: bool) -> list[Point]:
        """Return the system calls of the RPC at which something could go wrong."""
        model = self.begin("r")
        found = record(self.driver, self.scene.worker, self.log, model.act, asking=asking)
        self.end(model)
        return found

    def inject(
        self, played: Scene, point: Point, fault: str
    ) -> contextlib.AbstractContextManager[None]:
        """Let `fault` happen at a point of what is done in the `with` block."""
        return traced(self.driver, played.worker, self.log, *point.inject(fault))

    def kill_at(self, points: Sequence[Point]) -> int:
        """Kill the driver before each of these calls and repeat the RPC; return how often."""
        killed = 0
        for number, point in enumerate(points):
            played = self.begin(f"k{number}")
            with self.inject(played, point, "signal=KILL"), contextlib.suppress(grpc.RpcError):
                played.act()
            if died(self.driver):
                killed += 1
                self._revive()
                check_whole(self.driver, self.pool, played.unfinished)
            self.end(played)
        return killed

    def _revive(self) -> None:
        assert self.driver.process is not None
        assert self.driver.process.returncode == -signal.SIGKILL
        self.driver.channel.close()
        self.driver.start()
