"""What enforces the limits of directories on a pool's filesystem."""

import contextlib
from pathlib import Path

from pycsi.limits import Limiter, NoLimiter
from pycsi.linux import btrfs, quota
from pycsi.projects import ProjectIds, ProjectLimiter
from pycsi.quotagroups import SubvolumeLimiter


def limiter_for(path: Path, fstype: str, pool_uuid: str) -> Limiter:
    """Return how directories are limited on the filesystem `fstype` that holds the pool at `path`.

    Quota groups of btrfs are switched on where they are off; without the right to do so nothing
    can be limited.
    """
    if fstype == "btrfs" and not btrfs.quota_enabled(path):
        with contextlib.suppress(PermissionError):
            btrfs.enable_quota(path)
    name = limiter_name(path, fstype)
    if name == SubvolumeLimiter.name:
        return SubvolumeLimiter(path / "deleted-groups")
    if name == ProjectLimiter.name:
        return ProjectLimiter(ProjectIds(path / "projects.json", pool_uuid))
    return NoLimiter()


def limiter_name(path: Path, fstype: str) -> str | None:
    """Return how directories are limited there now, without changing anything."""
    if fstype == "btrfs":
        return SubvolumeLimiter.name if btrfs.quota_enabled(path) else None
    if fstype in {"xfs", "ext4"} and quota.enforces_projects(path):
        return ProjectLimiter.name
    return NoLimiter.name
