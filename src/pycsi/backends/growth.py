"""Growing the filesystem in an image to the size of its volume.

A volume's size is recorded before its filesystem grows, so a filesystem that cannot grow must stay
usable as it is. The reason is kept in a file beside the image, for the volume's condition.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from pycsi.backends.image import Image
from pycsi.linux import filesystem
from pycsi.linux.descriptor import NO_ROOM
from pycsi.linux.kernel import Mount
from pycsi.linux.mount import answers
from pycsi.linux.program import ProgramError
from pycsi.model.errors import CsiError, FailedPrecondition, ResourceExhausted
from pycsi.model.health import Fault, Reason
from pycsi.model.size import MIB, show

log = structlog.get_logger()

_FULL = 64 * MIB
"""If the pool has fewer bytes free than this, a failure is attributed to the lack of space."""

_LEAST_ROOM = 8 * MIB
"""If the pool has fewer bytes free than this, no thin image grows.

A failed write might shut its filesystem down.
"""

_WORTHWHILE = 4 * MIB
"""Growth by fewer bytes than this is not worth a full check; ext4 may not even use the space."""


def pool_is_full(folder: str) -> bool:
    """Tell whether the pool of `folder` is so full that a failure just now was due to that."""
    return _has_less_than(folder, _FULL)


def _has_less_than(folder: str, size: int) -> bool:
    pool = os.statvfs(folder)
    return pool.f_bavail * pool.f_frsize < size or bool(pool.f_files and not pool.f_favail)


class Growth:
    """Grows the filesystem in `image`, of the type `kind`, to the size of the volume."""

    def __init__(self, image: Image, kind: str) -> None:
        self._image = image
        self._file = image.content
        self._volume = image.volume
        self._kind = kind
        self._undo = Path(image.where, "resize.undo")
        self._failed = Path(image.where, "growth.failed")  # why it failed; losing it does no harm

    # Size

    @property
    def _disk(self) -> Path | None:
        """The path to read the filesystem from: the block device if there is one, else the image.

        On a mounted filesystem only the device has the kernel's current data. None for an encrypted
        image that nothing presents decrypted.
        """
        disks = self._image.devices.disks()
        if not disks and self._volume.encryption:
            return None
        return disks[0].path if disks else self._file

    def _shortfall(self, disk: Path | None) -> int:
        """Return the number of bytes by which the filesystem on `disk` is smaller than the volume.

        0 if `disk` has no filesystem; negative if the filesystem is larger.
        """
        found = filesystem.identify(disk) if disk else None
        return self._volume.capacity - found.size if found else 0

    def is_grown(self, disk: Path | None) -> bool:
        """Tell whether the filesystem on `disk` has the volume's size, completely grown."""
        return disk is None or (self._shortfall(disk) <= 0 and filesystem.copies_agree(disk))

    def faults(self) -> Iterator[Fault]:
        """Yield a fault if the filesystem could not grow."""
        try:
            reason = self._failed.read_text()
        except OSError:
            return
        if (short := self._shortfall(self._disk)) >= _WORTHWHILE:
            unable = self._unable(short, reason or "the pool's disk was full")
            yield Fault(Reason.GROWTH_FAILED, unable)

    def _unable(self, short: int, reason: str) -> str:
        capacity = self._volume.capacity
        return (
            f"its {self._kind} has {capacity - short} of {capacity} bytes "
            f"({show(capacity - short)} of {show(capacity)}), for it could not grow ({reason}); "
            "its files can be used, and the next staging tries again to grow it; remove the "
            "cause, or copy the files to a new volume"
        )

    # Growing

    def grow(self) -> None:
        """Grow the mounted filesystem to the size of the volume."""
        if self.is_grown(self._disk):
            return
        writable = self.writable()
        if not writable:
            raise FailedPrecondition(
                f"volume {self._volume.id} is mounted read-only; it grows when it is staged "
                "writable"
            )
        try:
            if failure := self.grow_at(Path(writable[0].target)):
                raise failure
        except PermissionError:
            if self._shortfall(self._disk) < _WORTHWHILE:
                return
            raise FailedPrecondition(
                f"volume {self._volume.id}: the kernel lets only CAP_SYS_RESOURCE grow a mounted "
                f"{self._kind}, and none that has met errors; give the driver that capability, or "
                "unpublish the volume: it grows when it is staged next"
            ) from None

    def writable(self) -> list[Mount]:
        """Return the mounts through which the filesystem can be written to, and grown."""
        return [
            item
            for item in self._image.mounts()
            if item.root == "/" and not item.readonly and "ro" not in item.super_options
        ]

    def grow_staged(self, path: str) -> bool:
        """Grow the filesystem staged at `path`, and tell whether the mount can be used.

        False if the failure has shut the filesystem down, or if this process may not grow it while
        it is mounted: then unmount it, call `grow_unmounted`, and mount it again.
        """
        writable = any(item.target == path for item in self.writable())
        if not writable or self.is_grown(self._disk):
            return True
        try:
            failure = self.grow_at(Path(path))
        except PermissionError:
            return False
        if failure is None:
            return True
        self._image.kernel.invalidate()
        return any(item.target == path for item in self.writable()) and answers(path)

    def grow_at(self, mountpoint: Path, *, at: int | None = None) -> CsiError | None:
        """Grow the mounted filesystem; return the reason if that fails, or None.

        `mountpoint` is relative to the descriptor `at`, if given. `PermissionError` if the kernel
        does not let this process grow a mounted filesystem.
        """
        try:
            if self._shortfall(self._disk) > 0:
                self._require_room()
            filesystem.grow_mounted(self._kind, mountpoint, self._volume.capacity, at=at)
        except PermissionError:
            raise
        except OSError as error:
            return self._failure(error)
        self._failed.unlink(missing_ok=True)
        return None

    def grow_unmounted(self) -> CsiError | None:
        """Grow an unmounted ext4; return the reason if that fails, or None.

        It is for kernels that do not let this process grow a mounted ext4; other filesystems are
        left alone, and so are encrypted ones. `BlockingIOError` while another process grows or
        checks it.
        """
        if self._kind != "ext4" or self._volume.encryption:
            return None
        holder = self._image.holder()  # first: it waits until the loop device is free
        if self._shortfall(self._disk) < _WORTHWHILE:
            return None
        if holder:
            return self._failure(OSError(errno.EBUSY, f"it is in use as {holder}"))
        try:
            self._require_room()
            filesystem.grow_unmounted_ext4(self._file, self._undo)
        except BlockingIOError:
            raise
        except (OSError, ProgramError) as error:
            return self._failure(error)
        self._failed.unlink(missing_ok=True)
        return None

    def lacks_room(self) -> bool:
        """Tell whether writes to the image may fail because the pool is full."""
        return not self._volume.thick and _has_less_than(self._image.where, _LEAST_ROOM)

    def _require_room(self) -> None:
        if self.lacks_room():
            pool = os.statvfs(self._image.where)
            lacking = "no inode" if pool.f_files and not pool.f_favail else None
            lacking = lacking or f"less than {show(_LEAST_ROOM)}"
            raise OSError(errno.ENOSPC, f"the pool's disk has {lacking} free")

    def _failure(self, error: OSError | ProgramError) -> CsiError:
        """Record the reason for the volume's condition; return the exception to raise."""
        code = error.errno if isinstance(error, OSError) else None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        full = code in NO_ROOM or pool_is_full(self._image.where)
        if full and code not in NO_ROOM:
            reason = f"the pool's disk is full: {reason}"
        with contextlib.suppress(OSError):
            self._failed.write_text(reason)
        log.warning("a filesystem cannot grow", volume=self._volume.id, reason=reason)
        text = f"volume {self._volume.id}: {self._unable(self._shortfall(self._disk), reason)}"
        return ResourceExhausted(text) if full else FailedPrecondition(text)

    def interrupted_since(self) -> float | None:
        """Return when the growth began that has to be undone, in seconds since the epoch; or None.

        It may still be under way.
        """
        try:
            return self._undo.stat().st_mtime
        except FileNotFoundError:
            return None

    def undo(self) -> None:
        """Undo an interrupted growth; until then the filesystem must not be mounted.

        `BlockingIOError` while another process grows or checks it. `ResourceExhausted` if the pool
        is too full for that, `FailedPrecondition` if e2undo(8) fails otherwise.
        """
        try:
            filesystem.undo_growth(self._file, self._undo)
        except ProgramError as error:
            text = (
                f"volume {self._volume.id}: the growth of its {self._kind} was interrupted, and "
                f"cannot be undone now ({error})"
            )
            if pool_is_full(self._image.where):
                raise ResourceExhausted(f"{text}; free space in the pool") from None
            raise FailedPrecondition(f"{text}; look at {self._undo} and e2undo(8)") from None
