"""Copying the data of a volume into another pool: first while it may be used, then the difference.

A copy is compared with its original, read from its disk: what was copied while the volume was used
at once, so far as that has not changed meanwhile, and the rest at the end.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from pycsi.backends import Backend
from pycsi.backends.limits import Progress
from pycsi.linux import filecopy, filemirror, treecopy, treemirror
from pycsi.linux.descriptor import opened
from pycsi.linux.fence import Fence
from pycsi.linux.mount import syncfs
from pycsi.linux.treemirror import DifferenceError, Part
from pycsi.model.errors import Aborted, FailedPrecondition
from pycsi.volumes import blocks

_ATTEMPTS = 3

Tell = Callable[[str], None]
"""Is told what is done now, for a person."""


class Mirror(Protocol):
    """The original of a volume, and its copy."""

    def prepare(self) -> Fence | None:
        """Copy what can be copied while the volume may be in use, and make it durable.

        Return what `finish` needs to find what has changed since, where it needs anything.
        """

    def finish(self) -> None:
        """Make the copy what the original is, which is not in use, durably, and compare them.

        `FailedPrecondition` if they differ nevertheless.
        """


class ImageMirror:
    """An image or a raw block volume. `kept` is what it was when it was prepared, if that is kept.

    Without it, all is read again at the end, and only what differs is written.
    """

    def __init__(
        self, source: Backend, copy: Backend, kept: Backend | None, progress: Progress, tell: Tell
    ) -> None:
        self._source = source
        self._copy = copy
        self._kept = kept
        self._progress = progress
        self._tell = tell
        self._all = [(0, copy.volume.capacity)]

    def prepare(self) -> None:
        with self._opened(self._kept or self._source) as (original, copy):
            self._tell("copying, while the volume may be used")
            filecopy.update(original, copy, self._all, self._progress)
            os.fsync(copy)
            if self._kept:
                self._tell("comparing what was copied")
                self._compare(original, copy, self._all)

    def finish(self) -> None:
        with self._opened(self._source) as (original, copy):
            os.fsync(original)
            ranges = self._all
            if self._kept:
                with opened(self._kept.content) as kept:
                    found = blocks.changed(
                        kept, original, 0, self._all[0][1], self._progress, by_extents=True
                    )
                    ranges = list(found)
            self._tell("copying what has changed")
            filecopy.update(original, copy, ranges, self._progress)
            os.fsync(copy)
            self._tell("comparing what was copied")
            self._compare(original, copy, ranges)

    @contextlib.contextmanager
    def _opened(self, original: Backend) -> Iterator[tuple[int, int]]:
        with opened(original.content) as one, opened(self._copy.content, os.O_RDWR) as other:
            yield one, other

    def _compare(self, original: int, copy: int, ranges: list[filecopy.Range]) -> None:
        if not filemirror.is_same(original, copy, ranges, self._progress):
            raise _differs(self._copy, "its image")


class TreeMirror:
    """A directory. `fence` tells what has changed since it was prepared; without it, all may."""

    def __init__(
        self, source: Path, copy: Backend, fence: Fence | None, progress: Progress, tell: Tell
    ) -> None:
        self._source = source
        self._copy = copy
        self._part, self._since = Part.ALL, None
        if fence and fence.holds:
            self._part, self._since = Part.CHANGED, fence.time
        self._progress = progress
        self._tell = tell

    def prepare(self) -> Fence:
        for _ in range(_ATTEMPTS):
            # The fence comes before syncfs: a further write to a mapped page that is already dirty
            # does not update the file's times until the page has been written back.
            fence = Fence.now()
            syncfs(self._source)
            try:
                self._tell("copying, while the volume may be used")
                self._update()
                self._tell("comparing what was copied")
                treemirror.compare(
                    self._source, self._copy.content, fence.time, Part.UNCHANGED, self._progress
                )
            except treecopy.TreeChangedError:
                continue
            except DifferenceError as error:
                raise _differs(self._copy, str(error)) from None
            return fence
        raise Aborted(
            f"volume {self._copy.volume.id}: directories were renamed each time it was copied; "
            "repeat the command, with its workload stopped"
        )

    def finish(self) -> None:
        syncfs(self._source)
        self._tell("copying what has changed")
        self._update()
        self._tell("comparing what was copied")
        try:
            treemirror.compare(
                self._source, self._copy.content, self._since, self._part, self._progress
            )
        except DifferenceError as error:
            raise _differs(self._copy, str(error)) from None

    def _update(self) -> None:
        treemirror.update(self._source, self._copy.content, self._since, self._part, self._progress)
        syncfs(self._copy.content)


def _differs(copy: Backend, how: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"volume {copy.volume.id}: its copy in pool {copy.volume.pool} is not what was written "
        f"({how}): look for errors of its disk. Nothing was moved"
    )
