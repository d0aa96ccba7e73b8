"""Relays between the controller and the nodes, which tell of everything that passes."""

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from cluster import NodeDriver, make_certificates
from driver import Driver
from taker import calling

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import groups_pb2 as groups

_MOST = 1 << 16


class Relay:
    """Passes on what comes at `port` to the port `node`, and back.

    Before a piece is passed on `pass_on` is called, one call at a time for all relays that share
    it; if that returns False the piece is lost.
    """

    def __init__(self, node: int, pass_on: Callable[[], bool]) -> None:
        self._node = node
        self._pass_on = pass_on
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                try:
                    theirs = socket.create_connection(("127.0.0.1", self._node))
                except OSError:
                    ours.close()
                    continue
                self._open += [ours, theirs]
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_MOST):
                if self._pass_on():
                    target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for end in (self._listener, *self._open):
            end.close()


class Watch:
    """Counts what passes through relays, and acts before a piece of a given number is passed on."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self.passed = 0
        self._at = 0
        self._act: Callable[[], bool] = lambda: True

    def begin(self, at: int = 0, act: Callable[[], bool] = lambda: True) -> None:
        """Count from 0 on; from piece `at` on, ask `act` whether a piece is passed on."""
        with self._mutex:
            self.passed, self._at, self._act = 0, at, act

    def pass_on(self) -> bool:
        with self._mutex:
            self.passed += 1
            return self._act() if 0 < self._at <= self.passed else True


@dataclasses.dataclass
class Relayed:
    """Nodes by name, and a controller that reaches them through relays, as `watch` allows."""

    folder: Path
    tls: Path
    nodes: dict[str, NodeDriver]
    controller: Driver
    watch: Watch

    def of(self, object_id: str) -> NodeDriver:
        """Return the node of a volume or snapshot."""
        return self.nodes[object_id.partition("@")[2]]

    @contextlib.contextmanager
    def published(
        self, *volume_ids: str, capability: csi.VolumeCapability | None = None
    ) -> Iterator[list[Path]]:
        """Stage and publish volumes, each on its node; yield the target paths."""
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(self.of(item).published(item, self.folder, capability))
                for item in volume_ids
            ]

    def are_frozen(self, *volume_ids: str) -> bool:
        """Tell whether the volumes are being frozen, or are."""
        return all((self.of(item).pool / "frozen" / item).exists() for item in volume_ids)

    def in_doubt(self) -> bool:
        """Tell whether a node has a prepared part that it does not know the decision about."""
        for node in self.nodes.values():
            with calling(node, self.tls) as stub:
                if stub.ListPrepared(groups.ListPreparedRequest()).entries:
                    return True
        return False


@contextlib.contextmanager
def relayed(folder: Path, pools: Mapping[str, Path], options: str = "") -> Iterator[Relayed]:
    """Run a node on each of the pools, which are given by node, and a controller.

    The pools get the `options` of `--pool`.
    """
    tls = make_certificates(folder / "tls")
    watch = Watch()
    with contextlib.ExitStack() as running:
        nodes = {
            name: running.enter_context(
                NodeDriver(name, folder / name, [f"default={pool}{options}"], tls)
            )
            for name, pool in pools.items()
        }
        relays = {
            name: running.enter_context(Relay(node.port, watch.pass_on))
            for name, node in nodes.items()
        }
        places = [f"--node={name}=127.0.0.1:{relay.port}" for name, relay in relays.items()]
        given = ("--mode=controller", f"--tls-directory={tls / 'controller'}", *places)
        controller = running.enter_context(Driver(folder / "controller", (), given))
        yield Relayed(folder, tls, nodes, controller, watch)
