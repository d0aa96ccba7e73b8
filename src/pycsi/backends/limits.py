"""How a pool makes directories and limits their size: what every limiter does.

A limiter makes a volume's directory, sets its limit and reads it back, measures it and removes it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pycsi.linux import tree, treecopy
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Usage

VOLUME_ROOT_MODE = 0o755
"""Like the root of a freshly made filesystem; Kubernetes' fsGroup widens it."""


Progress = Callable[[], None]


class LimitError(FailedPrecondition):
    """The kernel did not take a limit, or no longer has the one that was set."""


class Limiter(Protocol):
    """How directories are made and limited. `name` is None where no limit can be enforced."""

    name: str | None

    def fault(self) -> str | None:
        """Return why limits do not hold now, and what mends that; None where they hold.

        That is short enough for a volume's condition. What is wrong with the pool itself is not
        told.
        """

    def mend(self) -> bool:
        """Begin what makes limits hold again and does no harm; tell whether anything was begun."""

    def make(self, path: Path, size: int | None) -> int | None:
        """Make the empty directory `path`, limited to `size` bytes unless that is None.

        Return its project id, if it got one.
        """

    def limit(self, path: Path, project: int | None, size: int) -> None:
        """Limit the directory to `size` bytes; `LimitError` where the kernel has another limit."""

    def limit_of(self, path: Path, project: int | None) -> int:
        """Return the limit that the kernel has for the directory; 0: none."""

    def usage(self, path: Path, project: int | None, size: int) -> Usage:
        """Measure a limited directory, without a walk; `LimitError` where it is not counted."""

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

    def fault(self) -> str | None:
        return (
            "nothing here limits a directory: mount the pool with prjquota (XFS, ext4), and "
            "restart the driver"
        )

    def mend(self) -> bool:
        return False

    def make(self, path: Path, size: int | None) -> int | None:
        os.mkdir(path)
        os.chmod(path, VOLUME_ROOT_MODE)
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
