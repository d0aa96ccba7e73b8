"""The metrics of a node's pools."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pycsi.linux.waiting import NoAnswerError, NotAskedError, call
from pycsi.model.errors import FailedPrecondition
from pycsi.pool.capacity import Capacity
from pycsi.pool.pool import Pool
from pycsi.server.metrics.latest import Latest
from pycsi.volumes.pools import Pools

_BYTES = {
    "size": "Size of the pool's filesystem.",
    "free": "Free space on the pool's filesystem.",
    "reserve": "Free bytes that the pool keeps from its volumes.",
    "committed": "Bytes that volumes, snapshots and the trash may occupy.",
    "unwritten": "Committed bytes that are not written to the disk yet.",
    "limit": "Most bytes that may be committed.",
}
_CONTENTS = {
    "volumes": "Volumes in the pool.",
    "snapshots": "Snapshots in the pool.",
    "trash_bytes": "Bytes that count for what is in the trash.",
    "trash_entries": "Deleted volumes and snapshots that are in the trash.",
    "trash_overdue_seconds": "For how long the trash should have freed its oldest entry; 0: none.",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Measured:
    """Whether a pool is there and writable; its capacity and contents: None if not known."""

    is_up: bool
    capacity: Capacity | None = None
    contents: Mapping[str, float] = dataclasses.field(default_factory=dict)


class PoolCollector(Collector):
    """The capacity and the contents of the pools, and whether they are there."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._latest = Latest("pools", lambda: {pool.name: _measured(pool) for pool in pools})

    def collect(self) -> Iterable[GaugeMetricFamily]:
        measured = self._latest.get() or {}
        up = _gauge("up", "1 if the pool is present and writable, otherwise 0.")
        capacity = {key: _gauge(f"{key}_bytes", text) for key, text in _BYTES.items()}
        contents = {key: _gauge(key, text) for key, text in _CONTENTS.items()}
        missing = self._pools.missing
        for name in missing:
            up.add_metric([name], 0)
        for name, found in measured.items():
            if name in missing:
                continue
            up.add_metric([name], found.is_up)
            if found.capacity is None:
                continue  # better no sample than a wrong one
            for key, gauge in capacity.items():
                gauge.add_metric([name], getattr(found.capacity, key))
            for key, value in found.contents.items():
                contents[key].add_metric([name], value)
        return [up, *capacity.values(), *contents.values()]


def _gauge(key: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pycsi_pool_{key}", text, labels=["pool"])


def _measured(pool: Pool) -> _Measured:
    try:
        return call(str(pool.config.path), lambda: _look(pool))
    except (NoAnswerError, NotAskedError):
        return _Measured(is_up=False)


def _look(pool: Pool) -> _Measured:
    is_up = False
    try:
        with contextlib.suppress(FailedPrecondition):
            pool.check()
            is_up = True
        if not is_up:
            pool.check(writable=False)  # a read-only pool still has samples
        capacity = pool.room.capacity()
    except (OSError, FailedPrecondition):
        return _Measured(is_up)
    contents = {
        "volumes": len(pool.volumes),
        "snapshots": len(pool.snapshots),
        "trash_bytes": pool.trash.held,
        "trash_entries": len(pool.trash),
        "trash_overdue_seconds": pool.trash.overdue(),
    }
    return _Measured(is_up, capacity, contents)
