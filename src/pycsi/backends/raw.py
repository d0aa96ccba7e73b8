"""Volumes that are images, published as raw block devices."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pycsi.backends.devices import Disk
from pycsi.backends.image import Image
from pycsi.linux import backing, devicemapper, loop, losetup, luks
from pycsi.linux.kernel import Mount
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Usage, Volume
from pycsi.model.request import Capability

_DEV = frozenset({"devtmpfs", "tmpfs"})
"""The filesystems of device nodes."""


class RawImage(Image):
    """An image that is published as a block device.

    A read-only publication gets a read-only loop device of its own, because a read-only mount of a
    device node does not prevent writes to the device. That of an encrypted image is on its mapping,
    which is as long as the volume is staged.
    """

    target_is_file = True

    SECTOR: ClassVar[int] = luks.SMALLEST_SECTOR

    def mounts(self) -> list[Mount]:
        return [
            item
            for disk in (*self.devices.disks(), *self._tops())
            for item in self.kernel.mounts.showing(f"/{disk.node}")
            if item.fstype in _DEV
        ]

    def _tops(self) -> list[loop.LoopDevice]:
        """Return the loop devices on the mapping of an encrypted image."""
        mapping = self._mapping()
        return backing.on_device(mapping.device) if mapping else []

    def _mapping(self) -> devicemapper.Mapping | None:
        """Return the mapping of an encrypted image; None if there is none."""
        found = (self.devices.mapping_on(device) for device in self.devices.found())
        return next(filter(None, found), None)

    def block_devices(self) -> list[int]:
        return [*super().block_devices(), *(top.device for top in self._tops())]

    def _disk(self, *, readonly: bool) -> Disk | None:
        """Return the block device that presents the data, read-only or writable; None if none does.

        `FailedPrecondition` as of `_device`.
        """
        if self.volume.encryption is None:
            return self._device(readonly=readonly)
        if not readonly:
            return self._mapping()
        own = (top for top in self._tops() if top.readonly and self.devices.is_own(top))
        return next((top for top in own if not top.autoclear), None)

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
        if self.volume.encryption:
            return self._mapping() is not None
        own = self.devices.own()
        return any(not (device.readonly or device.autoclear) for device in own)

    def stage(self, path: str, capability: Capability, *, readonly: bool = False) -> None:
        if self.volume.encryption:
            self._stage_encrypted()
            return
        device = self._device(readonly=False)
        if device is None:
            self.undo_unrecorded_resize()
            device = self._attach(self.content, readonly=False)
        self.devices.keep_blocks(device)

    def _stage_encrypted(self) -> None:
        """Make the mapping of an encrypted image, or see that the passphrase is that of it."""
        with self._loop() as device:
            self.devices.keep_blocks(device)
            self.devices.map(device)
        self.kernel.invalidate()

    @contextlib.contextmanager
    def _loop(self) -> Iterator[loop.LoopDevice]:
        """Yield the driver's loop device on an encrypted image; without a mapping it goes again.

        `FailedPrecondition` if another program's could write to the image.
        """
        for device in loop.find(self.content):
            with loop.hold(device.number, self.content) as held:
                if held != device or device.readonly:
                    continue
                if device.partial or not self.devices.is_own(device):
                    raise self.devices.foreign_error(device)
                yield device
                return
        self.undo_unrecorded_resize()
        with self.kernel.attach(
            self.content, autoclear=True, new=self.volume.thick, name=self.volume.id
        ) as device:
            yield device

    def _attach(self, place: Path, *, readonly: bool) -> loop.LoopDevice:
        new = self.volume.thick and not readonly
        name = self.volume.id
        with self.kernel.attach(place, readonly=readonly, new=new, name=name) as device:
            return device

    def is_relic(self, mounted: Mount) -> bool:
        return super().is_relic(mounted) or self._shows_nothing(mounted)

    def may_have_shown(self, mounted: Mount) -> bool:
        # A device that somebody has detached may be another file's by now.
        return mounted.fstype in _DEV and (
            backing.number_of(mounted.root) is not None or devicemapper.is_node(mounted.root)
        )

    @staticmethod
    def _shows_nothing(mounted: Mount) -> bool:
        """Tell whether a mount shows the node of a block device that is not there any more."""
        if mounted.fstype in _DEV and devicemapper.is_node(mounted.root):
            return devicemapper.shown(mounted.root) is None
        number = backing.number_of(mounted.root)
        return number is not None and backing.device_of(number) is None

    def release(self) -> None:
        self.kernel.invalidate()
        relics = [item for item in self.devices.relics() if not self._is_shown(item.number)]
        for device in [*self.devices.own(), *relics]:
            self.devices.unmap(device)
            self.kernel.detach(device)
        self.devices.require_free()
        self.devices.forget()

    def publish(self, source: str, target: str, capability: Capability, *, readonly: bool) -> None:
        readonly = readonly or capability.mode.readonly
        disk = self._disk(readonly=readonly)
        if disk is None:
            mapping = self._mapping()
            disk = self._attach(mapping.path if mapping else self.content, readonly=readonly)
        self.kernel.bind(disk.path, target)

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
                self.devices.unmap(relic)
                self.kernel.detach(relic)

    def _is_shown(self, number: int) -> bool:
        """Tell whether the node of a loop device, or of a mapping on it, is mounted anywhere."""
        nodes = [f"loop{number}", *(item.node for item in devicemapper.on_loop(number))]
        return any(self.kernel.mounts.showing(f"/{node}") for node in nodes)

    def withdraw(self) -> None:
        used = {item.root for item in self.mounts()}
        own = filter(self.devices.is_own, self._tops())
        for device in (*self.devices.own(), *own):
            if device.readonly and f"/{device.node}" not in used:
                self.kernel.detach(device)

    def usage(self, path: Path) -> Usage:
        return Usage(total=self.content.stat().st_size - self.volume.header)

    # Snapshots

    def written_at(self) -> str | None:
        """Return the path of the writable block device, which programs may have open; or None."""
        if mapping := self._mapping():
            return str(mapping.path)
        writable = [device.path for device in loop.find(self.content) if not device.readonly]
        return str(writable[0]) if writable else None

    def prepare_copy(self) -> None:
        """Write the block device's cache to the image."""
        if device := self.written_at():
            losetup.flush(Path(device))

    def finish_restore(self, source: Volume, project: int | None) -> None:
        if self.volume.encryption:
            self.devices.verify()
        super().finish_restore(source, project)
