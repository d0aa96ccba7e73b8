"""What enforces the limits of directories on a pool's filesystem."""

import contextlib
from pathlib import Path

from pycsi.backends.limits import Limiter, NoLimiter
from pycsi.backends.projects import ProjectLimiter
from pycsi.backends.quotagroups import SubvolumeLimiter
from pycsi.linux import btrfs, quota

_COUNTED_AT_ONCE = 5.0
"""Seconds that the start waits for quota groups that it has switched on to be counted."""


def limiter_for(path: Path, fstype: str, pool_uuid: str) -> Limiter:
    """Return how directories are limited on the filesystem `fstype` that holds the pool at `path`.

    Quota groups of btrfs are switched on where they are off; without the right to do so nothing
    can be limited.
    """
    if fstype == "btrfs" and not btrfs.quota_enabled(path):
        with contextlib.suppress(PermissionError):
            btrfs.enable_quota(path)
            btrfs.await_rescan(path, _COUNTED_AT_ONCE)
        if not btrfs.quota_enabled(path):
            return NoLimiter()
    return limiter_seen(path, fstype, pool_uuid)


def limiter_seen(path: Path, fstype: str, pool_uuid: str) -> Limiter:
    """Return how directories are limited where a driver has its pool, without changing anything."""
    if fstype == "btrfs":
        return SubvolumeLimiter(path)
    if limiter_name(path, fstype) == ProjectLimiter.name:
        return ProjectLimiter(path, pool_uuid, fstype)
    return NoLimiter()


def limiter_name(path: Path, fstype: str) -> str | None:
    """Return what can limit directories there now."""
    if fstype == "btrfs":
        return SubvolumeLimiter.name if btrfs.quota_enabled(path) else None
    if fstype in {"xfs", "ext4"} and quota.enforces_projects(path):
        return ProjectLimiter.name
    return NoLimiter.name
