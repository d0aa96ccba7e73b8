"""Directories limited by quota groups, on btrfs."""

import contextlib
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from pycsi.errors import FailedPrecondition
from pycsi.limits import VOLUME_ROOT_MODE, LimitError, NoLimiter, Progress
from pycsi.linux import btrfs, mount, tree
from pycsi.model import Usage

_FORGOTTEN_AT_ONCE = 16


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
