"""The trimmer of a pool: returns the space of deleted files in thin images to the pool.

A mounted image whose `trimInterval` has passed is trimmed piece by piece, at low priority. The
modification time of an empty file beside the image is that of the last trim, so that it is known
after a restart too.
"""

import contextlib
import errno
import itertools
import os
import threading
import time
from pathlib import Path

import structlog

from pycsi.linux.descriptor import closing
from pycsi.linux.program import unpinned
from pycsi.linux.trim import trim
from pycsi.model import triminterval
from pycsi.model.errors import Aborted, CsiError
from pycsi.model.records import Volume
from pycsi.model.size import GIB
from pycsi.pool.freezing import open_volume
from pycsi.pool.pool import Pool
from pycsi.volumes.locks import Locks

log = structlog.get_logger()

_LOWEST_PRIORITY = 19

_ROUND = 10.0
"""Seconds between two searches for volumes that are due."""

_PIECE = GIB
"""Bytes of a filesystem that are trimmed at a time; meanwhile an operation on the volume waits."""

_PAUSE = 0.01
"""The least seconds between two pieces, in which waiting operations get the volume."""

_PATIENCE = 5.0
"""Seconds that the driver, when it ends, waits for the kernel to finish a piece."""

_STAMP = "trimmed"


class _NotNowError(Exception):
    """The volume is not mounted writable, or should not be trimmed any more."""


class Trimmer:
    """A thread that trims the thin images of an open pool that are mounted and due."""

    def __init__(self, pool: Pool, locks: Locks) -> None:
        self._pool = pool
        self._locks = locks
        self._stopping = threading.Event()
        self._tried: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name=f"trimmer {pool.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the current piece; if the disk hangs, stop waiting after a while."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        # This applies to this thread alone, and sets its I/O priority too (ioprio_set(2)).
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        while not self._stopping.wait(_ROUND):
            try:
                self._look()
            except Exception:
                log.exception("cannot look for what is to be trimmed", pool=self._pool.name)

    def _look(self) -> None:
        """Trim the volumes that are due, one after the other."""
        wanted = {item.id: item for item in self._pool.volumes if triminterval.of(item)}
        for known in (self._tried, self._failures):
            for gone in known.keys() - wanted.keys():
                del known[gone]
        for volume in wanted.values():
            if not self._stopping.is_set() and self._is_due(volume):
                self._attempt(volume.id)

    def _is_due(self, volume: Volume) -> bool:
        """Tell whether a volume's interval has passed since it was trimmed, or that was tried.

        A volume whose last trim is not known, or lies in the future, is due.
        """
        interval = triminterval.of(volume)
        if interval is None or time.monotonic() - self._tried.get(volume.id, -interval) < interval:
            return False
        try:
            ago = time.time() - self._stamp(volume.id).stat().st_mtime
        except OSError:
            return True
        return not 0 <= ago < interval

    def _stamp(self, volume_id: str) -> Path:
        return Path(self._pool.volumes.place(volume_id), _STAMP)

    def _attempt(self, volume_id: str) -> None:
        """Trim a volume if it is mounted; log each reason why that fails once, until it works."""
        try:
            self._trim(volume_id)
        except (Aborted, _NotNowError):
            return  # the next round tries again
        except (OSError, CsiError) as error:
            why = _explained(error)
            if self._failures.get(volume_id) != why:
                self._failures[volume_id] = why
                log.warning("cannot trim a volume", volume=volume_id, error=why)
        else:
            self._failures.pop(volume_id, None)
        self._tried[volume_id] = time.monotonic()

    def _trim(self, volume_id: str) -> None:
        """Trim a whole volume, and record the time."""
        for start in itertools.count(0, _PIECE):
            begin = time.monotonic()
            with self._locks.lend(volume_id):
                if self._trim_piece(volume_id, start):
                    # If the disk is full or read-only, the time is in memory until the driver ends.
                    with contextlib.suppress(OSError):
                        self._stamp(volume_id).touch()
                    return
            # Leave disk and volume to others for as long as the piece has taken.
            if self._stopping.wait(max(time.monotonic() - begin, _PAUSE)):
                raise _NotNowError

    def _trim_piece(self, volume_id: str, start: int) -> bool:
        """Trim the piece of a volume that begins at byte `start`; return True if it is the last."""
        volume = self._pool.volumes.get(volume_id)
        if volume is None or triminterval.of(volume) is None:
            raise _NotNowError
        backend = self._pool.backend(volume)
        mounted = backend.mounts()
        if not mounted or "ro" in mounted[0].super_options:
            raise _NotNowError
        # The last piece is open-ended: the addresses of btrfs are not offsets on its disk.
        last = start + _PIECE >= volume.capacity
        with closing(open_volume(backend)) as fd, unpinned():
            try:
                trim(fd, start, None if last else _PIECE)
            except OSError as error:
                if start and error.errno == errno.EINVAL:
                    return True  # the filesystem is smaller than its volume
                raise
        return last


def _explained(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EOPNOTSUPP:
        return "its loop device cannot discard: the pool's filesystem cannot punch holes in files"
    return str(error)
