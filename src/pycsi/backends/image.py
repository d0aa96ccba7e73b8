"""What both kinds of image volume share: a file, and the loop devices on it."""

import contextlib
import os
import time
from pathlib import Path

from pycsi.backends import Backend
from pycsi.linux import loop
from pycsi.linux.descriptor import opened

IMAGE = "disk.img"

_PATIENCE = 5.0
"""Seconds to wait for the kernel to free a loop device that nobody uses any more."""


class Image(Backend):
    """`<place>/disk.img`, sparse or fully allocated."""

    @property
    def image(self) -> Path:
        return self.place / IMAGE

    def create(self) -> int | None:
        with opened(self.image, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            self._extend(fd, 0, self.volume.capacity)
            self.format()
            if self.volume.thick and os.fstat(fd).st_blocks * 512 < self.volume.capacity:
                self._extend(fd, 0, self.volume.capacity)  # mkfs has freed blocks
            os.fsync(fd)
        return None

    def format(self) -> None:
        """Make the filesystem, if the volume has one."""

    def resize(self, size: int) -> None:
        with opened(self.image, os.O_RDWR) as fd:
            before = os.fstat(fd).st_size
            if before > size:
                os.ftruncate(fd, size)  # what an earlier call left that was never recorded
            elif before < size:
                self._extend(fd, before, size)
                os.fsync(fd)

    def _extend(self, fd: int, start: int, end: int) -> None:
        if self.volume.thick:
            os.posix_fallocate(fd, start, end - start)
        else:
            os.ftruncate(fd, end)

    def expose(self) -> None:
        for device in loop.find(self.image):
            loop.set_capacity(device)

    def forget_unrecorded(self) -> None:
        """Undo a resize that ended before it was recorded: nobody has seen the end of the file."""
        if self.image.stat().st_size > self.volume.capacity:
            os.truncate(self.image, self.volume.capacity)

    def keep_blocks(self, device: loop.LoopDevice) -> None:
        """Let nobody discard the blocks of a thick volume."""
        if self.volume.thick and not device.readonly:
            with contextlib.suppress(OSError):  # /sys may be read-only; see check_mount_flags
                loop.forbid_discard(device)

    def wait_until_free(self) -> list[loop.LoopDevice]:
        """Give the kernel time to free the devices; return those that are still in use."""
        deadline = time.monotonic() + _PATIENCE
        while (devices := loop.find(self.image)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return devices
