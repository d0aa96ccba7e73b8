"""Volumes that are images, published as raw block devices."""

import errno
from pathlib import Path

from pycsi.backends.image import Image
from pycsi.linux import backing, loop, losetup
from pycsi.linux.kernel import Mount
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Usage
from pycsi.model.request import Capability


class RawImage(Image):
    """An image that is published as a block device.

    A read-only publication gets a read-only loop device of its own, because a read-only mount of a
    device node does not prevent writes to the device.
    """

    target_is_file = True

    def mounts(self) -> list[Mount]:
        return [
            item
            for device in self.devices.found()
            for item in self.kernel.mounts.showing(f"/loop{device.number}")
            if item.fstype in {"devtmpfs", "tmpfs"}
        ]

    def _device(self, *, readonly: bool) -> loop.LoopDevice | None:
        """Return the driver's loop device on the image, read-only or writable; None if none exists.

        A device that was detached while it was open is not returned: the kernel frees it when it is
        closed, and reuses its number. `FailedPrecondition` if such a device, or another program's,
        could still write to the image, since two writable devices would corrupt it.
        """
        devices = [device for device in loop.find(self.content) if device.readonly is readonly]
        for device in devices if not readonly else ():
            if not self.devices.is_own(device):
                raise self.devices.foreign_error(device)
            if device.autoclear and self.devices.is_held(device.number):
                used = self.devices.in_use(device)
                raise FailedPrecondition(
                    f"volume {self.volume.id} was detached, and {used}; end that use"
                )
        own = filter(self.devices.is_own, devices)
        return next((device for device in own if not device.autoclear), None)

    def is_staged(self, path: str) -> bool:
        own = self.devices.own()
        return any(not (device.readonly or device.autoclear) for device in own)

    def stage(self, path: str, capability: Capability, *, readonly: bool = False) -> None:
        device = self._device(readonly=False)
        if device is None:
            self.undo_unrecorded_resize()
            device = self._attach(readonly=False)
        self.devices.keep_blocks(device)

    def _attach(self, *, readonly: bool) -> loop.LoopDevice:
        new = self.volume.thick and not readonly
        name = self.volume.id
        with self.kernel.attach(self.content, readonly=readonly, new=new, name=name) as device:
            return device

    def is_relic(self, mounted: Mount) -> bool:
        return super().is_relic(mounted) or self._shows_nothing(mounted)

    def may_have_shown(self, mounted: Mount) -> bool:
        # A device that somebody has detached may be another file's by now.
        return (
            mounted.fstype in {"devtmpfs", "tmpfs"} and backing.number_of(mounted.root) is not None
        )

    @staticmethod
    def _shows_nothing(mounted: Mount) -> bool:
        """Tell whether a mount shows the node of a loop device that is not bound any more."""
        number = backing.number_of(mounted.root)
        return number is not None and backing.device_of(number) is None

    def release(self) -> None:
        self.kernel.invalidate()
        relics = [item for item in self.devices.relics() if not self._is_shown(item.number)]
        for device in [*self.devices.own(), *relics]:
            self.kernel.detach(device)
        self.devices.require_free()
        self.devices.forget()

    def publish(self, source: str, target: str, capability: Capability, *, readonly: bool) -> None:
        readonly = readonly or capability.mode.readonly
        device = self._device(readonly=readonly) or self._attach(readonly=readonly)
        self.kernel.bind(device.path, target)

    def unmount(self, path: str) -> None:
        shown = self.kernel.mounts.topmost(path)
        number = backing.number_shown(shown) if shown else None
        try:
            super().unmount(path)
        except OSError as error:
            # At the last target, an unused loop device on top of this one may be detached.
            if error.errno != errno.EBUSY or number is None or len(self.mounts()) > 1:
                raise
            self.devices.is_held(number)
            super().unmount(path)
        if number is None or any(device.number == number for device in self.devices.found()):
            return
        for relic in self.devices.relics():
            if relic.number == number and not self._is_shown(number):
                self.kernel.detach(relic)

    def _is_shown(self, number: int) -> bool:
        """Tell whether the node of a loop device is mounted anywhere."""
        return bool(self.kernel.mounts.showing(f"/loop{number}"))

    def withdraw(self) -> None:
        used = {item.root for item in self.mounts()}
        for device in self.devices.own():
            if device.readonly and f"/loop{device.number}" not in used:
                self.kernel.detach(device)

    def usage(self, path: Path) -> Usage:
        return Usage(total=self.content.stat().st_size)

    # Snapshots

    def written_at(self) -> str | None:
        """Return the path of the writable loop device, which any program may have open; or None."""
        writable = [device.path for device in loop.find(self.content) if not device.readonly]
        return str(writable[0]) if writable else None

    def prepare_copy(self) -> None:
        """Write the loop device's cache to the image."""
        if device := self.written_at():
            losetup.flush(Path(device))
