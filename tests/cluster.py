"""Several nodes and their controller, as processes of this machine, for tests."""

import contextlib
import dataclasses
import secrets
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from driver import Driver
from rpc.conftest import limited_pool

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """Return a TCP port on which nobody listens now, and that the kernel gives no client."""
    first_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(first_of_clients - 10_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


def make_certificates(folder: Path, *options: str) -> Path:
    """Make an authority, and certificates for a controller and for nodes, in `folder`."""
    script = ROOT / "deploy" / "kubernetes" / "tls-secrets.sh"
    subprocess.run([script, *options, folder], check=True, stdout=subprocess.DEVNULL)
    return folder


class NodeDriver(Driver):
    """A driver in mode node, called `name`, whose port is for the controller.

    It can be given another `host` or `port`, at which it listens when it is started again.
    """

    def __init__(
        self, name: str, folder: Path, pools: Sequence[str], tls: Path, options: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.host = "127.0.0.1"
        self.port = free_port()
        mode = ("--mode=node", f"--node-id={name}", f"--tls-directory={tls / 'node'}")
        self.own_options = (*mode, *options)
        super().__init__(folder, pools, self.own_options)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def launch(self) -> None:
        self.options = (*self.own_options, f"--listen-address={self.address}")
        super().launch()

    @property
    def pool(self) -> Path:
        return self.folders[0]


@dataclasses.dataclass
class Cluster:
    """Nodes by name, and the controller that forwards to them; `tls` has their certificates."""

    folder: Path
    tls: Path
    nodes: dict[str, NodeDriver]
    controller: Driver


@contextlib.contextmanager
def cluster(
    folder: Path,
    *names: str,
    pools: Sequence[Path] = (),
    options: Sequence[str] = (),
    sizes: Sequence[int] = (),
) -> Iterator[Cluster]:
    """Run a node for each name, each with a pool of its own, and a controller.

    The pools are directories below `folder`, unless `pools` are given. All get the `options`.
    `sizes` are the bytes that the pools can promise, if not what their filesystems have.
    """
    tls = make_certificates(folder / "tls")
    homes = [folder / f"node-{number}" for number in range(len(names))]  # a name can be long
    places = pools or [home / "pool" for home in homes]
    with contextlib.ExitStack() as running:
        nodes: dict[str, NodeDriver] = {}
        for name, home, place in zip(names, homes, places, strict=True):
            place.mkdir(parents=True, exist_ok=True)
            size = sizes[len(nodes)] if sizes else 0
            pool = limited_pool("default", place, size) if size else f"default={place}"
            node = NodeDriver(name, home, [pool], tls, options)
            nodes[name] = running.enter_context(node)
        central = running.enter_context(controller(folder, tls, nodes, options))
        yield Cluster(folder, tls, nodes, central)


def controller(
    folder: Path,
    tls: Path,
    nodes: dict[str, NodeDriver],
    options: Sequence[str] = (),
    role: str = "controller",
) -> Driver:
    """Return a controller of `nodes`, not started, with the certificate of `role`."""
    found = [f"--node={name}={node.address}" for name, node in nodes.items()]
    given = ("--mode=controller", f"--tls-directory={tls / role}", *found, *options)
    return Driver(folder / "controller", (), given)
