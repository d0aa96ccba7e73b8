"""The metrics that every driver has: its version, its process, its certificates."""

import contextlib
import platform
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pycsi import __version__
from pycsi.model.config import Config
from pycsi.routing.certificates import expiries


def registry_for(config: Config) -> CollectorRegistry:
    """Return a registry with the metrics that every driver has."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # one more sample for each sum, which nobody asks for
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Gauge(
        "pycsi_build_info",
        "1, with the versions of the driver and of what it runs on.",
        ["version", "csi_version", "python_version", "mode"],
        registry=registry,
    ).labels(__version__, config.csi_version, platform.python_version(), config.mode).set(1)
    if config.tls:
        registry.register(CertificateCollector(config.tls))
    return registry


class CertificateCollector(Collector):
    """When the certificates of --tls-directory end; nothing of a file that cannot be read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[GaugeMetricFamily]:
        ends = GaugeMetricFamily(
            "pycsi_certificate_expiry_timestamp_seconds",
            "When the first of the certificates in the file ends, in seconds since the epoch.",
            labels=["file"],
        )
        for name in ("ca.crt", "tls.crt"):
            with contextlib.suppress(OSError, ValueError):
                ends.add_metric([name], min(expiries((self._directory / name).read_text())))
        return [ends]
