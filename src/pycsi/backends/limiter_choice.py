"""The choice of the limiter for a pool, by its filesystem."""

import contextlib
from pathlib import Path

from pycsi.backends.limits import Limiter, NoLimiter
from pycsi.backends.projects import ProjectLimiter
from pycsi.backends.quotagroups import SubvolumeLimiter
from pycsi.linux import btrfs, quota

_COUNTED_AT_ONCE = 5.0
"""Seconds to wait at startup for the rescan of quota groups that were just switched on."""


def set_up_limiter(path: Path, fstype: str, pool_uuid: str) -> Limiter:
    """Return the limiter for the pool at `path`, on a filesystem of the type `fstype`.

    On btrfs, switch quota groups on if they are off. If this process may not do that, the result is
    `NoLimiter`.
    """
    if fstype == "btrfs" and not btrfs.quota_enabled(path):
        with contextlib.suppress(PermissionError):
            btrfs.enable_quota(path)
            btrfs.await_rescan(path, _COUNTED_AT_ONCE)
        if not btrfs.quota_enabled(path):
            return NoLimiter()
    return existing_limiter(path, fstype, pool_uuid)


def existing_limiter(path: Path, fstype: str, pool_uuid: str) -> Limiter:
    """Return the limiter for a pool that a driver has set up, without changing anything."""
    if fstype == "btrfs":
        return SubvolumeLimiter(path)
    if limiter_name(path, fstype) == ProjectLimiter.name:
        return ProjectLimiter(path, pool_uuid, fstype)
    return NoLimiter()


def limiter_name(path: Path, fstype: str) -> str | None:
    """Return the name of the limiter that would work at `path` now; None if none would."""
    if fstype == "btrfs":
        return SubvolumeLimiter.name if btrfs.quota_enabled(path) else None
    if fstype in {"xfs", "ext4"} and quota.enforces_projects(path):
        return ProjectLimiter.name
    return NoLimiter.name
