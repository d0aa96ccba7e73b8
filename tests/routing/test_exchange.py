"""What a node takes of what claims to be another node's, and what it gives away."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import NodeDriver, make_certificates
from driver import MIB, block_capability, from_snapshot, mount_capability, refused
from exports import make_volume
from routing.conftest import ending
from rpc.conftest import limited_pool, on_disk, wait_for
from system.test_bad_exports import crafted, tar
from taker import calling
from terminal import piped

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import exchange_pb2 as exchange
from pycsi.proto import exchange_pb2_grpc
from pycsi.transfer import pax
from pycsi.transfer.manifest import VolumeKind

SIZE = 32 * MIB
Code = grpc.StatusCode
Receive = exchange.ReceiveRequest


@dataclasses.dataclass
class Receiver:
    """A node, and what whoever has the controller's certificate can tell it."""

    node: NodeDriver
    stub: Any

    def begin(self, **more: Any) -> exchange.ReceiveRequest:
        fields: dict[str, Any] = {
            "name": "copy",
            "volume_capabilities": [block_capability()],
            "parameters": {"restoreAnywhere": "true"},
            "volume_content_source": from_snapshot("s@a"),
        }
        return Receive(volume_id="copy@b", begin=csi.CreateVolumeRequest(**(fields | more)))

    def tell(self, *messages: exchange.ReceiveRequest) -> list[exchange.ReceiveResponse]:
        return list(self.stub.Receive(iter(messages), timeout=60))

    def give(self, data: bytes, **more: Any) -> list[exchange.ReceiveResponse]:
        pieces = (data[at : at + MIB] for at in range(0, len(data), MIB))
        return self.tell(self.begin(**more), *(Receive(data=piece) for piece in pieces))

    def check_untouched(self) -> None:
        """Check that nothing is left, not even room that is promised."""
        wait_for(lambda: on_disk(self.node) == set())
        assert self.node.volume_ids() == []
        assert self.node.capacity().available_capacity == self.room

    def __post_init__(self) -> None:
        self.room = self.node.capacity().available_capacity


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("exchange") / "tls")


@pytest.fixture(scope="module")
def sender(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeDriver]:
    """Return a node with a raw block volume, a directory, and a snapshot of each."""
    folder = tmp_path_factory.mktemp("sender")
    (folder / "pool").mkdir()
    with NodeDriver("a", folder, [f"default={folder / 'pool'}"], tls) as running:
        running.snapshot("s", make_volume(running, "block", SIZE))
        running.delete("v@a")
        running.snapshot("d", make_volume(running, "directory", SIZE))
        yield running


@pytest.fixture(scope="module")
def shared_receiver(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    folder = tmp_path_factory.mktemp("receiver")
    (folder / "pool").mkdir()
    pool = limited_pool("default", folder / "pool", 256 * MIB)
    with (
        NodeDriver("b", folder, [pool], tls) as running,
        calling(running, tls, kind=exchange_pb2_grpc.ExchangeStub) as stub,
    ):
        yield Receiver(running, stub)


@pytest.fixture
def receiver(shared_receiver: Receiver) -> Iterator[Receiver]:
    """Return a node; after the test nothing of it is left there."""
    yield shared_receiver
    shared_receiver.check_untouched()


@pytest.fixture(scope="module")
def whole(sender: NodeDriver, tls: Path) -> Callable[[str], bytes]:
    """Return a function that returns what the node sends of a snapshot."""

    def sent(snapshot_id: str) -> bytes:
        with calling(sender, tls, kind=exchange_pb2_grpc.ExchangeStub) as stub:
            request = exchange.SendRequest(snapshot_id=snapshot_id)
            return b"".join(message.data for message in stub.Send(request))

    return sent


def test_pieces_of_any_size(receiver: Receiver, whole: Callable[[str], bytes]) -> None:
    """How a stream is cut into messages makes no difference."""
    data = whole("s@a")
    sizes = itertools.cycle((1, 0, 67, 69, 500_000, 3 * MIB))
    messages, at = [receiver.begin()], 0
    while at < len(data):
        size = next(sizes)
        messages.append(Receive(data=data[at : at + size]))
        at += size
    *_, last = receiver.tell(*messages)
    assert last.volume.volume_id == "copy@b"
    *_, again = receiver.tell(receiver.begin())
    assert again == last
    receiver.node.delete("copy@b")


def test_damaged(receiver: Receiver, whole: Callable[[str], bytes]) -> None:
    """A stream with one wrong bit, cut, or with more than it says leaves nothing."""
    data = whole("s@a")
    flips = (len(data) * share // 11 for share in range(11))
    flipped = (data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] for at in flips)
    cuts = (data[:length] for length in (0, 1, 20, 400, len(data) // 2, len(data) - 1))
    more = (data + b"x", data + data, data[: len(data) // 2] + data)
    for wrong in (*flipped, *cuts, *more):
        with refused(Code.FAILED_PRECONDITION, "what has arrived of snapshot s@a is refused"):
            receiver.give(wrong)
        receiver.check_untouched()


def test_hung_up(receiver: Receiver, whole: Callable[[str], bytes]) -> None:
    """If the controller hangs up in the midst nothing is left."""
    data = whole("s@a")

    def messages() -> Iterator[exchange.ReceiveRequest]:
        yield receiver.begin()
        yield Receive(data=data[: len(data) // 2])
        wait_for(lambda: any((receiver.node.pool / "tmp").iterdir()))
        call.cancel()

    call = receiver.stub.Receive(messages())
    assert ending(lambda: call)[0] is Code.CANCELLED


def test_another_source(receiver: Receiver, whole: Callable[[str], bytes]) -> None:
    for snapshot_id in ("d@a", "v@a", "s@c"):
        with refused(Code.FAILED_PRECONDITION, "it is of s@a"):
            receiver.give(whole("s@a"), volume_content_source=from_snapshot(snapshot_id))


def test_crafted(receiver: Receiver, tmp_path: Path) -> None:
    """What no export of a node has is refused, and nothing outside the new volume is touched."""
    neighbour = tmp_path / "neighbour"
    directory = {
        "volume_capabilities": [mount_capability()],
        "parameters": {"restoreAnywhere": "true", "quota": "none"},
    }
    regular = pax.FileType.REGULAR
    for number, (entries, word) in enumerate(
        (
            ([pax.Entry(path=b"../../x", type=regular)], "leads out"),
            ([pax.Entry(path=b"/x", type=regular)], "leads out"),
            ([pax.Entry(path=str(neighbour).encode(), type=regular)], "leads out"),
            (
                [
                    pax.Entry(path=b"l", type=pax.FileType.SYMLINK, link=b"/"),
                    pax.Entry(path=b"l/x", type=regular),
                ],
                "l/x",
            ),
            ([pax.Entry(path=b"h", type=pax.FileType.LINK, link=b"../../x")], "leads out"),
        )
    ):
        file = crafted(tmp_path / str(number), tar(*entries), snapshot="s@a")
        with refused(Code.FAILED_PRECONDITION, word):
            receiver.give(file.read_bytes(), **directory)
        receiver.check_untouched()
    assert not neighbour.exists()


def test_crafted_manifest(receiver: Receiver, tmp_path: Path) -> None:
    """Nor does a manifest make a node do what CreateVolume would not."""
    mounted = {"volume_capabilities": [mount_capability()]}
    cases: list[tuple[dict[str, Any], dict[str, Any], Code, str]] = [
        ({"base": "x", "base_snapshot": "x"}, {}, Code.FAILED_PRECONDITION, "increment"),
        ({"snapshot": "../../x"}, {}, Code.FAILED_PRECONDITION, "it is of"),
        ({"size": 512 * MIB}, {}, Code.RESOURCE_EXHAUSTED, "left of 256 MiB"),
        ({"size": 2**60}, {}, Code.OUT_OF_RANGE, "at most"),
        (  # an image that holds nothing, where a filesystem should be
            {"kind": VolumeKind.IMAGE, "filesystem": "ext4"},
            mounted,
            Code.FAILED_PRECONDITION,
            "holds no filesystem",
        ),
    ]
    for number, (manifest, more, code, word) in enumerate(cases):
        fields = {"kind": VolumeKind.BLOCK, "snapshot": "s@a"} | manifest
        file = crafted(tmp_path / f"{number}", **fields)
        with refused(code, word):
            receiver.give(file.read_bytes(), **more)
        receiver.check_untouched()


def test_wrong_requests(receiver: Receiver, whole: Callable[[str], bytes]) -> None:
    data = Receive(data=whole("s@a")[:MIB])
    for messages, word in (
        ((), "begin is missing"),
        ((data,), "begin is missing"),
        ((receiver.begin(), receiver.begin()), "something else where data is next"),
        ((receiver.begin(), Receive()), "something else where data is next"),
        ((Receive(volume_id="copy@b"),), "begin is missing"),
        ((Receive(volume_id="copy@a", begin=receiver.begin().begin),), "copy@b"),
        ((Receive(volume_id="../copy@b", begin=receiver.begin().begin),), "copy@b"),
        ((receiver.begin(name="../../x"), data), "volume_id"),
        ((receiver.begin(volume_content_source=None), data), "volume_content_source is missing"),
        ((receiver.begin(parameters={}), data), "restoreAnywhere"),
        ((receiver.begin(parameters={"restoreAnywhere": "false"}), data), "restoreAnywhere"),
        ((receiver.begin(volume_capabilities=[]), data), "volume_capabilities"),
    ):
        with refused(Code.INVALID_ARGUMENT, word):
            receiver.tell(*messages)
        receiver.check_untouched()


def test_too_large(receiver: Receiver) -> None:
    """A message that gRPC does not take ends the copy."""
    with refused(Code.RESOURCE_EXHAUSTED, "larger than max"):
        receiver.tell(receiver.begin(), Receive(data=bytes(5 * MIB)))


def test_what_is_sent(sender: NodeDriver, tls: Path) -> None:
    """A node sends what it has by an id, and nothing else."""
    send = exchange.SendRequest
    with calling(sender, tls, kind=exchange_pb2_grpc.ExchangeStub) as stub:
        for request, code in (
            (send(), Code.INVALID_ARGUMENT),
            (send(snapshot_id="s@a", source_volume_id="v@a"), Code.INVALID_ARGUMENT),
            (send(snapshot_id="v@a"), Code.NOT_FOUND),
            (send(source_volume_id="s@a"), Code.NOT_FOUND),
            (send(snapshot_id="s@b"), Code.NOT_FOUND),
            (send(snapshot_id="../snapshots/s@a"), Code.NOT_FOUND),
            (send(snapshot_id="/etc/passwd"), Code.NOT_FOUND),
            (send(source_volume_id="../../../etc"), Code.NOT_FOUND),
        ):
            found: list[Any] = []
            code_found, _ = ending(lambda: found.extend(stub.Send(request)))  # noqa: B023
            assert code_found is code, request
            assert found == []


def test_who_may_ask(sender: NodeDriver, tls: Path) -> None:
    """Only the controller may: neither another node, nor anybody at the unix socket."""
    request = exchange.SendRequest(snapshot_id="s@a")
    receive = Receive(volume_id="copy@a")
    with calling(sender, tls, "node", exchange_pb2_grpc.ExchangeStub) as stub:
        assert ending(lambda: stub.Send(request))[0] is Code.UNAVAILABLE
        assert ending(lambda: stub.Receive(iter([receive])))[0] is Code.UNAVAILABLE
    stub = exchange_pb2_grpc.ExchangeStub(sender.channel)  # type: ignore[no-untyped-call]
    assert ending(lambda: stub.Send(request))[0] is Code.UNIMPLEMENTED
    assert ending(lambda: stub.Receive(iter([receive])))[0] is Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("volume_id", "code"),
    [
        ("../volumes/kept@b", Code.INVALID_ARGUMENT),
        ("kept", Code.INVALID_ARGUMENT),
        ("kept@a", Code.FAILED_PRECONDITION),
    ],
)
def test_moves_of_what_is_no_volume_here(receiver: Receiver, volume_id: str, code: Code) -> None:
    """No step of a move is taken with what is no id, or is that of another node's volume."""
    stub = receiver.stub
    receiver.node.create("kept", MIB, parameters={"type": "directory", "quota": "none"})
    for step in (
        lambda: stub.Depart(exchange.DepartRequest(volume_id=volume_id, to_node="a", mark=True)),
        lambda: stub.Leave(exchange.LeaveRequest(volume_id=volume_id, point="p")),
        lambda: stub.Discard(exchange.DiscardRequest(volume_id=volume_id)),
        lambda: stub.Stay(exchange.StayRequest(volume_id=volume_id)),
        lambda: stub.Settle(exchange.SettleRequest(volume_id=volume_id, original_id="v@a")),
        lambda: stub.Abandon(exchange.AbandonRequest(volume_id=volume_id)),
        lambda: list(
            stub.Send(
                exchange.SendRequest(
                    source_volume_id=volume_id, departing=exchange.Departing(to_node="a")
                )
            )
        ),
    ):
        assert ending(step)[0] is code
    assert receiver.node.volume_ids() == ["kept@b"]
    receiver.node.delete("kept@b")


def test_decisions_need_their_point(receiver: Receiver) -> None:
    """A volume leaves at the point at which it departs, and at no other; until then it may stay."""
    stub, node = receiver.stub, receiver.node
    node.create("v", MIB, parameters={"type": "directory", "quota": "none"})
    leave = exchange.LeaveRequest(volume_id="v@b", point="p")
    for _ in range(2):
        with refused(Code.FAILED_PRECONDITION, "given up"):
            stub.Leave(leave)
        marked = stub.Depart(exchange.DepartRequest(volume_id="v@b", to_node="a", mark=True))
    first = marked.point
    stub.Stay(exchange.StayRequest(volume_id="v@b"))
    with refused(Code.FAILED_PRECONDITION, "given up"):
        stub.Leave(exchange.LeaveRequest(volume_id="v@b", point=first))
    marked = stub.Depart(exchange.DepartRequest(volume_id="v@b", to_node="a", mark=True))
    assert marked.point not in {"", first}
    for _ in range(2):
        stub.Leave(exchange.LeaveRequest(volume_id="v@b", point=marked.point))
        assert node.volume_ids() == []
    with refused(Code.FAILED_PRECONDITION, "has left for node a"):
        stub.Stay(exchange.StayRequest(volume_id="v@b"))
    again = stub.Depart(exchange.DepartRequest(volume_id="v@b", to_node="a"))
    assert (again.left, again.point) == (True, marked.point)
    node.restart()
    for _ in range(2):
        stub.Discard(exchange.DiscardRequest(volume_id="v@b"), wait_for_ready=True)
    assert piped("trash", "restore", "v@b", f"--pool={node.pools[0]}").returncode == 0
    wait_for(lambda: node.volume_ids() == ["v@b"])
    assert not stub.Depart(exchange.DepartRequest(volume_id="v@b", to_node="a")).point
    node.delete("v@b")
