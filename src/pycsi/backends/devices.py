"""The block devices that present the image of a volume: loop devices, and mappings on them."""

import contextlib
import dataclasses
import errno
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import structlog

from pycsi.backends import relics
from pycsi.linux import backing, devicemapper, discard, holders, loop, losetup, luks
from pycsi.linux.descriptor import DISK_FAULTS
from pycsi.linux.kernel import KernelView, Mount
from pycsi.linux.location import Location
from pycsi.linux.program import ProgramError
from pycsi.model import encryption
from pycsi.model.encryption import Passphrase
from pycsi.model.errors import FailedPrecondition, Unauthenticated
from pycsi.model.records import Volume
from pycsi.model.trace import phase

log = structlog.get_logger()

Disk: TypeAlias = loop.LoopDevice | devicemapper.Mapping
"""The block device that presents the data of an image."""

_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT})
"""The errors of a /sys that is read-only or not mounted; the volume is usable nevertheless."""

_PATIENCE = 5.0
"""Seconds to wait for the kernel to free a loop device that is no longer in use."""

_GRACE = 0.5
"""Seconds to allow programs that open a loop device briefly, as udev does."""


@dataclasses.dataclass(eq=False)
class Devices:
    """The loop devices on the image `path` of `volume`, as `kernel` shows them.

    The image is in the pool at `location`. If it is encrypted, a mapping on its loop device
    presents the data; the `passphrase` is that of the request.
    """

    path: str
    volume: Volume
    location: Location
    kernel: KernelView
    passphrase: Passphrase | None = None

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
                for device in devices:
                    self._remove_unused(device)
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

    # Encryption

    @property
    def mapping_name(self) -> str:
        """The name of the mapping of an encrypted image, which is no other volume's."""
        words = f"{self.volume.pool_uuid}\n{self.volume.id}"
        return f"pycsi-{hashlib.sha256(words.encode()).hexdigest()[:32]}"

    def mapping_on(self, device: loop.LoopDevice) -> devicemapper.Mapping | None:
        """Return the mapping that presents the data on a loop device; None if there is none."""
        if self.volume.encryption is None:
            return None
        found = devicemapper.on_loop(device.number)
        return next((item for item in found if item.name == self.mapping_name), None)

    def disks(self) -> list[Disk]:
        """Return the block devices that present the data: loop devices, or the mapping on one."""
        if self.volume.encryption is None:
            return list(self.found())
        return [found for device in self.found() if (found := self.mapping_on(device))]

    @contextlib.contextmanager
    def presented(self, device: loop.LoopDevice) -> Iterator[Disk]:
        """Yield the block device that presents the data on a loop device, and keep it meanwhile.

        A mapping is made if there is none. After the `with` block the kernel removes it together
        with the last mount, as it frees the loop device. The errors are those of `map`.
        """
        if self.volume.encryption is None:
            yield device
            return
        with devicemapper.held(self.map(device)) as mapping:
            yield mapping

    def map(self, device: loop.LoopDevice) -> devicemapper.Mapping:
        """Return the mapping that presents the data on a loop device; make it if there is none.

        The errors are those of `verify`.
        """
        if self.mapping_on(device) or (self.passphrase and self.passphrase.previous):
            self.verify()
        if self.mapping_on(device) is None:
            self._make_mapping(device)
        if (made := self.mapping_on(device)) is None:
            raise FailedPrecondition(
                f"volume {self.volume.id}: its mapping on {device.path} was removed by somebody "
                "else; try again"
            )
        return made

    def _make_mapping(self, device: loop.LoopDevice) -> None:
        passphrase = encryption.need(self.passphrase, f"volume {self.volume.id}")
        name, discards = self.mapping_name, not self.volume.thick
        with self._unlocking():
            try:
                luks.open_mapping(device.path, name, passphrase, discards=discards)
            except ProgramError:
                # A program that a driver had started that was killed may have made it meanwhile.
                if not self.mapping_on(device):
                    raise
                luks.verify(Path(self.path), passphrase)

    def verify(self) -> None:
        """See that the passphrase of the request is the image's; replace the previous one by it.

        `InvalidArgument` without a passphrase, `Unauthenticated` with one that is not the volume's.
        """
        who = f"volume {self.volume.id}"
        passphrase = encryption.need(self.passphrase, who)
        previous = self.passphrase.previous if self.passphrase else None
        with self._unlocking():
            try:
                luks.verify(Path(self.path), passphrase)
            except luks.WrongPassphraseError:
                if previous is None:
                    raise
                encryption.need_strong(self.passphrase, who)
                luks.change_passphrase(Path(self.path), previous, passphrase)
                log.info("a passphrase has replaced the previous one", volume=self.volume.id)

    @contextlib.contextmanager
    def _unlocking(self) -> Iterator[None]:
        """Explain why the passphrase does not open the image in the `with` block."""
        who = f"volume {self.volume.id}"
        try:
            with phase("unlock"):
                yield
        except luks.WrongPassphraseError:
            raise Unauthenticated(
                f"{who}: the secret {encryption.SECRET} is not a passphrase of this volume; "
                "nothing was changed"
            ) from None
        except ProgramError as error:
            if not luks.has_header(Path(self.path)):
                raise FailedPrecondition(
                    f"{who}: its image has no LUKS2 header, without which it cannot be decrypted: "
                    "one is wiped when its volume is deleted. With a backup of it: cryptsetup "
                    f"luksHeaderRestore {self.path} --header-backup-file FILE"
                ) from None
            raise FailedPrecondition(f"{who}: {luks.refusal() or error}") from None

    def unmap(self, device: loop.LoopDevice) -> None:
        """Remove the mapping on a loop device, and the loop devices on that.

        `FailedPrecondition` while something else uses it.
        """
        mapping = self.mapping_on(device)
        if mapping is None:
            return
        for top in backing.on_device(mapping.device):
            self.kernel.detach(top)
        begin = time.monotonic()
        while True:
            try:
                devicemapper.remove(mapping)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            else:
                return
            waited = time.monotonic() - begin
            if waited > _GRACE and ((used := holders.of_mapping(mapping)) or waited > _PATIENCE):
                raise FailedPrecondition(
                    f"volume {self.volume.id}: {mapping.path} is in use by {holders.named(used)}; "
                    "end that use"
                )
            time.sleep(0.01)

    def _remove_unused(self, device: loop.LoopDevice) -> None:
        """Remove the mapping on a loop device if nothing uses it: a killed driver has left it."""
        if mapping := self.mapping_on(device):
            with contextlib.suppress(OSError):
                devicemapper.remove(mapping)
