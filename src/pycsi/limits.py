"""How a pool limits the size of a directory: btrfs quota groups, project quota, or not at all.

A limiter makes a volume's directory, sets its limit and reads it back, measures it and removes it.
"""

import contextlib
import dataclasses
import errno
import itertools
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pycsi.errors import FailedPrecondition
from pycsi.linux import btrfs, mount, quota, tree, treecopy
from pycsi.model import Usage
from pycsi.store import read_record, write_record

_FORGOTTEN_AT_ONCE = 16

VOLUME_ROOT_MODE = 0o755
"""Like the root of a freshly made filesystem; Kubernetes' fsGroup widens it."""


Progress = Callable[[], None]


class LimitError(Exception):
    """The kernel did not take a limit, or no longer has the one that was set."""


class Limiter(Protocol):
    """How directories are made and limited. `name` is None where no limit can be enforced."""

    name: str | None

    def make(self, path: Path, size: int | None) -> int | None:
        """Make the empty directory `path`, limited to `size` bytes unless that is None.

        Return its project id, if it got one.
        """

    def limit(self, path: Path, project: int | None, size: int) -> None:
        """Limit the directory to `size` bytes; `LimitError` where the kernel has another limit."""

    def limit_of(self, path: Path, project: int | None) -> int:
        """Return the limit that the kernel has for the directory; 0: none."""

    def usage(self, path: Path, project: int | None, size: int) -> Usage:
        """Measure a limited directory, without a walk."""

    def owned(self, path: Path, project: int | None, *, shares: bool) -> int:
        """Return how many bytes of a limited directory are known not to be others' too.

        `shares` says that it may share blocks.
        """

    def shares(self, path: Path) -> bool:
        """Tell whether `capture` within the pool is at one point in time, at once."""

    def capture(self, source: Path, path: Path, progress: Progress) -> bool:
        """Make the directory `path`, without a limit, with what is in the directory `source`.

        Tell whether that was at one point in time. `progress` is called now and then; what it
        raises ends the copy.
        """

    def restore(
        self, source: Path, path: Path, size: int | None, progress: Progress
    ) -> tuple[int | None, bool]:
        """Like `make`, with what is in the directory `source`; and whether at one point in time."""

    def remove(
        self, path: Path, project: int | None, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        """Delete the directory with everything in it, and its limit; absent is fine.

        `project` is the recorded id; None where there is no record, or no project. `interrupted`
        is asked now and then whether to stop, which is an `InterruptedError`.
        """


def filesystem_usage(path: Path) -> Usage:
    """Return what statvfs(3) says at `path`."""
    facts = os.statvfs(path)
    return Usage(
        total=facts.f_blocks * facts.f_frsize,
        used=(facts.f_blocks - facts.f_bfree) * facts.f_frsize,
        available=facts.f_bavail * facts.f_frsize,
        inodes=facts.f_files or None,
        inodes_used=facts.f_files - facts.f_ffree if facts.f_files else None,
        inodes_free=facts.f_favail if facts.f_files else None,
    )


class NoLimiter:
    """Plain directories; only volumes with `quota: none` are made of them."""

    name: str | None = None

    def make(self, path: Path, size: int | None) -> int | None:
        os.mkdir(path)  # noqa: PTH102  (Path's own cost as much as the calls)
        os.chmod(path, VOLUME_ROOT_MODE)  # noqa: PTH101
        if size is not None:
            self.limit(path, None, size)
        return None

    def limit(self, path: Path, project: int | None, size: int) -> None:
        raise LimitError(f"{path}: nothing on this filesystem limits a directory to {size} bytes")

    def limit_of(self, path: Path, project: int | None) -> int:
        return 0

    def usage(self, path: Path, project: int | None, size: int) -> Usage:
        return filesystem_usage(path)

    def owned(self, path: Path, project: int | None, *, shares: bool) -> int:
        return 0

    def shares(self, path: Path) -> bool:
        return False

    def capture(self, source: Path, path: Path, progress: Progress) -> bool:
        path.mkdir()
        treecopy.copy(source, path, progress)
        return False

    def restore(
        self, source: Path, path: Path, size: int | None, progress: Progress
    ) -> tuple[int | None, bool]:
        project = self.make(path, size)
        treecopy.copy(source, path, progress)
        return project, False

    def remove(
        self, path: Path, project: int | None, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        tree.remove(path, interrupted)


class ProjectLimiter(NoLimiter):
    """XFS and ext4: a project id on the tree, a hard limit on the project."""

    name: str | None = "project quota"

    def __init__(self, projects: "ProjectIds") -> None:
        self._projects = projects

    def make(self, path: Path, size: int | None) -> int | None:
        super().make(path, None)
        if size is None:
            return None
        project = self._projects.allocate()
        quota.set_project(path, project)
        self.limit(path, project, size)
        return project

    def limit(self, path: Path, project: int | None, size: int) -> None:
        if project is None:
            raise LimitError(f"{path}: a directory without a project cannot be limited")
        if quota.project_of(path) != project:
            # The owner of a directory may change its project; what it holds since then counts
            # for another one, but from now on it is limited again.
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

    def owned(self, path: Path, project: int | None, *, shares: bool) -> int:
        # A quota counts what is shared as what is not.
        return 0 if shares or project is None else quota.usage(path, project).used

    def remove(
        self, path: Path, project: int | None, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        if not path.is_dir():
            return
        tree.unprotect(path)
        # The limit goes first: once the directory has gone nobody knows its project any more. Where
        # there is a record the directory is not asked: its owner may have given it another's id.
        if project := project or quota.project_of(path):
            quota.set_limit(path, project, 0)
        quota.clear_project(path)  # or nothing of another project could be moved up in it
        super().remove(path, project, interrupted)


class SubvolumeLimiter(NoLimiter):
    """btrfs: every directory is a subvolume, its quota group has the limit.

    The kernel frees a deleted subvolume in the background, and older ones keep its quota group
    until they are told to forget it, which they refuse before that. So the numbers of deleted
    subvolumes wait in the directory `deleted`; a number is never used again.
    """

    name: str | None = "btrfs quota group"

    def __init__(self, deleted: Path) -> None:
        self._deleted = deleted

    def make(self, path: Path, size: int | None) -> int | None:
        btrfs.create_subvolume(path)
        path.chmod(VOLUME_ROOT_MODE)
        if size is not None:
            self.limit(path, None, size)
        return None

    def limit(self, path: Path, project: int | None, size: int) -> None:
        if btrfs.usage(path).limit != size:
            btrfs.set_limit(path, size)
        found = btrfs.usage(path).limit
        if found != size:
            raise LimitError(f"{path}: the quota group is limited to {found} bytes, not {size}")

    def limit_of(self, path: Path, project: int | None) -> int:
        return btrfs.usage(path).limit if btrfs.is_subvolume(path) else 0

    def usage(self, path: Path, project: int | None, size: int) -> Usage:
        # btrfs answers statvfs(3) for the whole filesystem, so the group's numbers are used.
        used = btrfs.usage(path).used
        free = os.statvfs(path)
        available = min(max(0, size - used), free.f_bavail * free.f_frsize)
        return Usage(total=size, used=used, available=available)

    def owned(self, path: Path, project: int | None, *, shares: bool) -> int:
        return btrfs.usage(path).exclusive

    def shares(self, path: Path) -> bool:
        return btrfs.is_subvolume(path)

    def capture(self, source: Path, path: Path, progress: Progress) -> bool:
        if self._snapshot(source, path, readonly=True):
            return True
        return super().capture(source, path, progress)

    def restore(
        self, source: Path, path: Path, size: int | None, progress: Progress
    ) -> tuple[int | None, bool]:
        if not self._snapshot(source, path, readonly=False):
            return super().restore(source, path, size, progress)
        if size is not None:
            self.limit(path, None, size)
        return None, True

    @staticmethod
    def _snapshot(source: Path, path: Path, *, readonly: bool) -> bool:
        """Make a snapshot; False where `source` is no subvolume of this filesystem."""
        _refuse_nested(source)
        try:
            btrfs.snapshot(source, path, readonly=readonly)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.EXDEV}:
                return False
            raise
        _refuse_nested(source)  # one may have been made meanwhile
        return True

    def remove(
        self, path: Path, project: int | None, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        self._forget_groups()
        if not os.path.lexists(path):
            return
        if not btrfs.is_subvolume(path):
            tree.remove(path, interrupted)
            return
        tree.refuse_mounts(path)
        btrfs.make_writable(path)
        tree.unprotect(path)
        self._deleted.mkdir(mode=0o700, exist_ok=True)
        # Any user may have made subvolumes inside, one in another: the innermost go first.
        numbers = [btrfs.subvolume_number(path)]
        for number in numbers:
            numbers += btrfs.subvolumes_in(self._deleted, number)
        for number in reversed(numbers):
            # On a full disk deleting comes first: a group that is left counts nothing.
            with contextlib.suppress(OSError):
                (self._deleted / str(number)).touch()
            btrfs.delete_subvolume(self._deleted, number)

    def _forget_groups(self) -> None:
        if self._deleted.is_dir():
            for entry in itertools.islice(self._deleted.iterdir(), _FORGOTTEN_AT_ONCE):
                if btrfs.forget_group(self._deleted, int(entry.name)):
                    entry.unlink(missing_ok=True)


def _refuse_nested(source: Path) -> None:
    """Refuse a volume in which somebody has made subvolumes: a snapshot would leave them out."""
    if mount.mount_under(source).fstype != "btrfs" or not btrfs.is_subvolume(source):
        return
    if btrfs.subvolumes_in(source, btrfs.subvolume_number(source)):
        raise FailedPrecondition(
            f"{source} holds subvolumes of its own, which a snapshot would not have in it; delete "
            "them, or move what is in them into directories"
        )


class ProjectIds:
    """A durable allocator of project ids: no id is handed out twice, also after a crash.

    The next id is on disk before this one is used. Every pool begins at a place of its own, and
    an id that the filesystem knows already, for whatever reason, is passed over: other pools and
    other programs use projects too.
    """

    _FIRST = 1 << 24
    _LAST = (1 << 31) - 1
    _mutex = threading.Lock()  # for all pools: two of them may be on one filesystem

    def __init__(self, record: Path, pool_uuid: str) -> None:
        self._record = record
        self._start = self._FIRST + uuid.UUID(pool_uuid).int % (self._LAST - self._FIRST)

    def allocate(self) -> int:
        with self._mutex:
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
