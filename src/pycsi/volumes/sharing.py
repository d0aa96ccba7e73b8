"""Pools on one filesystem: each promises room that the others promise too."""

import contextlib
import os
from collections.abc import Iterable

import structlog

from pycsi.pool.pool import Pool

log = structlog.get_logger()


def warn_of_shared_room(pools: Iterable[Pool], late: Pool | None = None) -> None:
    """Log which pools lie on one filesystem and may together promise more than it has.

    If one is `late` the others have been told of before, unless they share its filesystem.
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
                    filesystem=together[0].mount.source,
                )


def _part(pools: Iterable[Pool]) -> float:
    """Return what part of their filesystem they would take once all of them are full."""
    part = 0.0
    for pool in pools:
        facts = os.statvfs(pool.layout.root)
        size = facts.f_blocks * facts.f_frsize
        left = max(0, size - pool.config.reserve.of(size))
        part += left / size * min(1.0, pool.config.overcommit)
    return part
