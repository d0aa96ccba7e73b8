"""Looking for the faults of a pool, and of the volumes in it.

Everything here may hang with the disk that is looked at; `volumes/health.py` sees to that.
"""

import errno
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from pycsi.backends import Backend
from pycsi.backends.limits import Limiter, LimitError
from pycsi.backends.throttle import Throttle
from pycsi.linux import btrfs, filesystem
from pycsi.linux.descriptor import DISK_FAULTS
from pycsi.linux.kernel import KernelView, Mount
from pycsi.linux.location import Location
from pycsi.model.errors import Aborted, CsiError, PoolReadOnly
from pycsi.model.health import Fault, Reason, Status
from pycsi.model.records import Usage, Volume, VolumeType
from pycsi.model.size import show
from pycsi.pool.layout import never_noted
from pycsi.pool.pool import Pool
from pycsi.volumes.notes import Notes
from pycsi.volumes.orphans import is_orphaned

_FULL = 0.95
"""The used share of a volume or a pool from which it is reported as nearly full."""

_LACK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""The errors of a process or a system that is short of descriptors or of memory."""

_SCARCE = frozenset({Reason.POOL_NEARLY_FULL, Reason.POOL_FEW_INODES})


class PoolCheck:
    """A look at the pool called `name`: its own `faults`, and those of its volumes.

    `known` are faults that were found already. Volumes are examined with the view `kernel`. Their
    limits on I/O are looked at only with a `throttle`.
    """

    def __init__(
        self,
        name: str,
        location: Location,
        kernel: KernelView,
        limiter: Limiter,
        known: Iterable[Fault] = (),
        *,
        throttle: Throttle | None = None,
    ) -> None:
        self.name = name
        self.kernel = kernel
        self._location = location
        self._limiter = limiter
        self._throttle = throttle
        self._unlimited: str | None = None
        self._asked = False
        self.faults = list(known)
        if not self.out_of_reach:
            self._look()

    @classmethod
    def of(cls, pool: Pool, kernel: KernelView) -> Self:
        """Return a look at an open pool."""
        return cls(
            pool.name,
            pool.location,
            kernel,
            pool.limiter,
            _presence_faults(pool),
            throttle=pool.throttle,
        )

    @property
    def out_of_reach(self) -> bool:
        """Whether nothing can be told of the volumes, but that they cannot be reached."""
        return any(fault.status is Status.INACCESSIBLE for fault in self.faults)

    def _look(self) -> None:
        try:
            counted, fstype = 0, self._location.mount.fstype
            if fstype == "ext4":
                counted = filesystem.errors(self._location.device)
            elif fstype == "btrfs":
                counted = btrfs.errors(self._location.real_path)
            facts = os.statvfs(self._location.path)
        except OSError as error:
            refuse_lack(error)
            self._add(Reason.POOL_UNREADABLE, f"its disk fails: {error.strerror}")
            return
        if counted:
            self._add(Reason.POOL_ERRORS, f"its {fstype} has counted {counted} errors")
        if facts.f_bavail < facts.f_blocks * (1 - _FULL):
            self._add(
                Reason.POOL_NEARLY_FULL,
                "its disk is nearly full: what is written may not find room",
            )
        if facts.f_favail < facts.f_files * (1 - _FULL):
            self._add(
                Reason.POOL_FEW_INODES,
                "its disk is nearly out of inodes: new files may find none",
            )

    def _add(self, reason: Reason, text: str) -> None:
        self.faults.append(Fault(reason, f"pool {self.name}: {text}"))

    def limit_fault(self) -> Fault | None:
        """Return a fault if directories are not limited now; the kernel is asked once."""
        # No cached_property: that of Python 3.11 holds one lock for all pools, and this may hang.
        if not self._asked:
            self._unlimited = self._limiter.fault()
            self._asked = True
        if self._unlimited is None:
            return None
        return Fault(Reason.LIMIT_NOT_ENFORCED, f"not limited: {self._unlimited}")

    # Volumes

    def data_faults(self, backend: Backend) -> list[Fault]:
        """Return a volume's faults, but for those that `mount_faults` finds."""
        if self.out_of_reach:
            return list(self.faults)
        volume = backend.volume
        found = [fault for fault in self.faults if fault.reason not in _SCARCE]
        hidden = _all_of(self._hiding(backend)) if self.may_hide else []
        found += hidden or _all_of(self._faults_of_data(backend))
        found += _all_of(self._misplaced(backend))
        if is_orphaned(backend):
            text = "its pod is gone; the driver deletes the volume, or pycsi delete-inline does"
            found.append(Fault(Reason.ORPHANED, text))
        return found + [fault for fault in self.faults if _concerns(fault, volume)]

    @functools.cached_property
    def may_hide(self) -> bool:
        """Whether anything is mounted within the pool, which may hide a volume's data."""
        pool = str(self._location.real_path)
        return any(item.target != pool for item in self.kernel.mounts.below(pool))

    def _faults_of_data(self, backend: Backend) -> Iterator[Fault]:
        is_lost = False
        for fault in backend.faults():
            is_lost |= fault.status is Status.DATA_LOSS
            yield fault
        volume = backend.volume
        if volume.type is VolumeType.DIRECTORY and volume.enforced and not is_lost:
            yield from self._limit_faults(backend)
        if self._throttle:
            for text in self._throttle.lacking(backend):
                yield Fault(Reason.IO_NOT_LIMITED, text)

    def _hiding(self, backend: Backend) -> Iterator[Fault]:
        """Yield what is mounted over the volume's data, which is not lost then."""
        for place in (os.path.dirname(backend.where), backend.where, backend.inside):
            seen = self.kernel.mounts.topmost(self._location.real(place))
            if seen:
                yield Fault(
                    Reason.MOUNT_REPLACED,
                    f"hidden: {seen.fstype} {seen.source} is mounted over its data, at {place}",
                )

    def _limit_faults(self, backend: Backend) -> Iterator[Fault]:
        """Yield the faults of a limited directory's limit, and whether it is nearly used up."""
        if unlimited := self.limit_fault():
            yield unlimited
            return
        volume = backend.volume
        limit = self._limiter.limit_of(backend.content, volume.project)
        if limit != volume.capacity:
            found = show(limit) if limit else "gone"
            yield Fault(
                Reason.LIMIT_DIFFERS, f"its limit is {found}; stage it again to restore the limit"
            )
        try:
            usage = self._limiter.usage(backend.content, volume.project, volume.capacity)
        except LimitError:  # nothing counts its usage, which the fault above says
            return
        yield from _fullness(usage)

    def _misplaced(self, backend: Backend) -> Iterator[Fault]:
        """Yield the paths at which something else is mounted, because the volume was lost."""
        if _was_never_noted(backend):
            return
        notes = Notes(backend.where)
        if notes.failure:
            raise notes.failure
        ours = backend.mounts() if notes.staged or notes.published else []
        for target in sorted({*notes.staged, *notes.published}):
            seen = self.kernel.mounts.topmost(target)
            if seen and seen not in ours:
                yield Fault(
                    Reason.MOUNT_REPLACED,
                    f"lost: {seen.fstype} {seen.source}, not the volume, is mounted at {target}",
                )

    def mount_to_ask(self, backend: Backend) -> Mount | None:
        """Return the mount at which a volume's own filesystem can be asked; None if none can."""
        if self.out_of_reach or not backend.volume.filesystem:
            return None
        mounts = self.kernel.mounts
        seen = (item for item in backend.mounts() if mounts.topmost(item.target) == item)
        return next(seen, None)


def mount_faults(backend: Backend, mounted: Mount) -> list[Fault]:
    """Return the faults that a volume's own filesystem has, as asked at the mount `mounted`."""
    found = _all_of(backend.mount_faults(mounted))
    if all(fault.status is Status.DEGRADED for fault in found):
        found += _all_of(_fullness_at(backend, mounted))
    return found


def _fullness_at(backend: Backend, mounted: Mount) -> Iterator[Fault]:
    yield from _fullness(backend.usage(Path(mounted.target)))


def refuse_lack(error: BaseException | None) -> None:
    """Raise `Aborted` if the driver lacks what it takes to look: that is no fault of the volume."""
    if isinstance(error, OSError) and error.errno in _LACK:
        raise Aborted(f"not examined: {error}; try again") from None


def unreadable(error: Exception) -> Fault:
    """Return the fault that a volume cannot be examined."""
    return Fault(Reason.UNREADABLE, f"cannot be examined: {error}")


def _presence_faults(pool: Pool) -> Iterator[Fault]:
    """Yield a fault if the pool is not at its path, or cannot be written to."""
    try:
        pool.check()
    except PoolReadOnly as error:
        yield Fault(Reason.POOL_READ_ONLY, str(error))
    except CsiError as error:
        refuse_lack(error.__cause__)
        match error.__cause__:
            case OSError(errno=code) if code in DISK_FAULTS:
                reason = Reason.POOL_UNREADABLE
            case _:
                reason = Reason.POOL_MISSING
        yield Fault(reason, str(error))


def _all_of(faults: Iterator[Fault]) -> list[Fault]:
    """Return the faults that can be found; that the others cannot is one too.

    `Aborted` as `refuse_lack` raises it.
    """
    found: list[Fault] = []
    try:
        found.extend(faults)
    except (OSError, ValueError, CsiError) as error:
        refuse_lack(error)
        found.append(unreadable(error))
    return found


def _was_never_noted(backend: Backend) -> bool:
    try:
        return never_noted(backend.where)
    except FileNotFoundError:
        return False


def _fullness(usage: Usage) -> Iterator[Fault]:
    """Yield whether bytes are nearly used up, or inodes if their number is limited."""
    if (usage.used or 0) >= usage.total * _FULL:
        yield Fault(
            Reason.NEARLY_FULL, f"nearly full: {usage.used} of {usage.total} bytes are used"
        )
    if usage.inodes and (usage.inodes_used or 0) >= usage.inodes * _FULL:
        yield Fault(
            Reason.FEW_INODES,
            f"nearly out of inodes: {usage.inodes_used} of {usage.inodes} are used",
        )


def _concerns(fault: Fault, volume: Volume) -> bool:
    """Tell whether a volume suffers from what its pool is short of."""
    if fault.reason is Reason.POOL_FEW_INODES:
        return volume.type is VolumeType.DIRECTORY
    return fault.reason is Reason.POOL_NEARLY_FULL and not volume.thick
