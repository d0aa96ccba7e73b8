"""What passes through the controller: bytes, metadata, deadlines, cancellation, streams.

The node is a server of the test's own, which sees what arrives and can do what no real node does.
"""

import contextlib
import dataclasses
import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from authority import FILES
from cluster import Cluster, controller, make_certificates
from driver import MIB, Driver, block_capability, refused
from routing.conftest import create, ending, killed, reaches, requirement, stopped
from rpc.conftest import TOPOLOGY, wait_for

from pycsi.proto import csi_pb2 as csi

UNKNOWN_FIELD = b"\xfa\xff\x7f\x05newer"
"""The field 262143 of a message, which no version of CSI has: the text "newer"."""

PIECE = 64 * 1024

Answer = Callable[[bytes, Any], Any]


class Node(grpc.GenericRpcHandler):
    """A node `x` that answers with the functions in `answers`, by method."""

    def __init__(self, tls: Path) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: queue.Queue[tuple[str, bytes, dict[str, Any], float | None]] = queue.Queue()
        self._server = grpc.server(ThreadPoolExecutor(64), handlers=[self])
        authority, chain, key = ((tls / "node" / name).read_bytes() for name in FILES)
        pair = grpc.ssl_server_credentials([(key, chain)], authority, True)
        self.port = self._server.add_secure_port("127.0.0.1:0", pair)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        if name == "GetPluginInfo":
            return grpc.unary_unary_rpc_method_handler(_introduce)
        answer = self.answers.get(name, lambda *_: b"")

        def remember(data: bytes, context: Any) -> Any:
            metadata = dict(context.invocation_metadata())
            self.asked.put((name, data, metadata, context.time_remaining()))
            return answer(data, context)  # type: ignore[no-untyped-call]

        if name.startswith("GetMetadata"):
            return grpc.unary_stream_rpc_method_handler(remember)
        return grpc.unary_unary_rpc_method_handler(remember)


def _introduce(data: bytes, context: Any) -> bytes:
    manifest = {TOPOLOGY: "x", "pycsi-instance": "1"}
    info = csi.GetPluginInfoResponse(
        name="pycsi.storage", vendor_version="newer", manifest=manifest
    )
    return info.SerializeToString() + UNKNOWN_FIELD


class Relay:
    """A TCP port that is another's, until it is cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(PIECE):
                other.sendall(data)

    def cut(self) -> None:
        """End all connections, as when the process at the other end is killed."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for item in self._open:
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()


@dataclasses.dataclass
class Pair:
    """A node, and a controller that forwards to it, and through a relay as node `y`."""

    node: Node
    central: Driver

    def raw(self, path: str, *, streams: bool = False) -> Any:
        """Return a method that takes and gives bytes."""
        kind = self.central.channel.unary_stream if streams else self.central.channel.unary_unary
        return kind(f"/csi.v1.{path}")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("forwarding") / "tls")


@pytest.fixture(scope="module")
def running(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    node = Node(tls)
    folder = tmp_path_factory.mktemp("running")
    with controller(folder, tls, {}, (f"--node=x=127.0.0.1:{node.port}",)) as central:
        yield Pair(node, central)
    node.stop()


@pytest.fixture
def pair(running: Pair) -> Pair:
    """Return the pair, whose node answers nothing but empty messages, and was asked nothing."""
    running.node.answers = {}
    running.node.asked = queue.Queue()
    return running


DELETE = csi.DeleteVolumeRequest(volume_id="v@x", secrets={"a": "b"}).SerializeToString()
ALLOCATED = csi.GetMetadataAllocatedRequest(snapshot_id="s@x").SerializeToString()


def test_unknown_fields(pair: Pair) -> None:
    """Fields of a later version pass in both directions, byte by byte."""
    sent = DELETE + UNKNOWN_FIELD
    answer = csi.DeleteVolumeResponse().SerializeToString() + UNKNOWN_FIELD
    pair.node.answers = {
        "DeleteVolume": lambda *_: answer,
        "GetMetadataAllocated": lambda *_: iter([answer, b"", answer * 2]),
    }
    assert pair.raw("Controller/DeleteVolume")(sent) == answer
    assert pair.node.asked.get(timeout=10)[:2] == ("DeleteVolume", sent)
    sent = ALLOCATED + UNKNOWN_FIELD
    replies = pair.raw("SnapshotMetadata/GetMetadataAllocated", streams=True)(sent)
    assert list(replies) == [answer, b"", answer * 2]
    assert pair.node.asked.get(timeout=10)[:2] == ("GetMetadataAllocated", sent)


def test_unknown_fields_of_lists(pair: Pair) -> None:
    """They pass through lists too, in the request, in an entry and beside the entries."""
    entry = csi.ListVolumesResponse.Entry(volume=csi.Volume(volume_id="v@x"))
    entry.MergeFromString(UNKNOWN_FIELD)
    page = csi.ListVolumesResponse(entries=[entry])
    page.MergeFromString(UNKNOWN_FIELD)
    pair.node.answers = {"ListVolumes": lambda *_: page.SerializeToString()}
    asked = csi.ListVolumesRequest(max_entries=1).SerializeToString() + UNKNOWN_FIELD
    found = pair.raw("Controller/ListVolumes")(asked)
    assert found.count(UNKNOWN_FIELD) == 2
    assert csi.ListVolumesResponse.FromString(found).entries == [entry]
    assert UNKNOWN_FIELD in pair.node.asked.get(timeout=10)[1]


def test_metadata(pair: Pair) -> None:
    """The caller's metadata goes along, but for what says which node the request is for."""
    sent = (
        ("x-trace", "1"),
        ("x-trace-bin", b"\0\xff"),
        ("pycsi-node", "y"),
        ("grpc-previous-rpc-attempts", "7"),
        ("authorization", "Bearer token"),
    )
    pair.raw("Controller/DeleteVolume")(DELETE, metadata=sent)
    metadata = pair.node.asked.get(timeout=10)[2]
    wanted = {"x-trace": "1", "x-trace-bin": b"\0\xff", "authorization": "Bearer token"}
    assert wanted.items() <= metadata.items()
    assert metadata["pycsi-node"] == "x"
    assert "Bearer" not in pair.central.log


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
def test_errors(pair: Pair, code: grpc.StatusCode) -> None:
    """A node's error is the caller's: its code and its words, unless that is no answer."""
    words = "volume \u201cv\u201d: 100 % \u00fcber\nnext line"

    def refuse(data: bytes, context: Any) -> bytes:
        context.abort(code, words)
        return b""

    def refuse_later(data: bytes, context: Any) -> Iterator[bytes]:
        yield b"first"
        refuse(data, context)

    pair.node.answers = {"DeleteVolume": refuse, "GetMetadataAllocated": refuse_later}
    found, details = ending(lambda: pair.raw("Controller/DeleteVolume")(DELETE))
    replies = pair.raw("SnapshotMetadata/GetMetadataAllocated", streams=True)(ALLOCATED)
    assert next(replies) == b"first"
    later, later_details = ending(lambda: replies)
    unanswered = code.name in {"UNAVAILABLE", "UNKNOWN", "CANCELLED", "PERMISSION_DENIED"}
    assert found is later is (grpc.StatusCode.UNAVAILABLE if unanswered else code)
    assert words in details
    assert words in later_details
    assert ("node x" in details) is unanswered


# Deadlines and cancellation


class Held:
    """An answer that does not come; it tells whether the caller has gone."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.gone = threading.Event()
        self.go = threading.Event()

    def __call__(self, data: bytes, context: Any) -> bytes:
        context.add_callback(self.gone.set)
        self.arrived.set()
        while context.is_active() and not self.go.wait(0.02):
            pass
        return b""

    def stream(self, data: bytes, context: Any) -> Iterator[bytes]:
        yield b"first"
        yield self(data, context)


def test_deadline(pair: Pair) -> None:
    """The node has as much time as the caller gives, less what has gone by; or any time."""
    pair.raw("Controller/DeleteVolume")(DELETE, timeout=200)
    left = pair.node.asked.get(timeout=10)[3]
    assert left is not None
    assert 150 < left < 210  # gRPC rounds up
    pair.raw("Controller/DeleteVolume")(DELETE)
    left = pair.node.asked.get(timeout=10)[3]
    assert left is None or left > 1_000_000
    list(pair.raw("Controller/ListVolumes")(b"", timeout=200))
    left = pair.node.asked.get(timeout=10)[3]
    assert left is not None
    assert 150 < left < 210  # gRPC rounds up


@pytest.mark.parametrize("streams", [False, True])
def test_deadline_passes(pair: Pair, streams: bool) -> None:
    """When the caller's time is over, the caller is told, and so is the node."""
    held = Held()
    pair.node.answers = {"DeleteVolume": held, "GetMetadataAllocated": held.stream}
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        if streams:
            method = pair.raw("SnapshotMetadata/GetMetadataAllocated", streams=True)
            list(method(ALLOCATED, timeout=0.5))
        else:
            pair.raw("Controller/DeleteVolume")(DELETE, timeout=0.5)
    assert held.gone.wait(10)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("Controller/DeleteVolume", DELETE),
        ("Controller/ListVolumes", b""),
        ("Controller/GetCapacity", b""),
        ("SnapshotMetadata/GetMetadataAllocated", ALLOCATED),
    ],
)
def test_cancellation(pair: Pair, path: str, data: bytes) -> None:
    """A call that is given up by its caller is given up on the node too."""
    held = Held()
    name = path.rpartition("/")[2]
    streams = name.startswith("GetMetadata")
    pair.node.answers = {name: held.stream if streams else held}
    method = pair.raw(path, streams=streams)
    call = method(data) if streams else method.future(data)
    if streams:
        assert next(call) == b"first"
    assert held.arrived.wait(10)
    before = pair.central.log.count('"CANCELLED"')
    call.cancel()
    assert held.gone.wait(10)
    wait_for(lambda: pair.central.log.count('"CANCELLED"') > before)
    pair.node.answers = {}
    assert ending(lambda: pair.raw("Controller/DeleteVolume")(DELETE))[0] is grpc.StatusCode.OK


def test_stop(pair: Pair, tls: Path, tmp_path: Path) -> None:
    """A controller that is stopped lets the calls under way end."""
    held = Held()
    pair.node.answers = {"DeleteVolume": held}
    with controller(tmp_path, tls, {}, (f"--node=x=127.0.0.1:{pair.node.port}",)) as central:
        call = Pair(pair.node, central).raw("Controller/DeleteVolume").future(DELETE)
        assert held.arrived.wait(10)
        assert central.process is not None
        central.process.terminate()
        wait_for(lambda: "stopping" in central.log)
        held.go.set()
        assert call.result(timeout=30) == b""
        assert central.process.wait(30) == 0
        assert "Traceback" not in central.log


# Streams


def resident(driver: Driver) -> int:
    """Return the bytes of memory that a driver's process has."""
    assert driver.process is not None
    status = Path(f"/proc/{driver.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_back_pressure(pair: Pair) -> None:
    """The node sends no more than the caller reads, but for what is on the way."""
    sent = itertools.count()
    produced = [0]

    def pour(data: bytes, context: Any) -> Iterator[bytes]:
        while True:
            produced[0] = next(sent) + 1
            yield bytes(PIECE)

    pair.node.answers = {"GetMetadataAllocated": pour}
    before = resident(pair.central)
    replies = pair.raw("SnapshotMetadata/GetMetadataAllocated", streams=True)(ALLOCATED)
    for count in (10, 3000):
        for _ in range(count):
            next(replies)
        stalled = -1
        while produced[0] != stalled:
            stalled = produced[0]
            time.sleep(0.5)
        assert resident(pair.central) - before < 40 * MIB
    assert produced[0] * PIECE > 180 * MIB
    replies.cancel()


def test_slow_stream_holds_nobody_up(pair: Pair) -> None:
    """A reader that reads nothing delays neither other calls nor other streams."""
    pair.node.answers = {"GetMetadataAllocated": lambda *_: itertools.repeat(bytes(PIECE), 300)}
    method = pair.raw("SnapshotMetadata/GetMetadataAllocated", streams=True)
    slow = [method(ALLOCATED) for _ in range(8)]
    for replies in slow:
        next(replies)
    for _ in range(20):
        pair.raw("Controller/DeleteVolume")(DELETE, timeout=60)
    assert sum(len(part) for part in method(ALLOCATED, timeout=60)) == 300 * PIECE
    for replies in slow:
        assert sum(len(part) for part in replies) == 299 * PIECE


def test_cut_stream(tmp_path: Path, tls: Path) -> None:
    """A stream whose node dies ends with UNAVAILABLE, never as if it was complete."""
    node = Node(tls)
    node.answers = {"GetMetadataAllocated": Held().stream, "DeleteVolume": Held()}
    relay = Relay(node.port)
    with controller(tmp_path, tls, {}, (f"--node=x=127.0.0.1:{relay.port}",)) as central:
        method: Any = central.channel.unary_stream("/csi.v1.SnapshotMetadata/GetMetadataAllocated")
        replies = method(ALLOCATED)
        assert next(replies) == b"first"
        unary: Any = central.channel.unary_unary("/csi.v1.Controller/DeleteVolume")
        call = unary.future(DELETE)
        while node.asked.get(timeout=10)[0] != "DeleteVolume":
            pass
        relay.cut()
        with refused(grpc.StatusCode.UNAVAILABLE, "node x"):
            next(replies)
        with refused(grpc.StatusCode.UNAVAILABLE, "node x"):
            call.result(timeout=30)
    node.stop()


def test_changed_blocks(three: Cluster) -> None:
    """The blocks of snapshots are told through the controller as the node tells them."""
    node = three.nodes["b"]
    volume_id = create(
        three.controller,
        "blocks",
        parameters={},
        volume_capabilities=[block_capability()],
        accessibility_requirements=requirement(preferred=("b",)),
    )
    image = node.pool / "volumes" / volume_id / "disk.img"

    def snapshot(number: int) -> str:
        with image.open("r+b") as file:
            file.seek(number * MIB)
            file.write(b"x" * 4096)
        return three.controller.snapshot(f"blocks-{number}", volume_id).snapshot_id

    base, target = snapshot(0), snapshot(1)
    found = three.controller.allocated(target)
    assert found == node.allocated(target)
    assert (MIB, 4096) in found
    changed = three.controller.delta(base, target)
    assert changed == node.delta(base, target)
    assert changed[0][0] == MIB


# Nobody waits for another node


def test_stopped_node_delays_nobody(three: Cluster) -> None:
    """While a node stands still, 16 clients of the others see no error, and callers of it wait."""
    volumes = {name: create(three.nodes[name], f"busy-{name}") for name in ("a", "b")}
    controller_ = three.controller.controller

    def ask(name: str, timeout: float) -> grpc.StatusCode:
        asked = csi.ControllerGetVolumeRequest(volume_id=volumes[name])
        return ending(lambda: controller_.ControllerGetVolume(asked, timeout=timeout))[0]

    with stopped(three.nodes["a"]), ThreadPoolExecutor(32) as threads:
        waiting = [threads.submit(ask, "a", 4) for _ in range(16)]
        others = list(threads.map(lambda _: ask("b", 60), range(1600)))
        assert set(others) == {grpc.StatusCode.OK}
        assert {item.result() for item in waiting} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    wait_for(lambda: reaches(three.controller, "a"), 30)


def test_killed_node_delays_nobody(three: Cluster) -> None:
    """While a node is killed and comes back, 16 clients of others see no error."""
    volume_id = create(three.nodes["b"], "steady")
    asked = csi.ControllerGetVolumeRequest(volume_id=volume_id)
    over = threading.Event()

    def run() -> set[grpc.StatusCode]:
        codes = set()
        while not over.is_set():
            codes.add(
                ending(lambda: three.controller.controller.ControllerGetVolume(asked, timeout=60))[
                    0
                ]
            )
        return codes

    with ThreadPoolExecutor(16) as threads:
        running = [threads.submit(run) for _ in range(16)]
        with killed(three, "a"):
            for _ in range(20):
                code, _ = ending(lambda: three.controller.delete("none@a"))
                assert code is grpc.StatusCode.UNAVAILABLE
        over.set()
        assert {code for item in running for code in item.result()} == {grpc.StatusCode.OK}
