"""Volumes that are directories, whose size a quota limits if it is to be enforced."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import structlog

from pycsi.backends import Backend, attributes
from pycsi.backends.limits import LimitError, Progress, filesystem_usage
from pycsi.linux import mount, treecopy
from pycsi.linux.descriptor import (
    DIRECTORY,
    is_directory,
    opened,
    sync_directory,
)
from pycsi.linux.kernel import Mount
from pycsi.model.errors import Aborted, FailedPrecondition, OutOfRange
from pycsi.model.health import Fault, Reason
from pycsi.model.records import Usage, Volume
from pycsi.model.request import Capability
from pycsi.model.rootdirectory import RootDirectory
from pycsi.model.size import show

T = TypeVar("T")

log = structlog.get_logger()

_ATTEMPTS = 3
"""Attempts to copy a directory while nothing writes to it."""


class Directory(Backend):
    """`<where>/data`: a subvolume on btrfs, a plain directory elsewhere."""

    NAME = "data"

    def create(self, root: RootDirectory | None) -> int | None:
        size = self.volume.capacity if self.volume.enforced else None
        project = self.limiter.make(self.content, size)
        if root and root.differs(None):
            with opened(self.content, DIRECTORY) as fd:
                root.apply(fd)
        return project

    def create_unfilled(self) -> int | None:
        return self.create(None)

    def finish_filled(
        self, source: Volume, project: int | None, is_taken: Callable[[str], bool]
    ) -> None:
        self.finish_restore(source, project)

    def sync_names(self) -> None:
        sync_directory(self.content)

    def resize(self, size: int) -> None:
        if self.volume.enforced:
            if fault := self.limiter.fault():
                if size == self.volume.capacity:  # nothing new is promised
                    return
                raise FailedPrecondition(f"volume {self.volume.id} is not limited now: {fault}")
            self.limiter.limit(self.content, self.volume.project, size)

    def mounts(self) -> list[Mount]:
        mounts = self.kernel.mounts
        return mounts.of(self.location.device, self.location.seen_in(mounts).root_of(self.inside))

    def is_relic(self, mounted: Mount) -> bool:
        # A disk gets another device number whenever it is connected, and the pool may have been
        # moved within it. So the volume id in the path identifies the volume.
        inside = "/".join(self.inside.split("/")[-3:])  # volumes/ID/data
        return mounted.origin.endswith(f"/{inside}")

    def stage(self, path: str, capability: Capability, *, readonly: bool = False) -> None:
        if self.volume.enforced:
            try:
                self.limiter.limit(self.content, self.volume.project, self.volume.capacity)
            except LimitError as error:  # access matters more; the volume's condition reports it
                log.warning(
                    "a directory is staged without its limit",
                    volume=self.volume.id,
                    error=str(error),
                )
        shown = self.location.real(self.inside)
        self.bind(shown, path, attributes(capability, readonly=readonly))

    def usage(self, path: Path) -> Usage:
        # A directory without a limit may fill the pool, and its own use is not counted reliably.
        if self.volume.enforced and not self.limiter.fault():
            with contextlib.suppress(LimitError):
                return self.limiter.usage(self.content, self.volume.project, self.volume.capacity)
        return filesystem_usage(path)

    # Health

    def faults(self) -> Iterator[Fault]:
        if not is_directory(self.inside):
            yield Fault(Reason.DATA_MISSING, f"its directory is missing: {self.content}")

    @property
    def healthy_path(self) -> str:
        return "" if self.volume.enforced else self.inside

    # Snapshots

    @property
    def shares_blocks(self) -> bool:
        return self.limiter.shares_blocks(self.content)

    def occupied(self) -> int:
        counted = self.shares_blocks or (self.volume.enforced and self.volume.project)
        if counted and not self.limiter.fault():
            return self.limiter.usage(self.content, self.volume.project, 0).used or 0
        return treecopy.occupied(self.content)

    def owned(self, *, may_share: bool) -> int:
        if not self.volume.enforced:
            return 0
        owned = self.limiter.owned(self.content, self.volume.project, may_share=may_share)
        return min(owned, self.volume.capacity)

    def capture(self, source: Backend, progress: Progress, *, point_in_time: bool) -> None:
        def capture() -> tuple[None, bool]:
            return None, self.limiter.capture(source.content, self.content, progress)

        self._copy(source, capture, point_in_time=point_in_time)

    def restore(self, source: Backend, progress: Progress) -> int | None:
        size = self.volume.capacity if self.volume.enforced else None
        return self._copy(
            source,
            lambda: self.limiter.restore(source.content, self.content, size, progress),
            point_in_time=True,
        )

    def _copy(
        self, source: Backend, copy: Callable[[], tuple[T, bool]], *, point_in_time: bool
    ) -> T:
        """Call `copy` until it succeeds without changes to the source; return its result.

        `copy` returns the result, and whether the copy is of one point in time by itself.
        `FailedPrecondition` if writes interfere with every attempt, `Aborted` if directories move.
        """
        busy = point_in_time and source.written_at() is not None
        if source.shares_blocks or not busy:
            with contextlib.suppress(treecopy.TreeChangedError):
                made, at_once = copy()
                if at_once or not busy:
                    return made
            self.limiter.remove(self.content, None)
        for _ in range(_ATTEMPTS):
            # The fence comes before syncfs: a further write to a mapped page that is already dirty
            # does not update the file's times until the page has been written back.
            since = treecopy.fence()
            mount.syncfs(source.content)
            try:
                made, _ = copy()
                if busy:
                    treecopy.refuse_changed(source.content, since)
            except treecopy.TreeChangedError as change:
                changed = str(change)
                self.limiter.remove(self.content, None)
            else:
                return made
        if not busy:
            raise Aborted(
                f"volume {source.volume.id}: directories were renamed while its files were "
                f"copied ({changed}); try again, or stop what renames them"
            )
        raise FailedPrecondition(
            f"volume {source.volume.id} was written to while its files were copied ({changed}): "
            "the copy would not be of one point in time. Stop what writes; or use type: image, or "
            "a pool on btrfs; or accept files of different moments, with consistency: files in "
            "the VolumeSnapshotClass"
        )

    def finish_restore(self, source: Volume, project: int | None) -> None:
        size = self.volume.capacity
        if self.volume.enforced:
            used = self.limiter.usage(self.content, project, size).used or 0
            if used > size:
                raise OutOfRange(
                    f"the source, whose size was not enforced, holds {show(used)}; ask for more "
                    f"than {show(size)}"
                )
        mount.syncfs(self.content)

    def finish_capture(self) -> None:
        mount.syncfs(self.content)
