"""Every RPC with whatever bytes: each is answered, none does harm, and nothing is left."""

import collections
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from driver import Driver
from google.protobuf.message import Message
from reliability.arena import delete_all
from reliability.canary import untouched
from reliability.conftest import Counter, check_unused, check_whole, names_in, trash
from reliability.fuzzing import LARGEST_MESSAGE, World, methods
from rpc.conftest import OK, code_of

from pycsi.linux import kernel
from pycsi.proto import csi_pb2 as csi

SEED = 20261124
THOROUGH, BOUNDED = 8000, 200
"""Requests for each kind of pool."""

SETTLED = 0.4
"""The share of requests after which memory should not grow any more.

Huge messages are among them only: each thread that reads one keeps what it took for the next.
"""

MAY_GROW = 24 * 1024
"""KiB of resident memory: what the allocator keeps goes up and down."""

PATIENCE = 60
Code = grpc.StatusCode
FOUND = {"volume_id": "volumes", "snapshot_id": "snapshots", "group_snapshot_id": "groups"}


class Fuzz:
    """A driver that is sent requests, and what it answered."""

    def __init__(self, driver: Driver, world: World, staging: Sequence[Path]) -> None:
        self._driver = driver
        self._world = world
        self._staging = staging
        self._methods = methods()
        self._weights = [_weight(path) for path, *_ in self._methods]
        self.answers: collections.Counter[tuple[str, str]] = collections.Counter()

    def send(self, *, huge: bool) -> None:
        """Send one request, now and then a `huge` one, and check the answer."""
        chance = self._world.chance
        for place in self._staging:  # an unpublished target is removed
            place.mkdir(exist_ok=True)
        ((path, request, response, streams),) = chance.choices(self._methods, self._weights)
        message = self._world.message(request)
        data = message.SerializeToString()
        shape = chance.random()
        if shape < 0.12:
            data = self._world.bytes_of(message)
        elif huge and shape < 0.13:
            data = oversized(chance)
        self._call(path, data, response, streams=streams)

    def _call(self, path: str, data: bytes, response: type[Message], *, streams: bool) -> None:
        channel = self._driver.channel
        method = path.rpartition("/")[2]
        make = channel.unary_stream if streams else channel.unary_unary
        call: Any = make(path, request_serializer=None, response_deserializer=response.FromString)
        try:
            answer = call(data, timeout=PATIENCE)
            for part in answer if streams else [answer]:
                self._learn(part)
        except grpc.RpcError as error:
            failure: Any = error
            code, text = failure.code(), failure.details()
            self.answers[method, code.name] += 1
            shown = f"{method} {data[:300]!r} of {len(data)} bytes: {code.name}: {text}"
            assert code not in {Code.INTERNAL, Code.UNKNOWN, Code.DEADLINE_EXCEEDED}, shown
            assert code not in {Code.UNAVAILABLE, Code.CANCELLED, Code.UNIMPLEMENTED}, shown
            assert 0 < len(text.encode()) <= 1024, shown
        else:
            self.answers[method, "OK"] += 1

    def _learn(self, answer: Message) -> None:
        """Remember the ids in an answer, to use them."""
        for field, value in answer.ListFields():
            if field.name in FOUND:
                known = getattr(self._world, FOUND[field.name])
                known.append(value)
                del known[:-12]
            elif field.message_type and not field.message_type.GetOptions().map_entry:
                for part in value if field.is_repeated else [value]:
                    self._learn(part)


def _weight(path: str) -> float:
    """Return how often to call a method: without volumes little can be done."""
    if "/Create" in path or path.endswith(("NodeStageVolume", "NodePublishVolume")):
        return 6
    return 0.5 if "Get" in path and path.endswith(("Capabilities", "Info")) else 2


def oversized(chance: random.Random) -> bytes:
    """Return a message about as large as gRPC allows, or larger: one field, or very many."""
    size = LARGEST_MESSAGE + chance.choice([-100, 0, 1, 100_000])
    if chance.random() < 0.5:
        return csi.CreateVolumeRequest(name="x" * (size - 10)).SerializeToString()
    return b"\x1a\x00" * (size // 2)


def memory(driver: Driver) -> int:
    """Return the driver's resident memory in KiB."""
    assert driver.process is not None
    text = Path(f"/proc/{driver.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def take_off(driver: Driver, place: Path, volume_id: str) -> None:
    """Unpublish and unstage a volume where that is noted; it may not be so any more."""
    if not place.exists():  # it was an inline one
        return
    notes = json.loads((place / "node.json").read_text())
    tolerable = {OK, Code.FAILED_PRECONDITION, Code.NOT_FOUND}
    for target in notes["published"]:
        assert code_of(lambda: driver.unpublish(volume_id, Path(target))) in tolerable  # noqa: B023
    for staging in notes["staged"]:
        assert code_of(lambda: driver.unstage(volume_id, Path(staging))) in tolerable  # noqa: B023


def undo(driver: Driver, pool: Path) -> None:
    """Take everything back that the requests did, as an orchestrator would."""
    records = {
        place.name: json.loads((place / "volume.json").read_text())
        for place in (pool / "volumes").iterdir()
    }
    # What is noted, and hidden by what another volume has on top of it, is seen afterwards.
    for _ in range(3):
        for volume_id, record in records.items():
            take_off(driver, pool / "volumes" / volume_id, record["handle"] or volume_id)
    for volume_id in driver.volume_ids():
        driver.controller.ControllerUnpublishVolume(
            csi.ControllerUnpublishVolumeRequest(volume_id=volume_id)
        )
    delete_all(driver)
    trash(pool, "empty", "--all")


def test_requests_of_all_kinds(
    big_pool: Path,
    ground: str,
    own_etc: Path,
    serve: Callable[..., Driver],
    tmp_path: Path,
    *,
    thorough: bool,
    counted: Counter,
) -> None:
    """Requests that are right, wrong, huge or no messages at all: refused, or done and undone."""
    sandbox, canary = tmp_path / "sandbox", tmp_path / "canary"
    places = [sandbox / f"place-{number}" for number in range(6)]
    for place in (sandbox, canary / "staging", canary / "folder"):
        place.mkdir(parents=True)
    (canary / "file").write_text("kept")
    links = {"etc": "/etc", "out": str(canary), "pool": str(big_pool), "loop": "loop"}
    for name, leads_to in links.items():
        (sandbox / name).symlink_to(leads_to)
    bad = [
        "", "relative/path", "/", "//", ".", "..", "/..", f"{canary}/../canary/staging", "\0",
        str(big_pool), f"{big_pool}/volumes", f"{big_pool}/tmp/x", str(big_pool.parent),
        f"{sandbox}/etc", f"{sandbox}/etc/passwd", f"{sandbox}/etc/new", f"{sandbox}/out/staging",
        f"{sandbox}/out/new", f"{sandbox}/pool/volumes/x", f"{sandbox}/loop/x", f"{sandbox}/loop",
        f"{sandbox}/none/x", f"{sandbox}/{'x' * 256}", f"{sandbox}{'/x' * 3000}",
        f"{sandbox}/place-0\0/x", f"{sandbox}/\u202e\U0001f600", f"{sandbox}/a\nb",
        "/tmp/../etc", "/proc/self/root/etc/new",
    ]  # fmt: skip
    driver = serve(f"default={big_pool},retain-for=ever", options=("--enable-attach",))
    world = World(random.Random(f"{SEED} {ground}"), places, bad)  # noqa: S311
    fuzz = Fuzz(driver, world, places[:3])
    total = THOROUGH if thorough else BOUNDED
    before = names_in(Path("/"))
    mounted = [item.target for item in kernel.mountinfo() if str(tmp_path) in item.target]
    settled = 0
    with untouched(canary, own_etc):
        for number in range(total):
            fuzz.send(huge=number < total * SETTLED)
            if number == int(total * SETTLED):
                settled = memory(driver)
        grown = memory(driver) - settled
        undo(driver, big_pool)
    assert names_in(Path("/")) == before
    assert [item.target for item in kernel.mountinfo() if str(tmp_path) in item.target] == mounted
    assert driver.identity.Probe(csi.ProbeRequest()).ready.value
    assert grown < MAY_GROW, f"memory grew by {grown} KiB in {total * (1 - SETTLED):.0f} requests"
    assert "Traceback" not in driver.log
    assert driver.volume_ids() == []
    check_whole(driver, big_pool)
    check_unused(big_pool)
    done = {method for method, code in fuzz.answers if code == "OK"}
    if thorough:
        missing = {path.rpartition("/")[2] for path, *_ in methods()} - done
        # It takes luck to name a group together with just its members.
        assert missing <= {"GetVolumeGroupSnapshot"}
    counted("fuzzed requests", total)
