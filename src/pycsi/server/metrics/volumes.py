"""The metrics of a node's volumes: how many are not well, and how full each one is."""

import collections
import dataclasses
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pycsi.linux import loop
from pycsi.linux.kernel import IndexedKernelView
from pycsi.model import iolimits
from pycsi.model.health import Reason
from pycsi.model.parameters import CLAIM_NAME, CLAIM_NAMESPACE
from pycsi.model.records import Usage, Volume
from pycsi.server.metrics.latest import Latest
from pycsi.volumes.health import Located, examine
from pycsi.volumes.locks import Locks
from pycsi.volumes.measuring import usages
from pycsi.volumes.pools import Pools

_INFO = {
    "type": "directory or image.",
    "filesystem": "of an image.",
    "namespace": "of the claim.",
    "persistentvolumeclaim": "the claim's name.",
    "encryption": "luks2, or nothing.",
}
_OF_VOLUME = {
    "capacity_bytes": "Size of the volume.",
    "used_bytes": "Used bytes of the volume, if they are counted.",
    "available_bytes": "Bytes that can still be written to the volume, if that is known.",
    "inodes": "Inodes that the volume can have, if they are limited.",
    "inodes_used": "Used inodes of the volume, if they are counted.",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Measured:
    """What is known of the volumes at a `time`, in seconds since the epoch.

    `abnormal` counts faults by pool and reason, `unexamined` and `loops` by pool.
    """

    time: float
    abnormal: Mapping[tuple[str, Reason], int]
    unexamined: Mapping[str, int]
    loops: Mapping[str, int]
    described: list[Located]
    omitted: int
    usages: Mapping[str, Usage]


class VolumeCollector(Collector):
    """The health of all volumes, and the usage of `most` of them, the first by id."""

    def __init__(self, pools: Pools, locks: Locks, most: int) -> None:
        self._pools = pools
        self._locks = locks
        self._most = most
        self._latest = Latest("volumes", self._measure)

    def _measure(self) -> _Measured:
        kernel = IndexedKernelView()
        found = [(pool, volume) for pool in self._pools for volume in pool.volumes.indexed()]
        abnormal: collections.Counter[tuple[str, Reason]] = collections.Counter()
        unexamined: collections.Counter[str] = collections.Counter()
        for pool, _, faults in examine(found, self._locks, kernel):
            if faults is None:
                unexamined[pool.name] += 1
            else:
                abnormal.update((pool.name, fault.reason) for fault in faults)
        first = sorted(found, key=lambda item: item[1].id)[: self._most]
        return _Measured(
            time=time.time(),
            abnormal=abnormal,
            unexamined=unexamined,
            loops=_loop_devices(self._pools),
            described=first,
            omitted=len(found) - len(first),
            usages=usages(first, kernel),
        )

    def collect(self) -> Iterable[GaugeMetricFamily]:
        measured = self._latest.get()
        if measured is None:
            return []
        names = list(self._pools.open)
        return [
            *_health(measured, names),
            *(_of_volumes(measured) if self._most else ()),
            _of_pools(
                "pycsi_loop_devices",
                "Loop devices that are bound to images in the pool.",
                measured.loops,
                names,
            ),
        ]


def _health(measured: _Measured, names: list[str]) -> Iterator[GaugeMetricFamily]:
    abnormal = GaugeMetricFamily(
        "pycsi_volumes_abnormal",
        "Volumes that have the fault. One with several faults counts for each of them.",
        labels=["pool", "reason", "status"],
    )
    for name, reason in itertools.product(names, Reason):
        number = measured.abnormal.get((name, reason), 0)
        abnormal.add_metric([name, reason, reason.status.name], number)
    yield abnormal
    yield _of_pools(
        "pycsi_volumes_unexamined",
        "Volumes that could not be examined: an operation was under way, or too much hung.",
        measured.unexamined,
        names,
    )
    yield GaugeMetricFamily(
        "pycsi_volumes_examined_timestamp_seconds",
        "When the volumes were examined last, in seconds since the epoch.",
        measured.time,
    )


def _of_pools(
    name: str, text: str, values: Mapping[str, int], names: list[str]
) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=["pool"])
    for pool in names:
        gauge.add_metric([pool], values.get(pool, 0))
    return gauge


def _of_volumes(measured: _Measured) -> Iterator[GaugeMetricFamily]:
    identity = ["pool", "volume"]
    info = GaugeMetricFamily(
        "pycsi_volume_info", "1, with what the volume is.", labels=[*identity, *_INFO]
    )
    gauges = {
        key: GaugeMetricFamily(f"pycsi_volume_{key}", text, labels=identity)
        for key, text in _OF_VOLUME.items()
    }
    for pool, volume in measured.described:
        labels = [pool.name, volume.id]
        info.add_metric([*labels, *_info(volume)], 1)
        for key, value in _numbers(volume, measured.usages.get(volume.id)).items():
            if value is not None:
                gauges[key].add_metric(labels, value)
    yield info
    yield from gauges.values()
    yield from _limits(measured.described)
    yield GaugeMetricFamily(
        "pycsi_volumes_omitted",
        "Volumes without metrics of their own, because there are more than --metrics-volumes.",
        measured.omitted,
    )


def _limits(volumes: list[Located]) -> Iterator[GaugeMetricFamily]:
    """Yield the limits on the I/O of those volumes that have some."""
    labels = ["pool", "volume", "direction"]
    bandwidth = GaugeMetricFamily(
        "pycsi_volume_io_limit_bytes_per_second",
        "Bytes per second to which each pod that uses the volume is limited.",
        labels=labels,
    )
    requests = GaugeMetricFamily(
        "pycsi_volume_io_limit_requests_per_second",
        "Requests per second to which each pod that uses the volume is limited.",
        labels=labels,
    )
    for pool, volume in volumes:
        limits = iolimits.of(volume.settings)
        for gauge, direction, value in (
            (bandwidth, "read", limits.rbps),
            (bandwidth, "write", limits.wbps),
            (requests, "read", limits.riops),
            (requests, "write", limits.wiops),
        ):
            if value is not None:
                gauge.add_metric([pool.name, volume.id, direction], value)
    yield bandwidth
    yield requests


def _info(volume: Volume) -> list[str]:
    claim = volume.request.parameters
    return [
        volume.type,
        volume.filesystem or "",
        claim.get(CLAIM_NAMESPACE, ""),
        claim.get(CLAIM_NAME, ""),
        volume.encryption or "",
    ]


def _numbers(volume: Volume, usage: Usage | None) -> dict[str, int | None]:
    known = usage or Usage(total=volume.capacity)
    return {
        "capacity_bytes": volume.capacity,
        "used_bytes": known.used,
        "available_bytes": known.available,
        "inodes": known.inodes,
        "inodes_used": known.inodes_used,
    }


def _loop_devices(pools: Pools) -> dict[str, int]:
    """Return the number of loop devices on the images of each pool, by the paths of these."""
    paths = loop.backing_paths()
    return {
        pool.name: sum(
            path.startswith(os.fsencode(f"{pool.location.real_path}/")) for path in paths
        )
        for pool in pools
    }
