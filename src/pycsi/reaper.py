"""The reaper of a pool: frees what is in its trash, in the background and at low priority."""

import os
import threading
import time

import structlog

from pycsi.errors import FailedPrecondition
from pycsi.pool import Pool

log = structlog.get_logger()

_LOWEST_PRIORITY = 19
_LONGEST_SLEEP = 60.0
"""Seconds after which the pool is looked at anyway: people may have moved things about in it."""


class Reaper:
    """A thread that empties the trash of an open pool of what is due."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"reaper {pool.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, also in the middle of a tree: the next start goes on with it."""
        self._stopping.set()
        self._pool.trash.filled.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        # Of this thread alone; without an I/O priority of its own that follows (ioprio_set(2)).
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        filled = self._pool.trash.filled
        looked = time.monotonic()
        while not self._stopping.is_set():
            filled.clear()
            if time.monotonic() - looked >= _LONGEST_SLEEP:
                self._pool.look()
                looked = time.monotonic()
            filled.wait(min(self._reap(), _LONGEST_SLEEP))

    def _reap(self) -> float:
        """Remove what is due; return in how many seconds there is more to do."""
        try:
            self._pool.check()
            return self._pool.trash.reap(self._pool.limiter, self._stopping.is_set)
        except (FailedPrecondition, OSError) as error:
            log.warning("cannot empty the trash now", pool=self._pool.name, error=str(error))
            return _LONGEST_SLEEP
