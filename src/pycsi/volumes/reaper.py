"""The reaper of a pool: removes entries of the trash, in the background and at low priority."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from pycsi.linux.mount import syncfs
from pycsi.linux.program import unpinned
from pycsi.model.errors import FailedPrecondition
from pycsi.pool.pool import Pool
from pycsi.volumes import orphans
from pycsi.volumes.locks import Locks

log = structlog.get_logger()

_LOWEST_PRIORITY = 19

_GRACE = 0.1
"""Seconds before a deleted volume is freed, so that a burst of deletions is answered first."""

_TICK = 50_000_000
"""Nanoseconds; several ticks of the kernel's clock for file times."""

_LONGEST_SLEEP = 10.0
"""Seconds after which the pool is examined anyway: people may have moved directories in it."""


class Reaper:
    """A thread that removes the due entries of an open pool's trash, and deletes orphans."""

    def __init__(self, pool: Pool, locks: Locks) -> None:
        self._pool = pool
        self._locks = locks
        self._stopping = threading.Event()
        self._looked: dict[Path, int | None] = {}
        self._thread = threading.Thread(target=self._run, name=f"reaper {pool.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, even in the middle of an entry: the next start goes on with it."""
        self._stopping.set()
        self._pool.trash.filled.set()
        self._pool.trash.wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    @unpinned()
    def _run(self) -> None:
        # This applies to this thread alone, and sets its I/O priority too (ioprio_set(2)).
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        filled, wanted = self._pool.trash.filled, self._pool.trash.wanted
        looked = float("-inf")
        while not self._stopping.is_set():
            if time.monotonic() - looked >= _LONGEST_SLEEP:
                self._look(self._pool.layout.volumes, self._pool.volumes.look)
                self._look(self._pool.layout.trash, self._pool.trash.look)
                self._sweep()
                looked = time.monotonic()
            if filled.wait(min(self._reap(), _LONGEST_SLEEP)):
                wanted.wait(_GRACE)
            filled.clear()
            wanted.clear()

    def _look(self, folder: Path, look: Callable[[], bool]) -> None:
        """Call `look` if other processes may have changed a folder without announcing it."""
        with contextlib.suppress(OSError):  # the pool's disk is away
            changed = folder.stat().st_mtime_ns
            if changed != self._looked.get(folder) and look():
                # File times advance in ticks: a second change in the same tick would go unseen.
                over = abs(time.time_ns() - changed) > _TICK
                self._looked[folder] = changed if over else None

    def _sweep(self) -> None:
        with contextlib.suppress(OSError):  # the pool's disk is away
            orphans.sweep(self._pool, self._locks)

    def _reap(self) -> float:
        """Remove the due entries of the trash; return the seconds until there is more to do."""
        try:
            self._pool.check()
            before = self._pool.trash.changed
            wait = self._pool.trash.reap(self._pool.limiter, self._stopping.is_set)
            if self._pool.location.mount.fstype == "btrfs" and self._pool.trash.changed != before:
                syncfs(self._pool.layout.root)  # btrfs frees deleted blocks with the next commit
        except (FailedPrecondition, OSError) as error:
            log.warning("cannot empty the trash now", pool=self._pool.name, error=str(error))
            return _LONGEST_SLEEP
        return wait
