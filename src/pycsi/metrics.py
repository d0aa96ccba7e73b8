"""Prometheus metrics: RPCs by method, code and duration; pools by their numbers."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pycsi.errors import FailedPrecondition
from pycsi.pools import Pools

_GAUGES = {
    "size": "Size of the pool's filesystem.",
    "free": "Free space on the pool's filesystem.",
    "reserve": "Bytes that volumes never get.",
    "committed": "The sizes of all volumes, what snapshots hold, and what is in the trash.",
    "limit": "What may be promised to volumes in all.",
}


class Metrics:
    """Counts RPCs, and serves what it has counted."""

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
        """Count one RPC."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def serve(self, host: str, port: int) -> None:
        """Answer Prometheus on `http://host:port/metrics` from a thread of its own."""
        start_http_server(port, host, self._registry)


class _PoolCollector(Collector):
    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def collect(self) -> Iterable[GaugeMetricFamily]:
        gauges = {
            key: GaugeMetricFamily(f"pycsi_pool_{key}_bytes", text, labels=["pool"])
            for key, text in _GAUGES.items()
        }
        volumes = GaugeMetricFamily("pycsi_pool_volumes", "Volumes in the pool.", labels=["pool"])
        for pool in self._pools:
            try:
                pool.check(writable=False)
                capacity = pool.capacity()
            except (OSError, FailedPrecondition):
                continue  # the pool is missing: no number is better than a wrong one
            for key, gauge in gauges.items():
                gauge.add_metric([pool.name], getattr(capacity, key))
            volumes.add_metric([pool.name], len(pool.volumes))
        return [*gauges.values(), volumes]
