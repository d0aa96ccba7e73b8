"""The reaper of a pool: frees what is in its trash, in the background and at low priority."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from pycsi.linux import processors
from pycsi.linux.mount import syncfs
from pycsi.model.errors import FailedPrecondition
from pycsi.pool.pool import Pool
from pycsi.volumes import orphans
from pycsi.volumes.locks import Locks

log = structlog.get_logger()

_LOWEST_PRIORITY = 19

_GRACE = 0.1
"""Seconds before what was thrown away is freed: deletions that come together are answered first."""

_TICK = 50_000_000
"""Nanoseconds, several times the kernel's ticks."""

_LONGEST_SLEEP = 10.0
"""Seconds after which the pool is looked at anyway: people may have moved things about in it."""


class Reaper:
    """A thread that empties the trash of an open pool of what is due, and deletes orphans."""

    def __init__(self, pool: Pool, locks: Locks) -> None:
        self._pool = pool
        self._locks = locks
        self._stopping = threading.Event()
        self._looked: dict[Path, int | None] = {}
        self._thread = threading.Thread(target=self._run, name=f"reaper {pool.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, also in the middle of a tree: the next start goes on with it."""
        self._stopping.set()
        self._pool.trash.filled.set()
        self._pool.trash.wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    @processors.unpinned()
    def _run(self) -> None:
        # Of this thread alone; without an I/O priority of its own that follows (ioprio_set(2)).
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

    def _look(self, folder: Path, look: Callable[[], object]) -> None:
        """Look for what others have changed in a folder, and not announced."""
        with contextlib.suppress(OSError):  # the pool's disk is away
            changed = folder.stat().st_mtime_ns
            if changed != self._looked.get(folder):
                look()
                # File times advance in ticks: two changes in one tick have one time.
                over = abs(time.time_ns() - changed) > _TICK
                self._looked[folder] = changed if over else None

    def _sweep(self) -> None:
        with contextlib.suppress(OSError):  # the pool's disk is away
            orphans.sweep(self._pool, self._locks)

    def _reap(self) -> float:
        """Remove what is due; return in how many seconds there is more to do."""
        try:
            self._pool.check()
            before = self._pool.trash.changed
            wait = self._pool.trash.reap(self._pool.limiter, self._stopping.is_set)
            if self._pool.mount.fstype == "btrfs" and self._pool.trash.changed != before:
                syncfs(self._pool.layout.root)  # what was deleted is free after the next commit
        except (FailedPrecondition, OSError) as error:
            log.warning("cannot empty the trash now", pool=self._pool.name, error=str(error))
            return _LONGEST_SLEEP
        return wait
