"""The loop devices on the image of a volume."""

import dataclasses
import errno
import time
from pathlib import Path

import structlog

from pycsi.backends import relics
from pycsi.linux import backing, discard, holders, loop, losetup
from pycsi.linux.descriptor import DISK_FAULTS
from pycsi.linux.kernel import KernelView, Mount
from pycsi.linux.location import Location
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Volume

log = structlog.get_logger()

_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT})
"""The errors of a /sys that is read-only or not mounted; the volume is usable nevertheless."""

_PATIENCE = 5.0
"""Seconds to wait for the kernel to free a loop device that is no longer in use."""

_GRACE = 0.5
"""Seconds to allow programs that open a loop device briefly, as udev does."""


@dataclasses.dataclass(eq=False)
class Devices:
    """The loop devices on the image `path` of `volume`, as `kernel` shows them.

    The image is in the pool at `location`.
    """

    path: str
    volume: Volume
    location: Location
    kernel: KernelView

    def found(self) -> list[loop.LoopDevice]:
        """Return the loop devices that are bound to the image.

        If the image's disk has failed, they are found by the path that the kernel recorded.
        """
        try:
            return self.kernel.loops(Path(self.path))
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise
            return backing.devices_on({self.location.real(self.path)})

    def is_own(self, device: loop.LoopDevice) -> bool:
        """Tell whether the driver itself attached this device to the image.

        Devices of other programs are never detached: their numbers could then be reused for other
        files while those programs go on using them.
        """
        return device.is_named(self.volume.id)

    def own(self) -> list[loop.LoopDevice]:
        """Return the loop devices that the driver itself has attached to the image."""
        return [device for device in self.found() if self.is_own(device)]

    def foreign(self) -> list[loop.LoopDevice]:
        """Return the loop devices that other programs have attached to the image."""
        return [device for device in self.found() if not self.is_own(device)]

    def refuse_foreign(self) -> None:
        """Raise `FailedPrecondition` if another program has attached a loop device to the image."""
        for device in self.foreign():
            raise self.foreign_error(device)

    def foreign_error(self, device: loop.LoopDevice) -> FailedPrecondition:
        """Return the exception to raise if another program's loop device is in the way."""
        part = "a part of its image" if device.partial else "its image"
        seen = holders.of_device(device.number)
        used = f", and it is in use by {holders.named(seen)}" if seen else ""
        return FailedPrecondition(
            f"volume {self.volume.id}: another program has attached {device.path} to {part}{used}; "
            f"detach it: losetup -d {device.path}"
        )

    def relics(self) -> list[loop.LoopDevice]:
        """Return the loop devices that are bound to this image on a disk that was lost or replaced.

        Devices of another pool's volume with the same id are left out; their file still exists.
        """
        return relics.devices_of(self.path, self.location, self.found())

    def is_relic(self, mounted: Mount) -> bool:
        """Tell whether a mount shows a relic: see `Backend.is_relic`."""
        return relics.is_shown(mounted, self.path, self.volume.id)

    def keep_blocks(self, device: loop.LoopDevice) -> None:
        """Make the loop device refuse discards if the volume is thick, so that it keeps its blocks.

        If /sys cannot be written to, only a warning is logged.
        """
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

    def forget(self) -> None:
        """Wait for the kernel to free the devices; remove those that were set to refuse discards.

        The kernel closes the device of an unmounted btrfs a moment after umount2(2) has returned.
        Devices of a thick volume are removed because their next file would inherit the setting.
        """
        if self.found():
            self.wait_until_free()
        if self.volume.thick:
            losetup.remove_refusing()

    def require_free(self) -> None:
        """Raise `FailedPrecondition` if a loop device of the driver on the image stays in use."""
        if held := self.wait_until_free():
            raise FailedPrecondition(
                f"volume {self.volume.id}: {self.in_use(held[0])}; end that use"
            )

    @staticmethod
    def in_use(device: loop.LoopDevice) -> str:
        """Return a text that says what uses a loop device."""
        return f"{device.path} is in use by {holders.named(holders.of_device(device.number))}"

    def wait_until_free(self) -> list[loop.LoopDevice]:
        """Wait for the kernel to free the driver's devices; return those that are still in use.

        The wait is at most 5 seconds, and ends early if a user of a device is found.
        """
        begin = time.monotonic()
        look = begin + _GRACE
        while True:
            self.kernel.invalidate()
            devices, now = self.own(), time.monotonic()
            if not devices or now > begin + _PATIENCE:
                return devices
            if now > look:
                look = now + _GRACE
                if any(self.is_held(device.number) for device in devices):
                    return self.own()
            time.sleep(0.01)

    def holder(self) -> str | None:
        """Describe a device on the image that stays in use, or is another program's; else None."""
        own = self.wait_until_free()
        devices = own or self.foreign()
        if not devices:
            return None
        seen = holders.of_device(devices[0].number)
        who = f": {holders.named(seen)}" if seen else ""
        how = "mounted in another mount namespace" if own else "attached to its image by others"
        return f"{devices[0].path}, {how}{who}"

    def is_held(self, number: int) -> bool:
        """Tell whether a loop device that is to be freed is in use.

        Unused loop devices on top of it, left by programs that were killed, are detached first.
        """
        for top in backing.on_top_of(number):
            if not self.is_held(top.number):
                self.kernel.detach(top)
        return bool(holders.of_device(number))
