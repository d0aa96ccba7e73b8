"""What the way through the controller costs, and how that depends on the nodes behind it."""

import functools
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import grpc
import load
from cluster import Cluster, NodeDriver
from driver import MIB, Driver
from fleet import PREFIX
from ground import Location, endpoint, peak, resident
from rows import DIRECTORY, IMAGE, SEVERAL, SHORT, Row, median, ms, timed

from pycsi.proto import csi_pb2 as csi

_Pairs = tuple[list[float], list[float]]
"""The times on the node's own socket, and through the controller, turn by turn."""

VOLUMES = 100
"""The volumes of each node of the clusters that are compared."""

_KINDS = {"directory": DIRECTORY, "image": IMAGE}
_CLIENTS = 16
_TURNS = 12
_LISTINGS = 5
_SIZE = 20 * MIB
_MEGABYTE = 1000 * 1000
_MS = 1000

_WINDOW = 25.0
"""Seconds of load around a fault: a node that hangs is noticed after 15, and asked for again."""

_CALM = 3.0
"""Seconds of load before a fault."""

_ASKED = 2.0
"""Seconds for an RPC to a node that has failed."""

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def single(cluster: Cluster, where: Location) -> Iterator[Row]:
    """Compare RPCs through the controller with those on the node's own socket, by one client."""
    name, node = next(iter(cluster.nodes.items()))
    for kind, parameters in _KINDS.items():
        wanted = _wanted(where, [name], parameters, "single")
        sides = [load.Client(endpoint(node), wanted), _client(cluster, wanted)]
        if kind == "directory":
            yield _getting(sides, where)
        created: _Pairs = ([], [])
        deleted: _Pairs = ([], [])
        count = SHORT // 4 if kind == "directory" else SEVERAL // 2
        for turn in range(_TURNS):
            numbers = range(turn * count, (turn + 1) * count)
            for side, client in enumerate(sides):
                created[side].append(median(load.timed(client.create, numbers)))
                deleted[side].append(median(load.timed(client.delete, numbers)))
                node.reaped()
        yield _added(f"CreateVolume, {kind}", where, created)
        yield _added(f"DeleteVolume, {kind}", where, deleted)


def _getting(sides: Sequence[load.Client], where: Location) -> Row:
    times: _Pairs = ([], [])
    for client in sides:
        client.create("000000")  # the same volume
    for _ in range(_TURNS):
        for side, client in enumerate(sides):
            call = functools.partial(client.get, "000000")
            times[side].append(median(load.repeated(call, SHORT)))
    sides[0].delete("000000")
    return _added("ControllerGetVolume", where, times)


def _added(what: str, where: Location, times: _Pairs) -> Row:
    direct, routed = times
    return Row(
        what=f"{what}: what the controller adds",
        ground=where.kind,
        seen=f"{ms(median(routed))}; on the node's socket {ms(median(direct))}",
        value=median([there - here for here, there in zip(direct, routed, strict=True)]) * _MS,
        unit="ms",
        most=1,
    )


def shared(cluster: Cluster, where: Location) -> Iterator[Row]:
    """Compare the rates of 16 clients that create and delete, in many short turns."""
    name, node = next(iter(cluster.nodes.items()))
    for kind, count in (("directory", 480), ("image", 96)):
        wanted = _wanted(where, [name], _KINDS[kind], "shared")
        direct: list[float] = []
        routed: list[float] = []
        busy: list[float] = []
        for _ in range(_TURNS):
            for rates, driver in ((direct, node), (routed, cluster.controller)):
                result = load.run(endpoint(driver), wanted, "renew", clients=_CLIENTS, count=count)
                node.reaped()
                rates.append(result.rate)
                busy.append(result.busy)
        yield Row(
            what=f"CreateVolume and DeleteVolume, {kind}, 16 clients: through the controller",
            ground=where.kind,
            seen=f"{median(routed):.0f}/s; on the node's socket {median(direct):.0f}/s; the "
            f"clients took {median(busy):.1f} cores",
            value=median([there / here for here, there in zip(direct, routed, strict=True)]),
            least=0.85,
        )


def faults(cluster: Cluster, where: Location) -> Iterator[Row]:
    """Measure the slowest creation and deletion on other nodes while one is killed or hangs."""
    *others, name = cluster.nodes
    wanted = _wanted(where, others, DIRECTORY, "faults")
    victim = cluster.nodes[name]
    calm = _loaded(cluster, wanted)
    killed = _loaded(cluster, wanted, functools.partial(_kill, victim, cluster.controller))
    victim.start()
    stopped = _loaded(cluster, wanted, functools.partial(_stop, victim, cluster.controller))
    for what, result in (("is killed", killed), ("hangs", stopped)):
        yield Row(
            what=f"CreateVolume and DeleteVolume while another node {what}, 16 clients, slowest",
            ground=where.kind,
            seen=f"median {ms(result.p50)} of {len(result.times)}, no error; without that "
            f"{max(calm.times):.2f} s, median {ms(calm.p50)} of {len(calm.times)}",
            value=max(result.times),
            unit="s",
            most=1,
        )


def _loaded(
    cluster: Cluster, wanted: load.Wanted, meanwhile: Callable[[], object] = bool
) -> load.Result:
    result = load.run(
        endpoint(cluster.controller),
        wanted,
        "renew",
        clients=_CLIENTS,
        count=1_000_000,
        seconds=_WINDOW,
        meanwhile=meanwhile,
    )
    for node in wanted.nodes:
        cluster.nodes[node].reaped()
    return result


def _kill(victim: NodeDriver, controller: Driver) -> None:
    time.sleep(_CALM)
    victim.stop(signal.SIGKILL)
    _ask(victim, controller)


def _stop(victim: NodeDriver, controller: Driver) -> None:
    assert victim.process is not None
    time.sleep(_CALM)
    victim.process.send_signal(signal.SIGSTOP)
    try:
        _ask(victim, controller)
    finally:
        victim.process.send_signal(signal.SIGCONT)


def _ask(victim: NodeDriver, controller: Driver) -> None:
    """Ask the node that has failed until the load ends, by itself and with all others."""
    volume = csi.ControllerGetVolumeRequest(volume_id=f"v@{victim.name}")
    stub = controller.controller
    questions = (
        functools.partial(stub.ListVolumes, csi.ListVolumesRequest()),
        functools.partial(stub.ControllerGetVolume, volume),
    )
    end = time.monotonic() + _WINDOW - _CALM
    for ask in itertools.cycle(questions):
        if time.monotonic() > end:
            return
        try:
            ask(timeout=_ASKED)
        except grpc.RpcError as error:
            if error.code() not in _AWAY:
                raise
        else:
            raise AssertionError("an answer of a node that has failed")
        time.sleep(0.1)


def growing(two: Cluster, many: Cluster, where: Location) -> Iterator[Row]:
    """Compare a cluster of many nodes with one of two, in turns, and list all its volumes."""
    _client(many, _wanted(where, (), DIRECTORY, PREFIX)).capacity("0")  # finds all nodes
    idle = resident(many.controller)
    sides = [_Side(many, where), _Side(two, where)]
    for _ in range(_TURNS):
        for side in sides:
            side.turn()
    for operation in _Side.OPERATIONS:
        there, here = (median(side.times[operation]) for side in sides)
        yield Row(
            what=f"{operation} on one of {len(many.nodes)} nodes against one of 2",
            ground=where.kind,
            seen=f"{ms(there)}; with 2 nodes {ms(here)}",
            value=there / here,
            most=1.2,
        )
    yield from _listing(many, where)
    for what, size in (("idle", idle), ("at most", peak(many.controller))):
        yield Row(
            what=f"resident, the controller of {len(many.nodes)} nodes, {what}",
            ground=where.kind,
            seen="after these measurements" if what == "at most" else "after all nodes were found",
            value=size / _MEGABYTE,
            unit="MB",
            most=150,
        )


class _Side:
    """A cluster that is compared, and the times measured, in seconds.

    The same number of nodes is used in each: all processes of this machine would not fit into its
    processor's caches.
    """

    OPERATIONS = ("capacity", "create", "delete")

    def __init__(self, cluster: Cluster, where: Location) -> None:
        names = list(cluster.nodes)
        used = [names[0], names[-1]]
        self._nodes = [cluster.nodes[name] for name in used]
        self._client = _client(cluster, _wanted(where, used, DIRECTORY, "grown"))
        self.times: dict[str, list[float]] = {operation: [] for operation in self.OPERATIONS}

    def turn(self) -> None:
        for operation, times in self.times.items():
            times.append(median(load.timed(getattr(self._client, operation), range(50))))
        for node in self._nodes:
            node.reaped()


def _listing(cluster: Cluster, where: Location) -> Iterator[Row]:
    client = _client(cluster, _wanted(where, (), DIRECTORY, PREFIX))
    for most in (0, 1000, 100):
        times: list[float] = []
        for _ in range(_LISTINGS):
            count = timed(times, functools.partial(client.list, most=most))
        assert count == VOLUMES * len(cluster.nodes)
        yield Row(
            what=f"ListVolumes of {count}, "
            + (f"pages of {most}" if most else "pages as large as they can be"),
            ground=where.kind,
            seen=f"for the first time {times[0]:.2f} s" if most == 0 else "",
            value=max(times),
            unit="s",
            most=5,
        )


def _wanted(
    where: Location, nodes: Sequence[str], parameters: Mapping[str, str], prefix: str
) -> load.Wanted:
    return load.Wanted(
        folder=where.folder, parameters=parameters, size=_SIZE, prefix=prefix, nodes=nodes
    )


def _client(cluster: Cluster, wanted: load.Wanted) -> load.Client:
    return load.Client(endpoint(cluster.controller), wanted)
