"""Pools that share a filesystem, and so may promise the same room."""

import contextlib
import os
from collections.abc import Iterable

import structlog

from pycsi.pool.pool import Pool

log = structlog.get_logger()


def warn_of_shared_room(pools: Iterable[Pool], late: Pool | None = None) -> None:
    """Log which pools share a filesystem and may together promise more room than it has.

    With `late`, only the pools on the filesystem of that pool are logged, as it was opened later.
    """
    sharing: dict[int, list[Pool]] = {}
    for pool in pools:
        sharing.setdefault(pool.location.device, []).append(pool)
    for together in sharing.values():
        with contextlib.suppress(OSError):  # the disk is away
            if len(together) > 1 and (late is None or late in together) and _part(together) > 1:
                log.warning(
                    "pools on one filesystem promise the same room; give each a reserve that "
                    "leaves the others their part, or make one pool of them",
                    pools=", ".join(pool.name for pool in together),
                    filesystem=together[0].location.mount.source,
                )


def _part(pools: Iterable[Pool]) -> float:
    """Return the share of their filesystem that the pools would take together when full."""
    part = 0.0
    for pool in pools:
        facts = os.statvfs(pool.layout.root)
        size = facts.f_blocks * facts.f_frsize
        left = max(0, size - pool.config.reserve.of(size))
        part += left / size * min(1.0, pool.config.overcommit)
    return part
