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
from pycsi.model.errors import FailedPrecondition
from pycsi.pool.capacity import Capacity
from pycsi.pool.pool import Pool
from pycsi.volumes.pools import Pools

_GAUGES = {
    "size": "Size of the pool's filesystem.",
    "free": "Free space on the pool's filesystem.",
    "reserve": "Free bytes that the pool keeps from its volumes.",
    "committed": "Bytes that volumes, snapshots and the trash may occupy.",
    "unwritten": "Committed bytes that are not written to the disk yet.",
    "limit": "Most bytes that may be committed.",
}


class Metrics:
    """Counts RPCs, and serves the counts and the pools' capacity to Prometheus."""

    def __init__(self, pools: Pools) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_PoolCollector(pools))
        self._calls = Counter(
            "pycsi_rpcs", "RPCs answered.", ["method", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "pycsi_rpc_duration_seconds", "Time of an RPC.", ["method"], registry=self._registry
        )

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Count one RPC by its status code, with its duration in seconds."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def serve(self, host: str, port: int) -> None:
        """Answer Prometheus on `http://host:port/metrics` from a separate thread.

        An empty host stands for all addresses, including IPv6 where the machine has it. An address
        that cannot be listened on raises `OSError`, or `UnicodeError` for an invalid host name.
        """
        server = _Server(_listening(host, port))
        server.set_app(make_wsgi_app(self._registry))
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


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


class _PoolCollector(Collector):
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
