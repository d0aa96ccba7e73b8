"""The limiter for btrfs, which uses subvolumes and quota groups."""

import contextlib
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from pycsi.backends.limits import (
    VOLUME_ROOT_MODE,
    LimitError,
    NoLimiter,
    Progress,
)
from pycsi.linux import btrfs, kernel, tree
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Usage

_FORGOTTEN_AT_ONCE = 16

_FAULTS = {
    btrfs.Accounting.OFF: "btrfs quotas are switched off; run: btrfs quota enable",
    btrfs.Accounting.SIMPLE: (
        "btrfs simple quotas do not count what copies share; run: btrfs quota disable, then enable,"
    ),
    btrfs.Accounting.INCONSISTENT: (
        "btrfs quota groups are inconsistent; run: btrfs quota rescan -w"
    ),
    btrfs.Accounting.COUNTING: (
        "btrfs quota groups are being counted; wait for: btrfs quota rescan -w"
    ),
}
"""Why limits are not enforced, and the command for the repair; the path is to be appended."""


class SubvolumeLimiter(NoLimiter):
    """Makes each directory a subvolume, whose quota group has the limit.

    The kernel frees a deleted subvolume in the background. Older kernels keep its quota group until
    it is removed explicitly, which they refuse before the subvolume is freed. So the numbers of
    deleted subvolumes are kept in the pool's directory `deleted-groups`, and their groups are
    removed later; btrfs never reuses a number.
    """

    name: str | None = "btrfs quota group"

    def __init__(self, pool: Path) -> None:
        self._pool = pool
        self._deleted = pool / "deleted-groups"

    def fault(self) -> str | None:
        try:
            said = _FAULTS.get(btrfs.accounting(self._pool))
        except OSError:  # the pool's disk is not available
            return None
        return f"{said} {self._pool}" if said else None

    def mend(self) -> bool:
        if btrfs.accounting(self._pool) is not btrfs.Accounting.INCONSISTENT:
            return False
        btrfs.rescan(self._pool)
        return True

    def make(self, path: Path, size: int | None) -> int | None:
        btrfs.create_subvolume(path)
        path.chmod(VOLUME_ROOT_MODE)
        if size is not None:
            self.limit(path, None, size)
        return None

    def limit(self, path: Path, project: int | None, size: int) -> None:
        if self._group(path).limit != size:
            try:
                btrfs.set_limit(path, size)
            except OSError as error:
                if error.errno not in {errno.ENOTCONN, errno.ENOENT}:
                    raise
                raise self._uncounted(path) from None
        found = self._group(path).limit
        if found != size:
            raise LimitError(f"{path}: the quota group is limited to {found} bytes, not {size}")

    def _group(self, path: Path) -> btrfs.GroupUsage:
        found = btrfs.usage(path)
        if found is None:
            raise self._uncounted(path)
        return found

    def _uncounted(self, path: Path) -> LimitError:
        why = self.fault() or (
            "make its quota group with btrfs qgroup create, or all with btrfs quota disable and "
            f"enable, on {self._pool}"
        )
        return LimitError(f"{path} has no quota group, so nothing limits or counts it: {why}")

    def limit_of(self, path: Path, project: int | None) -> int:
        found = btrfs.usage(path) if btrfs.is_subvolume(path) else None
        return found.limit if found else 0

    def usage(self, path: Path, project: int | None, size: int) -> Usage:
        # statvfs(3) describes the whole btrfs, so the quota group's numbers are used.
        used = self._group(path).used
        free = os.statvfs(path)
        available = min(max(0, size - used), free.f_bavail * free.f_frsize)
        return Usage(total=size, used=used, available=available)

    def owned(self, path: Path, project: int | None, *, may_share: bool) -> int:
        return self._group(path).exclusive

    def shares_blocks(self, path: Path) -> bool:
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
        """Make a snapshot; False if `source` is not a subvolume of the same filesystem."""
        _refuse_nested(source)
        try:
            btrfs.snapshot(source, path, readonly=readonly)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.EXDEV}:
                return False
            raise
        _refuse_nested(source)  # again: a subvolume may have been made meanwhile
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
        # Any user may have made nested subvolumes inside; the innermost are deleted first.
        numbers = [btrfs.subvolume_number(path)]
        for number in numbers:
            numbers += btrfs.subvolumes_in(self._deleted, number)
        for number in reversed(numbers):
            # On a full disk the deletion matters more; a leftover quota group does no harm.
            with contextlib.suppress(OSError):
                (self._deleted / str(number)).touch()
            btrfs.delete_subvolume(self._deleted, number)

    def _forget_groups(self) -> None:
        if self._deleted.is_dir():
            for entry in itertools.islice(self._deleted.iterdir(), _FORGOTTEN_AT_ONCE):
                if btrfs.forget_group(self._deleted, int(entry.name)):
                    entry.unlink(missing_ok=True)


def _refuse_nested(source: Path) -> None:
    """Raise `FailedPrecondition` if `source` has nested subvolumes, which snapshots leave out."""
    if kernel.mount_under(source).fstype != "btrfs" or not btrfs.is_subvolume(source):
        return
    if btrfs.subvolumes_in(source, btrfs.subvolume_number(source)):
        raise FailedPrecondition(
            f"{source} holds subvolumes of its own, which a snapshot would not have in it; delete "
            "them, or move what is in them into directories"
        )
