"""The metrics of RPCs: of those that are served, and of those that are forwarded to nodes."""

import re

from prometheus_client import CollectorRegistry, Gauge, Histogram, Summary

_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600),
)
"""Seconds: those of the CSI sidecars, and shorter ones before them."""

_SPELLED = {"OK": "OK", "CANCELLED": "Canceled"}


def code_label(name: str) -> str:
    """Return a status code as sidecars and kubelets spell it: `NotFound` for NOT_FOUND."""
    return _SPELLED.get(name) or re.sub("_", "", name.title())


class RpcMetrics:
    """Times the RPCs of a driver, with the names and labels that csi-lib-utils has for drivers.

    The sidecars' own are called `csi_sidecar_operations_seconds`, a kubelet's
    `csi_operations_seconds`; the labels are the same. An `Observer`.
    """

    def __init__(self, driver_name: str, registry: CollectorRegistry) -> None:
        self._driver_name = driver_name
        self._seconds = Histogram(
            "csi_plugin_operations_seconds",
            "Duration of the RPCs that were answered, by status code.",
            ["driver_name", "method_name", "grpc_status_code"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "csi_plugin_operations_in_flight",
            "RPCs that are being answered now.",
            ["driver_name", "method_name"],
            registry=registry,
        )
        # Looking up a child takes longer than counting with it.
        self._open: dict[str, Gauge] = {}
        self._ended: dict[tuple[str, str], Histogram] = {}

    def began(self, of: str) -> None:
        child = self._open.get(of)
        if child is None:
            child = self._open[of] = self._in_flight.labels(self._driver_name, of)
        child.inc()

    def ended(self, of: str, code: str, seconds: float) -> None:
        child = self._ended.get((of, code))
        if child is None:
            child = self._seconds.labels(self._driver_name, of, code_label(code))
            self._ended[of, code] = child
        child.observe(seconds)
        self._open[of].dec()


class NodeRpcMetrics:
    """Times the RPCs that a controller forwards, by node. An `Observer`.

    A sum and a number for each, not a histogram: there may be many nodes.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Summary(
            "pycsi_node_operations_seconds",
            "Duration of the RPCs that were forwarded to the node, by status code.",
            ["node", "grpc_status_code"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "pycsi_node_operations_in_flight",
            "RPCs that were forwarded to the node and are not answered yet.",
            ["node"],
            registry=registry,
        )

    def began(self, of: str) -> None:
        self._in_flight.labels(of).inc()

    def ended(self, of: str, code: str, seconds: float) -> None:
        self._seconds.labels(of, code_label(code)).observe(seconds)
        self._in_flight.labels(of).dec()
