"""Clients that send requests to a driver from several processes, and measure each reply's time.

A Python process can send only a few thousand requests per second, so clients are divided among
processes, with several threads in each. The processor time of the clients is measured too: if it
takes up all cores, the clients and not the driver were the limit.
"""

import concurrent.futures
import dataclasses
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import grpc
from driver import MIB, mount_capability

from pycsi.model.ids import NodeInfo
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc

THREADS = 4
"""The number of clients in a process, each in a thread."""

_TOPOLOGY_KEY = NodeInfo(id="", driver_name="pycsi.storage", max_volumes=0).topology_key

_OPTIONS = (("grpc.default_authority", "localhost"), ("grpc.max_receive_message_length", 1 << 28))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """The volumes that clients create: parameters, filesystem, `size` in bytes, prefix of the name.

    They are made on the `nodes`, given by their topology segments, in turn; where there are none,
    the driver chooses. Staging and target paths are in `folder`.
    """

    folder: Path
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    filesystem: str = ""
    size: int = 64 * MIB
    prefix: str = "bench"
    nodes: Sequence[str] = ()

    def topology(self, number: int) -> csi.Topology:
        """Return where the volume with this number is to be."""
        if not self.nodes:
            return csi.Topology()
        return csi.Topology(segments={_TOPOLOGY_KEY: self.nodes[number % len(self.nodes)]})


class Client:
    """A connection to a driver, with a method for each operation that is measured."""

    def __init__(self, endpoint: str, wanted: Wanted) -> None:
        self._channel = grpc.insecure_channel(endpoint, options=_OPTIONS)
        self._identity = csi_pb2_grpc.IdentityStub(self._channel)  # type: ignore[no-untyped-call]
        self._controller = csi_pb2_grpc.ControllerStub(self._channel)  # type: ignore[no-untyped-call]
        self._node = csi_pb2_grpc.NodeStub(self._channel)  # type: ignore[no-untyped-call]
        self._wanted = wanted
        self._capability = mount_capability(wanted.filesystem)
        self._volumes: dict[str, csi.Volume] = {}

    def close(self) -> None:
        self._channel.close()

    def probe(self, _name: str) -> None:
        self._identity.Probe(csi.ProbeRequest())

    def create(self, name: str) -> csi.Volume:
        request = csi.CreateVolumeRequest(
            name=f"{self._wanted.prefix}-{name}",
            capacity_range=csi.CapacityRange(required_bytes=self._wanted.size),
            volume_capabilities=[self._capability],
            parameters=self._wanted.parameters,
        )
        if self._wanted.nodes:
            request.accessibility_requirements.preferred.append(self._wanted.topology(int(name)))
        volume: csi.Volume = self._controller.CreateVolume(request).volume
        self._volumes[name] = volume
        return volume

    def delete(self, name: str) -> None:
        """Delete the volume `name`; a client that does not know its id calls CreateVolume first."""
        volume = self._volumes.pop(name, None) or self.create(name)
        self._controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume.volume_id))
        self._volumes.pop(name, None)

    def renew(self, name: str) -> None:
        """Create and delete."""
        self.create(name)
        self.delete(name)

    def get(self, name: str) -> None:
        self._controller.ControllerGetVolume(
            csi.ControllerGetVolumeRequest(volume_id=self._volumes[name].volume_id)
        )

    def capacity(self, name: str) -> None:
        self._controller.GetCapacity(
            csi.GetCapacityRequest(
                parameters=self._wanted.parameters,
                accessible_topology=self._wanted.topology(int(name)),
            )
        )

    def stage(self, name: str) -> None:
        staging, _ = self._places(name)
        volume = self._volumes[name]
        self._node.NodeStageVolume(
            csi.NodeStageVolumeRequest(
                volume_id=volume.volume_id,
                staging_target_path=str(staging),
                volume_capability=self._capability,
                volume_context=volume.volume_context,
            )
        )

    def publish(self, name: str) -> None:
        staging, target = self._places(name)
        volume = self._volumes[name]
        self._node.NodePublishVolume(
            csi.NodePublishVolumeRequest(
                volume_id=volume.volume_id,
                staging_target_path=str(staging),
                target_path=str(target),
                volume_capability=self._capability,
                volume_context=volume.volume_context,
            )
        )

    def unpublish(self, name: str) -> None:
        _, target = self._places(name)
        self._node.NodeUnpublishVolume(
            csi.NodeUnpublishVolumeRequest(
                volume_id=self._volumes[name].volume_id, target_path=str(target)
            )
        )

    def unstage(self, name: str) -> None:
        staging, _ = self._places(name)
        self._node.NodeUnstageVolume(
            csi.NodeUnstageVolumeRequest(
                volume_id=self._volumes[name].volume_id, staging_target_path=str(staging)
            )
        )

    def cycle(self, name: str) -> None:
        """Stage, publish, unpublish and unstage."""
        self.stage(name)
        self.publish(name)
        self.unpublish(name)
        self.unstage(name)

    def stats(self, name: str) -> None:
        staging, target = self._places(name)
        self._node.NodeGetVolumeStats(
            csi.NodeGetVolumeStatsRequest(
                volume_id=self._volumes[name].volume_id,
                volume_path=str(target),
                staging_target_path=str(staging),
            )
        )

    def list(self, _name: str = "", most: int = 0) -> int:
        """List all volumes, page by page, and return their number.

        A page has at most `most` entries, or as many as the driver puts into it.
        """
        token, count = "", 0
        while True:
            page = self._controller.ListVolumes(
                csi.ListVolumesRequest(starting_token=token, max_entries=most)
            )
            count += len(page.entries)
            token = page.next_token
            if not token:
                return count

    def snapshot(self, name: str, volume: str) -> str:
        """Take a snapshot of a volume that this client has created; return the snapshot's id."""
        request = csi.CreateSnapshotRequest(
            name=name, source_volume_id=self._volumes[volume].volume_id
        )
        snapshot: csi.Snapshot = self._controller.CreateSnapshot(request).snapshot
        return snapshot.snapshot_id

    def _places(self, name: str) -> tuple[Path, Path]:
        staging = self._wanted.folder / f"staging-{name}"
        staging.mkdir(exist_ok=True)
        return staging, self._wanted.folder / f"target-{name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a load: the seconds of each call, and of all together.

    `busy` is the number of cores that the clients themselves used, on average.
    """

    times: list[float]
    seconds: float
    busy: float

    @property
    def rate(self) -> float:
        """The number of operations per second, of all clients together."""
        return len(self.times) / self.seconds

    @property
    def p50(self) -> float:
        return statistics.median(self.times)


def run(
    endpoint: str,
    wanted: Wanted,
    operation: str,
    *,
    clients: int,
    count: int,
    first: int = 0,
    seconds: float = math.inf,
    meanwhile: Callable[[], object] = bool,
) -> Result:
    """Have `clients` call the method `operation` of `Client` `count` times in all.

    The calls get names made of consecutive numbers, from `first`. No call begins when `seconds`
    have passed. `meanwhile` is called here when the clients begin. An RPC that fails is raised.
    """
    processes = max(1, clients // THREADS)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1, timeout=60)
    with concurrent.futures.ProcessPoolExecutor(
        processes, context, initializer=_remember, initargs=(barrier,)
    ) as pool:
        per_process = count // processes
        jobs = [
            pool.submit(
                _process,
                endpoint,
                wanted,
                operation,
                min(clients, THREADS),
                range(first + number * per_process, first + (number + 1) * per_process),
                seconds=seconds,
            )
            for number in range(processes)
        ]
        barrier.wait()
        meanwhile()
        answers = [job.result() for job in jobs]
    begin, end = min(item[1] for item in answers), max(item[2] for item in answers)
    return Result(
        times=[seconds for item in answers for seconds in item[0]],
        seconds=end - begin,
        busy=sum(item[3] for item in answers) / (end - begin),
    )


_barrier: Any = None


def _remember(barrier: Any) -> None:
    global _barrier  # noqa: PLW0603  (a barrier can only be inherited)
    _barrier = barrier


def _process(
    endpoint: str, wanted: Wanted, operation: str, threads: int, numbers: range, *, seconds: float
) -> tuple[list[float], float, float, float]:
    """Run the clients of one process, and return their times and how much of a processor they took.

    These are the seconds of each call, the begin and the end (`time.monotonic`), and the seconds of
    processor time.
    """
    clients = [Client(endpoint, wanted) for _ in range(threads)]
    for client in clients:
        client.probe("")  # connects, and warms up
    shares = [numbers[thread::threads] for thread in range(threads)]
    _barrier.wait()
    begin, used = time.monotonic(), time.process_time()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(timed, getattr(client, operation), share, seconds)
            for client, share in zip(clients, shares, strict=True)
        ]
        times = [seconds for job in jobs for seconds in job.result()]
    end, used = time.monotonic(), time.process_time() - used
    for client in clients:
        client.close()
    return times, begin, end, used


def timed(call: Callable[[str], object], numbers: range, seconds: float = math.inf) -> list[float]:
    """Call `call` with each number as a name of six digits; return the seconds of each call.

    No call begins when `seconds` have passed.
    """
    times = []
    end = time.perf_counter() + seconds
    for number in numbers:
        begin = time.perf_counter()
        if begin > end:
            break
        call(f"{number:06}")
        times.append(time.perf_counter() - begin)
    return times


def repeated(call: Callable[[], object], count: int) -> list[float]:
    """Call `call` `count` times; return the seconds of each call."""
    return timed(lambda _: call(), range(count))
