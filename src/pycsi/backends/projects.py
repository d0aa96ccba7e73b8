"""The limiter for XFS and ext4, which uses project quota."""

import dataclasses
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from pycsi.backends.limits import Former, LimitError, NoLimiter, filesystem_usage
from pycsi.linux import quota, tree
from pycsi.linux.lockfile import locked
from pycsi.linux.record import read_record, write_record
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Usage

_ENABLE = {"xfs": "xfs_quota -x -c 'enable -p'", "ext4": "quotaon -P"}
"""The command that makes a filesystem enforce project limits; the path is to be appended."""


class ProjectLimiter(NoLimiter):
    """Gives a directory tree a project id, and the project a hard limit in bytes."""

    name: str | None = "project quota"

    def __init__(self, pool: Path, pool_uuid: str, fstype: str) -> None:
        self._pool = pool
        self._enable = _ENABLE[fstype]
        self._projects = ProjectIds(pool / "projects.json", pool_uuid)

    def fault(self) -> str | None:
        try:
            state = quota.project_state(self._pool)
        except OSError:  # the pool's disk is not available
            return None
        if state.enforced:
            return None
        if state.counted:
            return f"project limits are not enforced; run: {self._enable} {self._pool}"
        return f"project quota is off; mount the filesystem of {self._pool} anew, with prjquota"

    def make(self, path: Path, size: int | None) -> int | None:
        super().make(path, None)
        if size is None:
            return None
        project = self._projects.allocate()
        quota.set_project(path, project)
        self.limit(path, project, size)
        return project

    def claim(self) -> int | None:
        return self._projects.allocate()

    def former(self, path: Path) -> Former:
        project, inherit = quota.attributes_of(path)
        return Former(project=project, inherit=inherit)

    def take_over(self, path: Path, project: int | None, size: int) -> None:
        if project is None:
            raise LimitError(f"{path}: a directory without a project cannot be limited")
        quota.set_project_of_tree(path, project, inherit=True)
        self.limit(path, project, size)

    def give_back(self, path: Path, project: int | None, former: Former) -> None:
        if project is not None:
            quota.set_project_of_tree(path, former.project, inherit=former.inherit)
            if quota.project_state(path).counted:
                quota.set_limit(path, project, 0)

    def limit(self, path: Path, project: int | None, size: int) -> None:
        if project is None:
            raise LimitError(f"{path}: a directory without a project cannot be limited")
        if not quota.project_state(path).counted:
            raise LimitError(f"{path}: nothing limits it to {size} bytes: {self.fault()}")
        if quota.project_of(path) != project:
            # A directory's owner may change its project id. Files made since then count for that
            # other project, but new files are limited again.
            quota.set_project(path, project)
        if quota.usage(path, project).limit != size:
            quota.set_limit(path, project, size)
        found = quota.usage(path, project).limit
        if found != size:
            raise LimitError(f"{path}: project {project} is limited to {found} bytes, not {size}")

    def limit_of(self, path: Path, project: int | None) -> int:
        if project is None or quota.project_of(path) != project:
            return 0
        return quota.usage(path, project).limit

    def usage(self, path: Path, project: int | None, size: int) -> Usage:
        measured = filesystem_usage(path)
        if project is None:
            return measured
        # statvfs(3) shows no more than the limit, which root may have exceeded.
        return dataclasses.replace(measured, used=quota.usage(path, project).used)

    def owned(self, path: Path, project: int | None, *, may_share: bool) -> int:
        # Project quota counts shared blocks like any others, so it says nothing about them.
        return 0 if may_share or project is None else quota.usage(path, project).used

    def remove(
        self, path: Path, project: int | None, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        if not path.is_dir():
            return
        tree.unprotect(path)
        # The limit is removed first: without the directory its project id could not be found. A
        # recorded id takes precedence, since the directory's owner may have set another volume's.
        project = project or quota.project_of(path)
        if project and quota.project_state(path).counted:
            quota.set_limit(path, project, 0)
        quota.clear_project(path)  # rename(2) into it fails for files of another project
        super().remove(path, project, interrupted)


class ProjectIds:
    """A durable allocator of project ids: no id is handed out twice, even after a crash.

    The following id is recorded on disk before an id is used. Each pool starts at a different id,
    derived from its UUID. Ids with a limit or usage on the filesystem are skipped, because other
    pools and other programs use projects too. The lock of a file keeps a driver and a command, such
    as `pycsi adopt`, from handing out the same.
    """

    _FIRST = 1 << 24
    _LAST = (1 << 31) - 1
    _mutex = threading.Lock()  # for all pools: two of them may be on one filesystem

    def __init__(self, record: Path, pool_uuid: str) -> None:
        self._record = record
        self._start = self._FIRST + uuid.UUID(pool_uuid).int % (self._LAST - self._FIRST)

    def allocate(self) -> int:
        with self._mutex, locked(self._record.with_suffix(".lock")):
            try:
                number = int(read_record(self._record)["next"])
            except FileNotFoundError:
                number = self._start
            for _ in range(1 << 16):
                following = number + 1 if number < self._LAST else self._FIRST
                known = quota.usage(self._record.parent, number)
                if not (known.limit or known.used or known.inodes):
                    write_record(self._record, {"next": following})
                    return number
                number = following
        raise FailedPrecondition(f"{self._record.parent}: no free project id was found")
