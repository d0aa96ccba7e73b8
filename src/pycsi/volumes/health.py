"""The condition of volumes, as examined now.

The first fault that is found is reported. A healthy volume has a message too, for the specification
requires one in any case.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pycsi.backends import Backend
from pycsi.backends.limits import Limiter
from pycsi.linux import btrfs, filesystem
from pycsi.linux.descriptor import is_directory
from pycsi.linux.kernel import IndexedKernelView, KernelView
from pycsi.linux.location import Location
from pycsi.model.errors import CsiError, NotFound
from pycsi.model.records import Usage, Volume, VolumeType
from pycsi.pool.layout import never_noted
from pycsi.pool.pool import Pool
from pycsi.volumes.locks import Locks
from pycsi.volumes.notes import Notes
from pycsi.volumes.orphans import is_orphaned

_FULL = 0.95
"""The used share of a volume or a pool from which it is reported as nearly full."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A volume's condition (CSI specification, VolumeCondition)."""

    abnormal: bool
    message: str


HEALTHY = Condition(abnormal=False, message="healthy")


class HealthCheck:
    """Examines the volumes of one pool; `fault` is what is wrong with the pool itself, if any."""

    def __init__(
        self, location: Location, kernel: KernelView, limiter: Limiter, fault: str | None = None
    ) -> None:
        self._location = location
        self._limiter = limiter
        self.kernel = kernel
        self._low = self._few_inodes = False
        self._fault = fault or self._location_fault()
        self.is_well = not (self._fault or self._low or self._few_inodes)
        """Whether the pool has no fault that makes its volumes abnormal too."""

    def _location_fault(self) -> str | None:
        try:
            counted = 0
            if self._location.mount.fstype == "ext4":
                counted = filesystem.errors(self._location.device)
            elif self._location.mount.fstype == "btrfs":
                counted = btrfs.errors(self._location.real_path)
            facts = os.statvfs(self._location.path)
        except OSError as error:
            return f"the pool's disk: {error.strerror}"
        if counted:
            return f"the pool's {self._location.mount.fstype} has counted {counted} errors"
        self._low = facts.f_bavail < facts.f_blocks * (1 - _FULL)
        self._few_inodes = facts.f_favail < facts.f_files * (1 - _FULL)
        return None

    @functools.cached_property
    def _unlimited(self) -> str | None:
        """Why limits of directories are not enforced, or None: asked once, and only if needed."""
        return self._limiter.fault()

    def condition(self, backend: Backend) -> Condition:
        """Return a volume's condition; `backend` must use the kernel view of this check."""
        if self._fault:
            return Condition(abnormal=True, message=self._fault)
        try:
            fault = next(self._faults(backend), None)
        except (OSError, ValueError, CsiError) as error:
            fault = f"cannot be examined: {error}"
        return Condition(abnormal=True, message=fault) if fault else HEALTHY

    def _faults(self, backend: Backend) -> Iterator[str]:
        volume = backend.volume
        limited = volume.type is VolumeType.DIRECTORY and volume.enforced
        if limited and self._unlimited and is_directory(backend.inside):
            yield f"not limited: {self._unlimited}"
        yield from backend.faults()
        yield from self._misplaced(backend)
        if is_orphaned(backend):
            yield "orphaned: its pod is gone; the driver deletes it, or pycsi delete-inline does"
        if usage := _usage(backend):
            yield from _fullness(usage)
        if self._few_inodes and volume.type is VolumeType.DIRECTORY:
            yield "the pool's disk is nearly out of inodes: new files may find none"
        if self._low and not volume.thick:
            yield "the pool's disk is nearly full: what is written may not find room"

    def _misplaced(self, backend: Backend) -> Iterator[str]:
        """Yield the paths at which something else is mounted, because the volume was lost."""
        with contextlib.suppress(FileNotFoundError):
            if never_noted(backend.where):
                return
        notes = Notes(backend.where)
        ours = backend.mounts() if notes.staged or notes.published else []
        for target in sorted({*notes.staged, *notes.published}):
            seen = self.kernel.mounts.topmost(target)
            if seen and seen not in ours:
                yield f"lost: at {target} is {seen.fstype} {seen.source}, not the volume"


def _fullness(usage: Usage) -> Iterator[str]:
    """Yield whether bytes are nearly used up, or inodes if their number is limited."""
    if (usage.used or 0) >= usage.total * _FULL:
        yield f"nearly full: {usage.used} of {usage.total} bytes are used"
    if usage.inodes and (usage.inodes_used or 0) >= usage.inodes * _FULL:
        yield f"nearly out of inodes: {usage.inodes_used} of {usage.inodes} are used"


def _usage(backend: Backend) -> Usage | None:
    """Return a volume's usage; None if it can only be measured by mounting the volume."""
    if backend.volume.filesystem:
        mounted = backend.mounts()
        return backend.usage(Path(mounted[0].target)) if mounted else None
    if backend.volume.enforced and not backend.target_is_file:
        volume = backend.volume
        return backend.limiter.usage(backend.content, volume.project, volume.capacity)
    return None


def examine(
    volumes: Iterable[tuple[Pool, Volume]], locks: Locks, kernel: KernelView | None = None
) -> Iterator[tuple[Pool, Volume, Condition]]:
    """Yield volumes, which come with their pools, with their conditions.

    Volumes that were deleted meanwhile are left out. Without `kernel` the kernel's mounts are read
    and indexed once, which pays off with many volumes.
    """
    kernel = kernel or IndexedKernelView()
    checks: dict[str, HealthCheck] = {}
    for pool, volume in volumes:
        check = checks.get(pool.name) or checks.setdefault(pool.name, _health_check(pool, kernel))
        if check.is_well and _looks_well(pool, volume):
            yield pool, volume, HEALTHY
            continue
        condition = check.condition(pool.backend(volume, kernel))
        if condition.abnormal:
            again = _examine_again(pool, volume, locks)
            if again is None:
                continue
            condition = again
        yield pool, volume, condition


def _looks_well(pool: Pool, volume: Volume) -> bool:
    """Tell whether a single stat(2) shows that a volume is healthy; False: examine it.

    This halves the time of ListVolumes if most volumes were never staged.
    """
    try:
        healthy_path = pool.volumes.derived(volume, pool.healthy_path)
        if not healthy_path:
            return False
        if is_directory(healthy_path):
            return True
    except OSError:
        return False
    pool.volumes.touch(volume.id)  # if the directory comes back, it may be another one
    return False


def condition_of(pool: Pool, volume: Volume, locks: Locks) -> Condition:
    """Return the condition of one volume, or raise `NotFound` if it was deleted meanwhile."""
    for _, _, condition in examine([(pool, volume)], locks, KernelView()):
        return condition
    raise NotFound(f"volume {volume.id} was deleted just now")


def _examine_again(pool: Pool, volume: Volume, locks: Locks) -> Condition | None:
    """Examine a volume and see that no operation holds it meanwhile; None if it was deleted.

    The fault that was found before may have been due to an operation half done.
    """
    with locks.watch(volume.id) as watch:
        now = pool.volumes.get(volume.id)
        condition = _health_check(pool, KernelView()).condition(pool.backend(now)) if now else None
    if condition and watch.disturbed:
        return Condition(abnormal=False, message="not examined: an operation is under way")
    return condition


def _health_check(pool: Pool, kernel: KernelView) -> HealthCheck:
    fault = None
    try:
        pool.check()
    except CsiError as error:
        fault = str(error)
    return HealthCheck(pool.location, kernel, pool.limiter, fault)
