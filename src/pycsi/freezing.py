"""Freezing the filesystems of volumes for a moment, so that they thaw whatever happens.

A marker in the pool says which volumes are frozen. It is there before the freeze and until after
the thaw, so the next start knows what to thaw after a crash. Nothing else is believed of it: a
power cut, or a reboot, ends a freeze too.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog

from pycsi.backends import Backend
from pycsi.errors import FailedPrecondition
from pycsi.linux.descriptor import DIRECTORY, opened
from pycsi.linux.freeze import freeze, thaw
from pycsi.linux.mount import syncfs

log = structlog.get_logger()


class OverdueError(Exception):
    """The filesystems were frozen for as long as they may be, and were thawed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A volume to freeze: its marker, and the directory at which it is mounted."""

    marker: Path
    mountpoint: Path


class Moment:
    """The time in which the filesystems are frozen, or have at least not been thawed yet."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def end(self) -> None:
        self._over.set()

    def check(self) -> None:
        """Raise `OverdueError` if the time is over."""
        if self._over.is_set():
            raise OverdueError


@contextlib.contextmanager
def frozen(volumes: Iterable[Frozen], limit: float) -> Iterator[Moment]:
    """Freeze the filesystems through the `with` block, but for `limit` seconds at most.

    Where there are none it may take any time. It is to call `check` now and then.
    """
    moment = Moment()
    with contextlib.ExitStack() as undo:
        places = [
            (undo.enter_context(opened(volume.mountpoint, DIRECTORY)), volume) for volume in volumes
        ]
        for _, volume in places:
            syncfs(volume.mountpoint)  # now, while nobody has to wait for it
        if places:
            watchdog = threading.Timer(limit, _expire, [moment, [fd for fd, _ in places]])
            watchdog.daemon = True
            watchdog.start()
            undo.callback(watchdog.join)
            undo.callback(watchdog.cancel)
        for fd, volume in places:
            undo.enter_context(_frozen(fd, volume))
            moment.check()
        yield moment
        moment.check()


def _expire(moment: Moment, descriptors: list[int]) -> None:
    moment.end()
    for fd in descriptors:
        with contextlib.suppress(OSError):  # the others are to be thawed in any case
            thaw(fd)


@contextlib.contextmanager
def _frozen(fd: int, volume: Frozen) -> Iterator[None]:
    volume.marker.touch()
    try:
        if not freeze(fd):
            raise FailedPrecondition(
                f"{volume.mountpoint} is frozen by somebody else; thaw it (fsfreeze --unfreeze)"
            )
        try:
            yield
        finally:
            thaw(fd)
    finally:
        volume.marker.unlink(missing_ok=True)


def thaw_after_crash(marker: Path, backend: Backend) -> None:
    """Thaw a volume that an earlier driver may have left frozen."""
    for mount in backend.mounts():
        with opened(Path(mount.target), DIRECTORY) as fd:
            if thaw(fd):
                log.warning("thawed, after a crash", volume=backend.volume.id, path=mount.target)
        break
    marker.unlink(missing_ok=True)
