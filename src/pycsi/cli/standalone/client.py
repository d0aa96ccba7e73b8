"""The CSI calls of a command, and how their failures are told."""

import contextlib
import queue
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from pycsi.cli import pools as configured
from pycsi.cli.errors import CommandError, MistakesError, UnknownNameError
from pycsi.cli.standalone.process import PrivateDriver, private_driver
from pycsi.model import ids
from pycsi.model.config import PoolConfig
from pycsi.pool.directory import is_in_use
from pycsi.pool.layout import Layout
from pycsi.pool.options import recalled
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc, transfers_pb2_grpc

USUAL_SOCKET = Path("/run/pycsi/csi.sock")
"""The socket on which a driver is looked for if none is given."""

_PATIENCE = 10.0
"""Seconds in which a driver that listens has to say whether it is ready."""

_STUBS = (
    csi_pb2_grpc.IdentityStub,
    csi_pb2_grpc.ControllerStub,
    csi_pb2_grpc.NodeStub,
    transfers_pb2_grpc.TransfersStub,
)

_MISTAKES = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE})


class Client:
    """Calls the driver at `path`; `pools` are those of a driver that runs for this command only."""

    def __init__(self, path: Path, pools: Sequence[PoolConfig] = ()) -> None:
        self.path = path
        self.pools = pools
        self._channel = grpc.insecure_channel(
            f"unix://{path}", options=[("grpc.default_authority", "localhost")]
        )
        self._methods: dict[str, Any] = {}
        for stub in _STUBS:
            self._methods |= vars(stub(self._channel))

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: object) -> Any:
        """Return the response of an RPC; its refusal becomes a `CommandError`."""
        try:
            return self._methods[method](request)
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def news(self, method: str, request: object) -> Iterator[Any]:
        """Yield the responses of an RPC that answers with several; refusals as in `call`."""
        try:
            yield from self._methods[method](request)
        except grpc.RpcError as error:
            raise self._failure(error) from None

    @contextlib.contextmanager
    def conversation(self, method: str) -> Iterator[Callable[[object], Any]]:
        """Call an RPC that takes a stream and answers each message; yield what sends one.

        That returns the answer. When the `with` block has ended, the driver has ended too.
        """
        messages: queue.SimpleQueue[object] = queue.SimpleQueue()
        answers = self._methods[method](iter(messages.get, None))

        def ask(message: object) -> Any:
            messages.put(message)
            try:
                return next(answers)
            except grpc.RpcError as error:
                raise self._failure(error) from None
            except StopIteration:
                raise CommandError(f"the driver at {self.path} has ended {method}") from None

        try:
            yield ask
        finally:
            messages.put(None)
            with contextlib.suppress(grpc.RpcError):
                list(answers)

    def _failure(self, error: Any) -> CommandError:
        code: grpc.StatusCode = error.code()
        message: str = error.details()
        if code is grpc.StatusCode.NOT_FOUND:
            return UnknownNameError(message)
        if code in _MISTAKES:
            return MistakesError(message)
        if code is grpc.StatusCode.UNAVAILABLE:
            return CommandError(
                f"the driver at {self.path} is not available ({message}); try again, or look at "
                "its log"
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return CommandError(
                f"the driver at {self.path} does not do that; give the --endpoint of the driver on "
                "this node"
            )
        return CommandError(message)

    def wait_until_ready(self, driver: PrivateDriver | None) -> None:
        """Wait until the driver has recovered its pools; `CommandError` if it does not."""
        deadline = time.monotonic() + _PATIENCE
        while driver or time.monotonic() < deadline:
            if driver:
                driver.refuse_ended()
            try:
                answer = self._methods["Probe"](csi.ProbeRequest(), timeout=1, wait_for_ready=True)
            except grpc.RpcError as error:
                if _code(error) is grpc.StatusCode.FAILED_PRECONDITION:
                    return  # it serves, though with a complaint, such as a missing program
            else:
                if answer.ready.value:
                    return
            time.sleep(0.02)
        raise CommandError(f"the driver at {self.path} is not ready; look at its log")

    def id_of(self, text: str) -> str:
        """Return the id of the volume or snapshot with an id or name on this node."""
        if ids.node_of(text):
            return text
        answer = self.call("NodeGetInfo", csi.NodeGetInfoRequest())
        return ids.id_at(text, next(iter(answer.accessible_topology.segments.values())))


def _code(error: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = error.code()
    return code


@contextlib.contextmanager
def connected(
    endpoint: Path | None, given: Sequence[PoolConfig], node_id: str | None
) -> Iterator[Client]:
    """Yield a client of the driver that runs, or of one that runs for the `with` block only.

    A driver runs if it listens at `endpoint`, unless pools are `given` that nobody has in use.
    """
    path = endpoint or USUAL_SOCKET
    if _listens(path) and (not given or any(map(is_in_use, given))):
        with contextlib.closing(Client(path)) as client:
            client.wait_until_ready(None)
            yield client
        return
    chosen = [recalled(Layout(item.path).options, item) for item in configured.chosen(given)]
    node_id = node_id or configured.node_of(chosen)
    with (
        private_driver([config.text for config in chosen], node_id) as driver,
        contextlib.closing(Client(driver.socket, chosen)) as client,
    ):
        client.wait_until_ready(driver)
        yield client


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        return True
    return False
