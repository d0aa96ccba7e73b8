"""Watching whether the size limits of a pool's directories hold, and setting lost ones again."""

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
"""The number of volumes that one look examines, so that it takes milliseconds in any pool."""


class Enforcement:
    """Logs when a pool's limits no longer hold, or hold again, and repairs them if possible."""

    def __init__(self, pool: Pool, locks: Locks) -> None:
        self._pool = pool
        self._locks = locks
        self._told: str | None = None
        self._mended = False
        self._examined = ""

    def look(self) -> None:
        """Ask the kernel for the state of the pool's limits, and for those of the next volumes."""
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
            # Once: if it does not help now, it will not help next time either.
            with contextlib.suppress(OSError):  # not root, or the pool's disk is away
                self._mended = limiter.mend()

    def _examine(self) -> None:
        """Set the lost limits of the next volumes; if there is one, look at all volumes."""
        batch = list(itertools.islice(self._pool.volumes.following(self._examined), _BATCH))
        self._examined = batch[-1].id if len(batch) == _BATCH else ""
        restored = self._restore(batch)
        if restored:
            restored += self._restore(self._pool.volumes)
            log.warning(
                "limits were lost, and are set again", pool=self._pool.name, volumes=restored
            )

    def _restore(self, volumes: Iterable[Volume]) -> int:
        """Set the limits that volumes have lost; return the number of these volumes."""
        return sum(self._has_lost(volume) and self._set_again(volume.id) for volume in volumes)

    def _has_lost(self, volume: Volume) -> bool:
        """Tell whether the kernel has no limit for a volume that should have one.

        A limit of another size was set by somebody, and is reported in the volume's condition.
        """
        if volume.type is not VolumeType.DIRECTORY or not volume.enforced:
            return False
        try:
            content = self._pool.backend(volume).content
            return not self._pool.limiter.limit_of(content, volume.project)
        except OSError:  # the volume has been deleted, or the pool's disk is away
            return False

    def _set_again(self, volume_id: str) -> bool:
        """Set a volume's limit to its size, unless another operation holds the volume."""
        try:
            with self._locks.lend(volume_id):
                volume = self._pool.volumes.get(volume_id)
                if volume is None or not self._has_lost(volume):
                    return False
                content = self._pool.backend(volume).content
                self._pool.limiter.limit(content, volume.project, volume.capacity)
        except (CsiError, OSError):  # the volume's condition reports it; another look tries again
            return False
        return True
