"""What both kinds of image volume share: a file, and the loop devices on it."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from pycsi.backends import Backend
from pycsi.backends.limits import Progress
from pycsi.linux import (
    backing,
    clone,
    discard,
    fiemap,
    holders,
    loop,
    nocow,
)
from pycsi.linux.descriptor import DISK_FAULTS, opened
from pycsi.linux.mounttable import Mount
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Volume
from pycsi.model.size import show

log = structlog.get_logger()

_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT})
"""What a /sys says that lets nobody write, or is not there: the volume is usable then too."""

_PATIENCE = 5.0
"""Seconds to wait for the kernel to free a loop device that nobody uses any more."""

_GRACE = 0.5
"""Seconds to leave to those who look at a device for a moment, as udev does."""


def _refuse_restless(source: Backend) -> None:
    """Refuse to copy, which takes time, what is in use and was not frozen."""
    if not source.freezable() and (where := source.written_at()):
        raise FailedPrecondition(
            f"volume {source.volume.id} is in use as {where}, and its blocks cannot be shared: a "
            "copy of what is written meanwhile is no point in time; unstage it first, or copy it "
            "within one pool on XFS or btrfs"
        )


class Image(Backend):
    """`<place>/disk.img`, sparse or fully allocated."""

    NAME = "disk.img"

    @property
    def image(self) -> Path:
        return self.content

    def create(self) -> int | None:
        with opened(self.image, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            self._write_in_place(fd)
            self._extend(fd, 0)
            self.format()
            if self.volume.thick and os.fstat(fd).st_blocks * 512 < self.volume.capacity:
                self._extend(fd, 0)  # mkfs has freed blocks
            os.fsync(fd)
        return None

    def _write_in_place(self, fd: int) -> None:
        """Keep an image on btrfs, still empty, from needing new blocks whenever it is rewritten.

        Copied on write it would hold old blocks beside the new ones, and more than its size.
        """
        if self._on_btrfs and not nocow.set_nocow(fd, nocow=True) and self.volume.thick:
            raise FailedPrecondition(
                f"volume {self.volume.id}: allocation: thick needs files that btrfs writes in "
                "place (chattr +C), and this btrfs refuses that; use allocation: thin, or a pool "
                "on XFS or ext4"
            )

    @property
    def _on_btrfs(self) -> bool:
        return self.location.mount.fstype == "btrfs"

    def format(self) -> None:
        """Make the filesystem, if the volume has one."""

    def resize(self, size: int) -> None:
        with opened(self.image, os.O_RDWR) as fd:
            before = os.fstat(fd).st_size
            if before > size:
                os.ftruncate(fd, size)  # what an earlier call left that was never recorded
            elif before < size:
                self._extend(fd, before, size)
            os.fsync(fd)  # in any case: an earlier call may have ended just before it

    def _extend(self, fd: int, start: int, end: int | None = None) -> None:
        end = self.volume.capacity if end is None else end
        if self.volume.thick and end > start:
            os.posix_fallocate(fd, start, end - start)
        else:
            os.ftruncate(fd, end)

    def expose(self) -> None:
        for device in loop.find(self.image):
            loop.set_capacity(device)

    def is_own(self, device: loop.LoopDevice) -> bool:
        """Tell whether it was the driver that attached a device to the image.

        Nobody else's is taken away: its number may be another file's, then, when they go on.
        """
        return device.is_named(self.volume.id)

    def strangers(self) -> list[loop.LoopDevice]:
        """Return the devices that somebody else has attached to the image, as by losetup(8)."""
        return [device for device in self.devices() if not self.is_own(device)]

    def refuse_strangers(self) -> None:
        for device in self.strangers():
            raise self.attached_by_others(device)

    def attached_by_others(self, device: loop.LoopDevice) -> FailedPrecondition:
        """Return what to answer where a device that somebody else has attached is in the way."""
        part = "a part of its image" if device.partial else "its image"
        seen = holders.of_device(device.number)
        used = f", and it is in use by {holders.named(seen)}" if seen else ""
        return FailedPrecondition(
            f"volume {self.volume.id}: somebody has attached {device.path} to {part}{used}; detach "
            f"that: losetup -d {device.path}"
        )

    def devices(self) -> list[loop.LoopDevice]:
        """Return the loop devices on the image.

        Where its disk has failed, those of which the kernel recorded its path.
        """
        try:
            return self.kernel.loops(self.image)
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise
            return backing.devices_on({self.location.real(self.inside)})

    def relics(self) -> list[loop.LoopDevice]:
        """Return the loop devices on the image as it was on a disk that is lost or replaced.

        Not those of another pool that has a volume of this id: its file is there to be seen.
        """
        here = self.location.real(self.inside)
        lost = self.location.below_mount(self.inside)
        there = {here, lost} if here == lost or not os.path.exists(lost) else {here}
        current = self.devices()
        found = [item for item in backing.devices_on(there) if item not in current]
        return found or ([] if os.path.exists(self.inside) else self._moved())

    def _moved(self) -> list[loop.LoopDevice]:
        """Return the devices on the image where the pool's directory was moved in its disk."""
        statuses = [(number, loop.status_of(number)) for number in loop.numbers()]
        return [
            loop.described(status)
            for number, status in statuses
            if status and status.lo_device == self.location.device and self._is_path(number)
        ]

    def is_relic(self, mounted: Mount) -> bool:
        number = backing.number_shown(mounted)
        if number is None:
            return False
        return self._is_path(number) or backing.is_named(number, self.volume.id)

    def _is_path(self, number: int) -> bool:
        """Tell whether a device's file is called like the image, in whatever pool."""
        inside = "/".join(self.inside.split("/")[-3:])  # volumes/ID/disk.img
        return (backing.path_of(number) or "").endswith(f"/{inside}")

    def forget_unrecorded(self) -> None:
        """Undo a resize that ended before it was recorded: nobody has seen the end of the file."""
        if self.image.stat().st_size > self.volume.capacity:
            os.truncate(self.image, self.volume.capacity)

    def keep_blocks(self, device: loop.LoopDevice) -> None:
        """Let nobody discard the blocks of a thick volume."""
        if self.volume.thick and not device.readonly:
            try:
                discard.refuse(device.number)
            except OSError as error:
                if error.errno not in _CLOSED:
                    raise
                log.warning(
                    "the blocks of a thick volume can be discarded; mount /sys writable",
                    volume=self.volume.id,
                    error=str(error),
                )

    def forget_devices(self) -> None:
        """Let the kernel free the devices; others would find those of a thick volume changed.

        That of an unmounted btrfs is closed a moment after umount2 has returned.
        """
        if self.devices():
            self.wait_until_free()
        if self.volume.thick:
            loop.remove_refusing()

    def require_free(self) -> None:
        """Refuse to go on while a loop device of the driver's has the image."""
        if held := self.wait_until_free():
            raise FailedPrecondition(f"volume {self.volume.id}: {self._held(held[0])}; end that")

    @staticmethod
    def _held(device: loop.LoopDevice) -> str:
        return f"{device.path} is in use by {holders.named(holders.of_device(device.number))}"

    def wait_until_free(self) -> list[loop.LoopDevice]:
        """Give the kernel time to free the driver's devices; return those that are still in use.

        It is not waited for long where somebody is seen who uses them.
        """
        begin = time.monotonic()
        look = begin + _GRACE
        while True:
            self.kernel.invalidate()
            devices, now = list(filter(self.is_own, self.devices())), time.monotonic()
            if not devices or now > begin + _PATIENCE:
                return devices
            if now > look:
                look = now + _GRACE
                if any(self.is_held(device.number) for device in devices):
                    return list(filter(self.is_own, self.devices()))
            time.sleep(0.01)

    def is_held(self, number: int) -> bool:
        """Tell whether somebody uses a device that is to go.

        A device that was put on top of it by losetup(8), and that nobody uses, goes first: it is
        left of somebody who was killed.
        """
        for top in backing.on_top_of(number):
            if not self.is_held(top.number):
                self.kernel.detach(top)
        return bool(holders.of_device(number))

    # Health

    def faults(self) -> Iterator[str]:
        try:
            status = self.image.lstat()
        except FileNotFoundError:
            yield f"its image is missing: {self.image}"
            return
        yield from self._exposed()
        if not stat.S_ISREG(status.st_mode) or status.st_size < self.volume.capacity:
            yield f"its image is not a file of {show(self.volume.capacity)}: {self.image}"
        elif self.volume.thick and self._on_btrfs:
            with opened(self.image) as fd:
                if not nocow.is_nocow(fd):
                    yield (
                        "its blocks are copied when they are written again, as btrfs does unless "
                        "told otherwise, so it is not thick; clone it, or restore a snapshot of it"
                    )

    def _exposed(self) -> Iterator[str]:
        """Yield where a thick volume can lose blocks to a discard."""
        devices = self.kernel.loops(self.image) if self.volume.thick else []
        if any(not item.readonly and discard.is_taken(item.number) for item in devices):
            yield "thick, but open to discards: let the driver write to /sys, and stage it anew"

    # Snapshots

    @property
    def shares(self) -> bool:
        return clone.can_share(self.image)

    def occupied(self) -> int:
        return self.image.stat().st_blocks * 512

    def owned(self, *, shares: bool) -> int:
        if self.volume.thick:
            return self.volume.capacity
        if not self._on_btrfs and (not shares or self.location.mount.fstype == "ext4"):
            return min(os.stat(self.inside).st_blocks * 512, self.volume.capacity)
        with opened(self.image) as fd:
            if self._on_btrfs and not nocow.is_nocow(fd):
                return 0
            blocks = fiemap.unshared(fd) if shares else os.fstat(fd).st_blocks * 512
        return min(blocks, self.volume.capacity)

    def capture(self, source: Backend, progress: Progress, *, point_in_time: bool) -> None:
        with (
            opened(source.content) as old,
            opened(self.image, os.O_RDWR | os.O_CREAT | os.O_EXCL) as new,
        ):
            if self._on_btrfs:
                nocow.set_nocow(new, nocow=self._is_nocow(source, old))
            if not clone.share(old, new):
                _refuse_restless(source)
                self._write_in_place(new)
                clone.copy(old, new, progress)
            os.ftruncate(new, source.volume.capacity)  # without what was not recorded yet

    @staticmethod
    def _is_nocow(source: Backend, fd: int) -> bool:
        """Tell whether the image of `source` is one that btrfs writes in place."""
        return source.location.mount.fstype == "btrfs" and nocow.is_nocow(fd)

    def restore(self, source: Backend, progress: Progress) -> int | None:
        self.capture(source, progress, point_in_time=True)
        return None

    def adapt(self, source: Volume, project: int | None) -> None:
        if (self.volume.thick or source.thick) and self.shares:
            self._own_blocks()
        with opened(self.image, os.O_RDWR) as fd:
            self._extend(fd, 0 if self.volume.thick else os.fstat(fd).st_size)
            os.fsync(fd)

    def _own_blocks(self) -> None:
        """Replace blocks that are shared by copies.

        A thick volume that shared them would need new ones when it is written, and find none.
        """
        aside = self.image.with_suffix(".new")
        with (
            opened(self.image) as old,
            opened(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL) as new,
        ):
            self._write_in_place(new)
            clone.copy(old, new, lambda: None)
        aside.rename(self.image)

    def make_durable(self) -> None:
        if self.volume.thick and self.shares:
            self._own_blocks()
        with opened(self.image) as fd:
            os.fsync(fd)
