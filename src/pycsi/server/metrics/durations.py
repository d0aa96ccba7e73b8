"""How long filesystems stand still for snapshots, and how long it takes to free what is deleted."""

from prometheus_client import CollectorRegistry, Counter, Histogram

_FREEZES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REMOVALS = (0.001, 0.01, 0.1, 1, 10, 60, 300, 1800)


class DurationMetrics:
    """Times what `Pools` tells of freezes and of the trash."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._freezes = Histogram(
            "pycsi_freeze_seconds",
            "For how long the filesystems of volumes were frozen for a snapshot.",
            buckets=_FREEZES,
            registry=registry,
        )
        self._overruns = Counter(
            "pycsi_freeze_overruns",
            "Freezes that were ended by freeze-limit, so that no snapshot was taken.",
            registry=registry,
        )
        self._removals = Histogram(
            "pycsi_trash_removal_seconds",
            "Time to free a deleted volume or snapshot.",
            ["pool"],
            buckets=_REMOVALS,
            registry=registry,
        )
        self._failures = Counter(
            "pycsi_trash_removal_failures",
            "Attempts to free a deleted volume or snapshot that have failed.",
            ["pool"],
            registry=registry,
        )

    def froze(self, seconds: float, overran: bool) -> None:  # noqa: FBT001  (a plain callback)
        """Count a freeze of `seconds`; `overran` if it was ended by the limit."""
        self._freezes.observe(seconds)
        if overran:
            self._overruns.inc()

    def removed(self, pool: str, seconds: float | None) -> None:
        """Count an attempt to free what was deleted from a pool; None: it has failed."""
        if seconds is None:
            self._failures.labels(pool).inc()
        else:
            self._removals.labels(pool).observe(seconds)
            self._failures.labels(pool)  # so that it is told as 0
