"""Whether the limits of a pool's directories hold, watched: what was lost is set again."""

import contextlib
import itertools
from collections.abc import Iterable

import structlog

from pycsi.model.errors import CsiError
from pycsi.model.records import Volume, VolumeType
from pycsi.pool.pool import Pool
from pycsi.volumes.locks import Locks

log = structlog.get_logger()

_BATCH = 64
"""How many volumes are examined in one look: that takes milliseconds, however many there are."""


class Enforcement:
    """Logs when the limits of a pool no longer hold, or hold again, and mends what it can."""

    def __init__(self, pool: Pool, locks: Locks) -> None:
        self._pool = pool
        self._locks = locks
        self._told: str | None = None
        self._mended = False
        self._examined = ""

    def look(self) -> None:
        """Look at what the kernel says now of the pool, and of the next of its volumes."""
        limiter = self._pool.limiter
        if limiter.name is None:
            return
        fault = limiter.fault()
        if fault != self._told:
            self._told = fault
            if fault:
                log.warning(
                    "the pool's directories are not limited", pool=self._pool.name, error=fault
                )
            else:
                log.info("the pool's directories are limited again", pool=self._pool.name)
        if not fault:
            self._mended = False
            self._examine()
        elif not self._mended:
            # Once: where it does not help it would not help the next time either.
            with contextlib.suppress(OSError):  # not root, or the pool's disk is away
                self._mended = limiter.mend()

    def _examine(self) -> None:
        """Set the limits that the next volumes have lost; where one has, all may have."""
        batch = list(itertools.islice(self._pool.volumes.following(self._examined), _BATCH))
        self._examined = batch[-1].id if len(batch) == _BATCH else ""
        restored = self._restore(batch)
        if restored:
            restored += self._restore(self._pool.volumes)
            log.warning(
                "limits were lost, and are set again", pool=self._pool.name, volumes=restored
            )

    def _restore(self, volumes: Iterable[Volume]) -> int:
        """Set the limits that volumes have lost, and return of how many."""
        return sum(self._has_lost(volume) and self._set_again(volume.id) for volume in volumes)

    def _has_lost(self, volume: Volume) -> bool:
        """Tell whether the kernel has no limit for a volume that should have one.

        Another limit is somebody's doing, which the volume's condition tells.
        """
        if volume.type is not VolumeType.DIRECTORY or not volume.enforced:
            return False
        try:
            content = self._pool.backend(volume).content
            return not self._pool.limiter.limit_of(content, volume.project)
        except OSError:  # it has been deleted, or the pool's disk is away
            return False

    def _set_again(self, volume_id: str) -> bool:
        """Set the limit of a volume to its size, unless somebody works on it just now."""
        try:
            with self._locks.lend(volume_id):
                volume = self._pool.volumes.get(volume_id)
                if volume is None or not self._has_lost(volume):
                    return False
                content = self._pool.backend(volume).content
                self._pool.limiter.limit(content, volume.project, volume.capacity)
        except (CsiError, OSError):  # its condition tells, and another look tries again
            return False
        return True
