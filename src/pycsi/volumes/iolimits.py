"""Limits on I/O where volumes are published and modified, and watching that they stay in force."""

import contextlib
from collections.abc import Iterator

import structlog

from pycsi.linux.kernel import IndexedKernelView
from pycsi.model import iolimits
from pycsi.model.errors import CsiError, FailedPrecondition
from pycsi.model.records import Volume
from pycsi.pool.pool import Pool
from pycsi.volumes.locks import Locks
from pycsi.volumes.staging import Staging

log = structlog.get_logger()


@contextlib.contextmanager
def throttled(pool: Pool, staging: Staging, target: str) -> Iterator[None]:
    """Hold the pod for which the `with` block publishes a volume at `target` to its limits.

    `FailedPrecondition`, with nothing published, if that is impossible.
    """
    repeated = target in staging.published()
    if not repeated:
        pool.throttle.require(staging.backend, target)
    yield
    try:
        pool.throttle.ensure(staging.backend)
    except OSError as error:
        if not repeated:
            staging.ensure_unpublished(target)
        raise FailedPrecondition(
            f"volume {staging.backend.volume.id}: the kernel does not set its I/O limits ({error})"
        ) from None


def require_everywhere(pool: Pool, volume: Volume) -> None:
    """Raise `FailedPrecondition` if a user of the volume could not be held to its limits."""
    pool.throttle.refuse()
    staging = Staging(pool.backend(volume))
    for target in staging.published():
        pool.throttle.require(staging.backend, target)


class IoEnforcement:
    """Sets the limits of a pool's volumes again where pods have lost them, and logs that.

    A pod's cgroup may have been made anew, or its controller switched off and on.
    """

    def __init__(self, pool: Pool, locks: Locks) -> None:
        self._pool = pool
        self._locks = locks

    def look(self) -> None:
        """Ask the kernel for the limits of all volumes that have some."""
        if self._pool.throttle.fault():
            return
        kernel = IndexedKernelView()
        for volume in self._pool.volumes:
            if iolimits.are_wanted(volume.settings):
                with contextlib.suppress(CsiError, OSError):  # its condition tells what is wrong
                    if any(self._pool.throttle.lacking(self._pool.backend(volume, kernel))):
                        self._set_again(volume.id)

    def _set_again(self, volume_id: str) -> None:
        with self._locks.lend(volume_id):
            volume = self._pool.volumes.get(volume_id)
            if volume is None:
                return
            backend = self._pool.backend(volume)
            lost = list(self._pool.throttle.lacking(backend))
            self._pool.throttle.ensure(backend)
        for why in lost:
            log.warning("limits on I/O were lost, and are set again", volume=volume_id, error=why)
