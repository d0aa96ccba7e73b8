"""The interface of limiters, which make directories and limit their size, and `NoLimiter`.

A limiter makes a volume's directory, sets its limit and reads it back, measures it and removes it.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pycsi.linux import tree, treecopy
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Usage

VOLUME_ROOT_MODE = 0o755
"""The mode of a new volume's root, as mkfs(8) makes it; Kubernetes' fsGroup adds to it."""


Progress = Callable[[], None]


class LimitError(FailedPrecondition):
    """The kernel did not accept a limit, or no longer has the limit that was set."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """The project id of a directory before it was taken over, and whether new files inherit it."""

    project: int = 0
    inherit: bool = False


class Limiter(Protocol):
    """Makes, limits, measures and removes directories; sizes are in bytes.

    `name` describes the mechanism; it is None if no limit can be enforced. `project` is the project
    id recorded for a volume, or None if it has none.
    """

    name: str | None

    def fault(self) -> str | None:
        """Return why limits are not enforced now, and how to repair that; None if they are.

        The text is short enough for a volume's condition. Faults of the pool itself are left out.
        """

    def mend(self) -> bool:
        """Start a repair of the limits if a harmless one exists; tell whether one was started."""

    def make(self, path: Path, size: int | None) -> int | None:
        """Make the empty directory `path`, limited to `size` bytes; None means no limit.

        Return its project id, or None if it has none.
        """

    def claim(self) -> int | None:
        """Return a project id that nothing else has, for `take_over`; None if it needs none."""

    def take_over(self, path: Path, project: int | None, size: int) -> None:
        """Count and limit the directory `path` with all that is in it, which others have made.

        It has the id that `claim` has returned. `LimitError` as `limit` raises it.
        """

    def give_back(self, path: Path, project: int | None, former: Former) -> None:
        """Undo `take_over`, also one that was cut off; the project id becomes `former` again."""

    def former(self, path: Path) -> Former:
        """Return what `give_back` needs, before `take_over`."""

    def limit(self, path: Path, project: int | None, size: int) -> None:
        """Limit the directory to `size` bytes; `LimitError` if the kernel does not apply that."""

    def limit_of(self, path: Path, project: int | None) -> int:
        """Return the directory's limit in bytes, as the kernel has it; 0 if there is none."""

    def usage(self, path: Path, project: int | None, size: int) -> Usage:
        """Return the usage of a directory limited to `size` bytes, without reading the tree.

        `LimitError` if the kernel does not count its usage.
        """

    def owned(self, path: Path, project: int | None, *, may_share: bool) -> int:
        """Return a lower bound for the bytes in blocks that belong to a limited directory alone.

        `may_share` tells whether it may share blocks with other directories.
        """

    def shares_blocks(self, path: Path) -> bool:
        """Tell whether `capture` of the directory, within the pool, is an instant snapshot."""

    def capture(self, source: Path, path: Path, progress: Progress) -> bool:
        """Copy the directory `source` to the new directory `path`, which gets no limit.

        Tell whether the copy is of one point in time. `progress` is called repeatedly; an exception
        from it ends the copy.
        """

    def restore(
        self, source: Path, path: Path, size: int | None, progress: Progress
    ) -> tuple[int | None, bool]:
        """Make the directory `path` as `make` does, with a copy of the directory `source` in it.

        Return the project id, and whether the copy is of one point in time.
        """

    def remove(
        self, path: Path, project: int | None, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        """Delete the directory with everything in it, and its limit; it may be absent.

        `project` is the recorded project id; None without a record, or without a project.
        `InterruptedError` as soon as `interrupted`, which is called repeatedly, returns true.
        """


def filesystem_usage(path: Path) -> Usage:
    """Return the usage of the filesystem that holds `path`, in bytes and inodes (statvfs(3))."""
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
    """Plain directories without limits, for volumes with `quota: none` only."""

    name: str | None = None

    def fault(self) -> str | None:
        return (
            "the pool's filesystem does not limit directories; mount it with prjquota (XFS, ext4), "
            "and restart the driver"
        )

    def mend(self) -> bool:
        return False

    def make(self, path: Path, size: int | None) -> int | None:
        os.mkdir(path)
        os.chmod(path, VOLUME_ROOT_MODE)
        if size is not None:
            self.limit(path, None, size)
        return None

    def claim(self) -> int | None:
        return None

    def former(self, path: Path) -> Former:
        return Former()

    def take_over(self, path: Path, project: int | None, size: int) -> None:
        self.limit(path, project, size)

    def give_back(self, path: Path, project: int | None, former: Former) -> None:
        pass

    def limit(self, path: Path, project: int | None, size: int) -> None:
        raise LimitError(f"{path}: nothing on this filesystem limits a directory to {size} bytes")

    def limit_of(self, path: Path, project: int | None) -> int:
        return 0

    def usage(self, path: Path, project: int | None, size: int) -> Usage:
        return filesystem_usage(path)

    def owned(self, path: Path, project: int | None, *, may_share: bool) -> int:
        return 0

    def shares_blocks(self, path: Path) -> bool:
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
