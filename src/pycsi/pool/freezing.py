"""Freezing the filesystems of volumes for a moment, and thawing them whatever happens.

A marker in the pool names each volume that is being frozen. It exists from before the freeze until
after the thaw, so that the next start knows what to thaw after a crash. It does not prove that the
volume is frozen: a power cut or a reboot ends a freeze too.
"""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import structlog

from pycsi.backends import Backend
from pycsi.backends.throttle import Throttle
from pycsi.linux.descriptor import DIRECTORY, closing, opened
from pycsi.linux.freeze import freeze, thaw
from pycsi.linux.kernel import mount_of
from pycsi.linux.mount import syncfs
from pycsi.linux.program import unpinned
from pycsi.model.errors import FailedPrecondition, retry
from pycsi.model.trace import phase

log = structlog.get_logger()


class OverdueError(Exception):
    """The filesystems were frozen for as long as is allowed, and have been thawed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FreezeTarget:
    """A volume to freeze, whose filesystem is mounted, and the path of its marker.

    `throttle` holds its users to its limits on I/O.
    """

    marker: Path
    backend: Backend
    throttle: Throttle


class FreezeWindow:
    """The time for which filesystems are frozen; it is over once the watchdog thaws them."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def end(self) -> None:
        self._over.set()

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def check(self) -> None:
        """Raise `OverdueError` if the window is over."""
        if self.over:
            raise OverdueError


@contextlib.contextmanager
def frozen(
    volumes: Iterable[FreezeTarget],
    limit: float,
    froze: Callable[[float, bool], None] = lambda _seconds, _overran: None,
) -> Iterator[FreezeWindow]:
    """Freeze the volumes' filesystems for the `with` block, but for `limit` seconds at most.

    Once they are thawed, `froze` is called with the seconds, and whether the limit has ended it.

    The block should call `check` of the window now and then. Without volumes there is no limit.
    `FailedPrecondition` if another process has frozen or thaws one of the filesystems;
    `OverdueError` if they were thawed after `limit`.
    """
    window = FreezeWindow()
    with contextlib.ExitStack() as undo:
        opened_volumes = [
            (undo.enter_context(closing(open_volume(volume.backend))), volume) for volume in volumes
        ]
        unlimited = undo.enter_context(contextlib.ExitStack())
        for _, volume in opened_volumes:
            unlimited.enter_context(volume.throttle.suspended(volume.backend))
        if opened_volumes:
            with phase("write back"):
                for fd, _ in opened_volumes:
                    syncfs(fd)  # before the freeze, which then takes less time
            undo.enter_context(phase("freeze"))
            descriptors = [fd for fd, _ in opened_volumes]
            done = threading.Event()
            watchdog = threading.Thread(
                target=_watch, args=(limit, done, window, descriptors), daemon=True
            )
            watchdog.start()
            undo.callback(watchdog.join)
            undo.callback(done.set)
            undo.callback(_tell, froze, time.monotonic(), window)
        for fd, volume in opened_volumes:
            undo.enter_context(_frozen(fd, volume, window))
            window.check()
        unlimited.close()
        yield window
        window.check()


def _tell(froze: Callable[[float, bool], None], begin: float, window: FreezeWindow) -> None:
    froze(time.monotonic() - begin, window.over)


def write_back(volumes: Iterable[FreezeTarget]) -> None:
    """Write what is dirty in the volumes' filesystems to disk, so that freezing takes less time."""
    for volume in volumes:
        with (
            closing(open_volume(volume.backend)) as fd,
            volume.throttle.suspended(volume.backend),
            phase("write back"),
        ):
            syncfs(fd)


@unpinned()  # the watchdog must run even if the other threads' processor is busy
def _watch(
    limit: float, done: threading.Event, window: FreezeWindow, descriptors: list[int]
) -> None:
    """Thaw the filesystems after `limit` seconds, unless `done` is set by then."""
    if done.wait(limit):
        return
    window.end()
    for fd in descriptors:
        with contextlib.suppress(OSError):  # one failure must not leave the others frozen
            thaw(fd)


@contextlib.contextmanager
def _frozen(fd: int, volume: FreezeTarget, window: FreezeWindow) -> Iterator[None]:
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
        was_frozen = retry(lambda: thaw(fd))  # or the filesystem would stay frozen
        retry(volume.marker.unlink)
    if not (was_frozen or window.over):
        raise FailedPrecondition(
            f"the filesystem of volume {name} was thawed by somebody else while it was copied; "
            "have nothing else freeze it at that time"
        )


def open_volume(backend: Backend) -> int:
    """Open the root of a mount of the volume's own filesystem; the caller closes the descriptor.

    `FailedPrecondition` if none can be reached, as when others are mounted over them.
    """
    for item in backend.mounts():
        with contextlib.suppress(OSError), opened(Path(item.target), DIRECTORY) as fd:
            # If another filesystem is mounted over this one, that is what was opened.
            if mount_of(fd).id == item.id:
                return os.dup(fd)
    raise FailedPrecondition(
        f"volume {backend.volume.id}: its filesystem cannot be reached, for something else is "
        "mounted over it; unmount that"
    )


def thaw_after_crash(marker: Path, backend: Backend) -> None:
    """Thaw a volume that an earlier driver may have left frozen, and remove its marker."""
    if backend.mounts():
        with closing(open_volume(backend)) as fd:
            if thaw(fd):
                log.warning("thawed, after a crash", volume=backend.volume.id)
    marker.unlink(missing_ok=True)
