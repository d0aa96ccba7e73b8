"""Freezing the filesystems of volumes for a moment, so that they thaw whatever happens.

A marker in the pool says which volumes are frozen. It is there before the freeze and until after
the thaw, so the next start knows what to thaw after a crash. Nothing else is believed of it: a
power cut, or a reboot, ends a freeze too.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog

from pycsi.backends import Backend
from pycsi.linux import processors
from pycsi.linux.descriptor import DIRECTORY, closing, opened
from pycsi.linux.freeze import freeze, thaw
from pycsi.linux.mount import mount_of, syncfs
from pycsi.model.errors import FailedPrecondition, retry

log = structlog.get_logger()


class OverdueError(Exception):
    """The filesystems were frozen for as long as they may be, and were thawed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A volume to freeze, whose filesystem is mounted, and the place of its marker."""

    marker: Path
    backend: Backend


class FreezeWindow:
    """The time in which the filesystems are frozen, or have at least not been thawed yet."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def end(self) -> None:
        self._over.set()

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def check(self) -> None:
        """Raise `OverdueError` if the time is over."""
        if self.over:
            raise OverdueError


@contextlib.contextmanager
def frozen(volumes: Iterable[Frozen], limit: float) -> Iterator[FreezeWindow]:
    """Freeze the filesystems through the `with` block, but for `limit` seconds at most.

    Where there are none it may take any time. It is to call `check` now and then.
    """
    window = FreezeWindow()
    with contextlib.ExitStack() as undo:
        opened_volumes = [
            (undo.enter_context(closing(open_volume(volume.backend))), volume) for volume in volumes
        ]
        for fd, _ in opened_volumes:
            syncfs(fd)  # now, while nobody has to wait for it
        if opened_volumes:
            descriptors = [fd for fd, _ in opened_volumes]
            done = threading.Event()
            watchdog = threading.Thread(
                target=_watch, args=(limit, done, window, descriptors), daemon=True
            )
            watchdog.start()
            undo.callback(watchdog.join)
            undo.callback(done.set)
        for fd, volume in opened_volumes:
            undo.enter_context(_frozen(fd, volume, window))
            window.check()
        yield window
        window.check()


@processors.unpinned()  # it may not have to wait for what keeps the others' processor
def _watch(
    limit: float, done: threading.Event, window: FreezeWindow, descriptors: list[int]
) -> None:
    """Thaw them after `limit` seconds, unless all is done by then."""
    if done.wait(limit):
        return
    window.end()
    for fd in descriptors:
        with contextlib.suppress(OSError):  # the others are to be thawed in any case
            thaw(fd)


@contextlib.contextmanager
def _frozen(fd: int, volume: Frozen, window: FreezeWindow) -> Iterator[None]:
    name = volume.backend.volume.id
    volume.marker.touch()
    try:
        ours = freeze(fd)
    except BaseException:
        retry(volume.marker.unlink)
        raise
    if not ours:
        retry(volume.marker.unlink)
        raise FailedPrecondition(
            f"the filesystem of volume {name} is frozen by somebody else; thaw it (fsfreeze "
            "--unfreeze)"
        )
    try:
        yield
    finally:
        was_frozen = retry(lambda: thaw(fd))  # or it would stand still for ever
        retry(volume.marker.unlink)
    if not (was_frozen or window.over):
        raise FailedPrecondition(
            f"the filesystem of volume {name} was thawed by somebody else while it was copied; "
            "have nothing else freeze it at that time"
        )


def open_volume(backend: Backend) -> int:
    """Open a directory of the volume's own filesystem, wherever that can be reached."""
    for item in backend.mounts():
        with contextlib.suppress(OSError), opened(Path(item.target), DIRECTORY) as fd:
            # Something else may be mounted over it: then that is what was opened.
            if mount_of(fd).id == item.id:
                return os.dup(fd)
    raise FailedPrecondition(
        f"volume {backend.volume.id}: its filesystem cannot be reached, for something else is "
        "mounted over it; unmount that"
    )


def thaw_after_crash(marker: Path, backend: Backend) -> None:
    """Thaw a volume that an earlier driver may have left frozen."""
    if backend.mounts():
        with closing(open_volume(backend)) as fd:
            if thaw(fd):
                log.warning("thawed, after a crash", volume=backend.volume.id)
    marker.unlink(missing_ok=True)
