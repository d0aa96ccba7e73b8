"""What the controller says to a node about group snapshots, said step by step by tests."""

import contextlib
import queue
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
from cluster import NodeDriver

from pycsi.proto import groups_pb2 as groups
from pycsi.proto import groups_pb2_grpc

STEPS = ("begin", "freeze", "capture", "prepare", "commit")
POINT_IN_TIME = 1_700_000_000.25


@contextlib.contextmanager
def calling(
    node: NodeDriver,
    tls: Path,
    role: str = "controller",
    kind: Callable[[grpc.Channel], Any] = groups_pb2_grpc.GroupPartsStub,
) -> Iterator[Any]:
    """Return a stub of the node's service for parts, called with the certificate of `role`.

    Or that of another service, of this `kind`.
    """
    files = ("ca.crt", "tls.key", "tls.crt")
    credentials = grpc.ssl_channel_credentials(
        *((tls / role / name).read_bytes() for name in files)
    )
    options = [("grpc.ssl_target_name_override", "node.pycsi.storage")]
    with grpc.secure_channel(f"127.0.0.1:{node.port}", credentials, options) as channel:
        yield kind(channel)


class Taker:
    """A stream of TakePart: `step` asks for the next step; leaving the `with` block hangs up."""

    def __init__(self, stub: Any, group_id: str, *volume_ids: str, timeout: float = 60) -> None:
        self.group_id = group_id
        self.attempt = uuid.uuid4().hex
        self._volume_ids = volume_ids
        self._asked: queue.SimpleQueue[groups.TakePartRequest | None] = queue.SimpleQueue()
        self._answers = stub.TakePart(iter(self._asked.get, None), timeout=timeout)

    def request(self, name: str) -> groups.TakePartRequest:
        kind = groups.TakePartRequest
        if name == "begin":
            begin = kind.Begin(
                name=self.group_id.partition("@")[0],
                attempt=self.attempt,
                source_volume_ids=self._volume_ids,
            )
            return kind(group_snapshot_id=self.group_id, begin=begin)
        if name == "capture":
            return kind(capture=kind.Capture(created=POINT_IN_TIME))
        request = kind()
        getattr(request, name).SetInParent()
        return request

    def step(self, name: str) -> groups.TakePartResponse:
        return self.say(self.request(name))

    def say(self, request: groups.TakePartRequest) -> groups.TakePartResponse:
        self._asked.put(request)
        answer: groups.TakePartResponse = next(self._answers)
        return answer

    def up_to(self, last: str) -> groups.TakePartResponse:
        """Ask for all steps up to `last`; return the answer to that."""
        for name in STEPS[: STEPS.index(last)]:
            self.step(name)
        return self.step(last)

    def hang_up(self) -> None:
        self._answers.cancel()
        self._asked.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
