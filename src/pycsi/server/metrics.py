"""Prometheus metrics: RPCs by method, status code and duration; the capacity of the pools."""

import contextlib
import socket
import threading
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pycsi.linux.waiting import NoAnswerError, NotAskedError, call
from pycsi.model.addresses import Address
from pycsi.model.errors import ConfigError, FailedPrecondition
from pycsi.pool.capacity import Capacity
from pycsi.pool.pool import Pool
from pycsi.routing.nodes import Nodes
from pycsi.server.report import Observer
from pycsi.server.socket import reason
from pycsi.volumes.pools import Pools

_GAUGES = {
    "size": "Size of the pool's filesystem.",
    "free": "Free space on the pool's filesystem.",
    "reserve": "Free bytes that the pool keeps from its volumes.",
    "committed": "Bytes that volumes, snapshots and the trash may occupy.",
    "unwritten": "Committed bytes that are not written to the disk yet.",
    "limit": "Most bytes that may be committed.",
}


def serve_metrics(address: Address, collector: Collector) -> Observer:
    """Serve metrics at `address` from a separate thread, and return what counts the RPCs.

    `collector` adds its own metrics to those of the RPCs. `ConfigError` if nobody can listen there.
    An empty host stands for all addresses, including IPv6 where the machine has it.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    calls = Counter("pycsi_rpcs", "RPCs answered.", ["method", "code"], registry=registry)
    times = Histogram(
        "pycsi_rpc_duration_seconds", "Time of an RPC.", ["method"], registry=registry
    )
    try:
        server = _Server(_listening(*address))
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--metrics-address {address}: cannot listen there: {reason(error)}"
        ) from None
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def observe(method: str, code: str, seconds: float) -> None:
        calls.labels(method, code).inc()
        times.labels(method).observe(seconds)

    return observe


def _listening(host: str, port: int) -> socket.socket:
    if host in {"", "::"} and socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    if not host:
        return socket.create_server(("", port))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family)


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Do not log HTTP requests: standard error is for the driver's own log."""


class _Server(ThreadingMixIn, WSGIServer):
    """An HTTP server on a socket that is already listening."""

    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Silent, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = host, port
        self.setup_environ()


class PoolCollector(Collector):
    """The capacity of the pools, and whether they are there."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def collect(self) -> Iterable[GaugeMetricFamily]:
        gauges = {
            key: GaugeMetricFamily(f"pycsi_pool_{key}_bytes", text, labels=["pool"])
            for key, text in _GAUGES.items()
        }
        volumes = GaugeMetricFamily("pycsi_pool_volumes", "Volumes in the pool.", labels=["pool"])
        up = GaugeMetricFamily(
            "pycsi_pool_up", "1 if the pool is present and writable, otherwise 0.", labels=["pool"]
        )
        for name in self._pools.missing:
            up.add_metric([name], 0)
        for pool in self._pools:
            is_up, capacity = _measured(pool)
            up.add_metric([pool.name], is_up)
            if capacity is None:
                continue  # better no sample than a wrong one
            for key, gauge in gauges.items():
                gauge.add_metric([pool.name], getattr(capacity, key))
            volumes.add_metric([pool.name], len(pool.volumes))
        return [*gauges.values(), volumes, up]


class NodeCollector(Collector):
    """The nodes that a controller has found, and whether they answer."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def collect(self) -> Iterable[GaugeMetricFamily]:
        up = GaugeMetricFamily(
            "pycsi_node_up", "1 if the controller reaches the node, otherwise 0.", labels=["node"]
        )
        for segment, is_up in self._nodes.up.items():
            up.add_metric([segment], is_up)
        return [up]


def _measured(pool: Pool) -> tuple[bool, Capacity | None]:
    """Return whether a pool is there and writable, and its capacity: None if that is not known."""
    try:
        return call(str(pool.config.path), lambda: _look(pool))
    except (NoAnswerError, NotAskedError):
        return False, None


def _look(pool: Pool) -> tuple[bool, Capacity | None]:
    is_up = False
    try:
        with contextlib.suppress(FailedPrecondition):
            pool.check()
            is_up = True
        if not is_up:
            pool.check(writable=False)  # a read-only pool still has samples
        return is_up, pool.room.capacity()
    except (OSError, FailedPrecondition):
        return is_up, None
