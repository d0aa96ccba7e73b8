"""The common part of both kinds of image volume: the image file."""

import functools
import os
import stat
from collections.abc import Callable, Iterator
from typing import ClassVar

from pycsi.backends import Backend
from pycsi.backends.devices import Devices
from pycsi.backends.limits import Progress
from pycsi.linux import (
    backing,
    devicemapper,
    discard,
    fiemap,
    filecopy,
    loop,
    losetup,
    luks,
    nocow,
)
from pycsi.linux.descriptor import opened
from pycsi.linux.kernel import Mount
from pycsi.linux.program import ProgramError
from pycsi.model import encryption
from pycsi.model.errors import FailedPrecondition
from pycsi.model.health import Fault, Reason
from pycsi.model.records import Volume
from pycsi.model.rootdirectory import RootDirectory
from pycsi.model.size import show
from pycsi.model.trace import phase


def _refuse_unquiesced(source: Backend) -> None:
    """Raise `FailedPrecondition` if `source` may be written to during a copy of its data."""
    if not source.freezable() and (where := source.written_at()):
        raise FailedPrecondition(
            f"volume {source.volume.id} is in use as {where}, and its blocks cannot be shared, so "
            "that a copy is not of one point in time; unstage it first, or copy it within one pool "
            "on XFS or btrfs"
        )


class Image(Backend):
    """An image file `<where>/disk.img`: sparse, or fully allocated for a thick volume.

    That of an encrypted volume begins with a header, which is not a part of its capacity.
    """

    NAME = "disk.img"

    SECTOR: ClassVar[int] = luks.SECTOR
    """The bytes of an encrypted image that are encrypted as one."""

    def create(self, root: RootDirectory | None) -> int | None:
        self.create_unfilled()
        if self.volume.encryption:
            self._encrypt()
        self.format(root)
        self._settle()
        return None

    def _encrypt(self) -> None:
        """Write the header of an encrypted image, durably, before there is any data."""
        who = f"volume {self.volume.id}"
        passphrase = encryption.need_strong(self.passphrase, who)
        try:
            with phase("encrypt"):
                luks.make(self.content, passphrase, sector=self.SECTOR)
        except ProgramError as error:
            raise FailedPrecondition(f"{who}: {luks.refusal() or error}") from None
        with opened(self.content) as fd:
            os.fsync(fd)

    def _settle(self) -> None:
        """Make the data durable; allocate the blocks that mkfs, or who filled it, has freed."""
        with opened(self.content, os.O_RDWR) as fd:
            if self.volume.thick and os.fstat(fd).st_blocks * 512 < self.volume.held:
                self._extend(fd, 0)
            with phase("sync"):
                os.fsync(fd)

    def create_unfilled(self) -> int | None:
        with opened(self.content, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            if self._on_btrfs:
                self._disable_cow(fd)
            # The header has extents of its own, which it does not share when the data is shared.
            self._extend(fd, 0, self.volume.header)
            self._extend(fd, self.volume.header)
        return None

    def finish_filled(
        self, source: Volume, project: int | None, is_taken: Callable[[str], bool]
    ) -> None:
        self._settle()

    def _disable_cow(self, fd: int) -> None:
        """Have btrfs write an image that is still empty in place: switch copy-on-write off.

        With copy-on-write, rewriting takes new blocks while old ones are still held, so that the
        image could occupy more than its size. `FailedPrecondition` if a thick volume needs this
        and btrfs refuses.
        """
        if not nocow.set_nocow(fd, nocow=True) and self.volume.thick:
            raise FailedPrecondition(
                f"volume {self.volume.id}: allocation: thick needs files that btrfs writes in "
                "place (chattr +C), and this btrfs refuses that; use allocation: thin, or a pool "
                "on XFS or ext4"
            )

    @property
    def _on_btrfs(self) -> bool:
        return self.location.mount.fstype == "btrfs"

    def format(self, root: RootDirectory | None) -> None:
        """Make the volume's filesystem; a raw image has none."""

    def resize(self, size: int) -> None:
        size += self.volume.header
        with opened(self.content, os.O_RDWR) as fd:
            before = os.fstat(fd).st_size
            if before > size:
                os.ftruncate(fd, size)  # an earlier call extended it, and did not record that
            elif before < size:
                self._extend(fd, before, size)
            os.fsync(fd)  # always, since an earlier call may have been killed just before this

    def _extend(self, fd: int, start: int, end: int | None = None) -> None:
        end = self.volume.held if end is None else end
        if self.volume.thick and end > start:
            os.posix_fallocate(fd, start, end - start)
        else:
            os.ftruncate(fd, end)

    def expose(self) -> None:
        for device in loop.find(self.content):
            losetup.set_capacity(device)
            if mapping := self.devices.mapping_on(device):
                self._expose_mapping(mapping)

    def _expose_mapping(self, mapping: devicemapper.Mapping) -> None:
        try:
            luks.resize(mapping.name)
        except ProgramError as error:
            raise FailedPrecondition(f"volume {self.volume.id}: {error}") from None
        for top in backing.on_device(mapping.device):
            losetup.set_capacity(top)

    @functools.cached_property
    def devices(self) -> Devices:
        """The block devices that present the image."""
        return Devices(self.inside, self.volume, self.location, self.kernel, self.passphrase)

    def block_devices(self) -> list[int]:
        if self.volume.encryption:
            return [item.device for item in self.devices.disks()]
        return [item.device for item in self.devices.own()]

    def renew_passphrase(self) -> None:
        self.devices.verify()

    def refuse_foreign(self) -> None:
        self.devices.refuse_foreign()

    def is_relic(self, mounted: Mount) -> bool:
        return self.devices.is_relic(mounted)

    def undo_unrecorded_resize(self) -> None:
        """Undo a resize that was not recorded; no device has shown the added bytes yet."""
        if self.content.stat().st_size > self.volume.held:
            os.truncate(self.content, self.volume.held)

    # Health

    def faults(self) -> Iterator[Fault]:
        try:
            status = self.content.lstat()
        except (FileNotFoundError, NotADirectoryError):
            yield Fault(Reason.DATA_MISSING, f"its image is missing: {self.content}")
            return
        if not stat.S_ISREG(status.st_mode):
            yield Fault(Reason.DATA_MISSING, f"its image is not a file: {self.content}")
            return
        size, wanted = status.st_size, self.volume.held
        if size < wanted:
            yield Fault(
                Reason.IMAGE_TRUNCATED,
                f"its image has {size} of {wanted} bytes ({show(wanted)}): {self.content}",
            )
        if self.volume.encryption and not luks.has_header(self.content):
            yield Fault(
                Reason.HEADER_MISSING,
                f"its image has no LUKS2 header, and cannot be decrypted: {self.content}",
            )
        if self.volume.thick:
            yield from self._thick_faults()

    def _thick_faults(self) -> Iterator[Fault]:
        """Yield the faults through which a thick volume may find no room to be written."""
        devices = self.kernel.loops(self.content)
        if any(not item.readonly and discard.is_taken(item.number) for item in devices):
            yield Fault(
                Reason.DISCARDS_ACCEPTED,
                "it is thick, but its loop device accepts discards; let the driver write to /sys, "
                "and stage it anew",
            )
        if self._on_btrfs:
            with opened(self.content) as fd:
                if not nocow.is_nocow(fd):
                    yield Fault(
                        Reason.COPIED_ON_WRITE,
                        "btrfs copies its blocks on write, so it is not thick; clone it, or "
                        "restore a snapshot of it, and use the new volume",
                    )

    # Snapshots

    @property
    def shares_blocks(self) -> bool:
        return filecopy.can_reflink(self.content)

    def occupied(self) -> int:
        return self.content.stat().st_blocks * 512

    def owned(self, *, may_share: bool) -> int:
        if self.volume.thick:
            return self.volume.held
        if not self._on_btrfs and (not may_share or self.location.mount.fstype == "ext4"):
            return min(os.stat(self.inside).st_blocks * 512, self.volume.held)
        with opened(self.content) as fd:
            if self._on_btrfs and not nocow.is_nocow(fd):
                return 0
            blocks = fiemap.unshared(fd) if may_share else os.fstat(fd).st_blocks * 512
        return min(blocks, self.volume.held)

    def capture(self, source: Backend, progress: Progress, *, point_in_time: bool) -> None:
        with (
            opened(source.content) as old,
            opened(self.content, os.O_RDWR | os.O_CREAT | os.O_EXCL) as new,
        ):
            if self._on_btrfs:
                nocow.set_nocow(new, nocow=self._is_nocow(source, old))
            if not filecopy.reflink(old, new):
                _refuse_unquiesced(source)
                if self._on_btrfs:
                    self._disable_cow(new)
                filecopy.copy(old, new, progress)
            os.ftruncate(new, source.volume.held)  # drop a growth that is not recorded yet

    @staticmethod
    def _is_nocow(source: Backend, fd: int) -> bool:
        """Tell whether the image of `source` is on btrfs and has copy-on-write switched off."""
        return source.location.mount.fstype == "btrfs" and nocow.is_nocow(fd)

    def restore(self, source: Backend, progress: Progress) -> int | None:
        self.capture(source, progress, point_in_time=True)
        return None

    def finish_restore(self, source: Volume, project: int | None) -> None:
        if (self.volume.thick or source.thick) and self.shares_blocks:
            self._unshare_blocks()
        self._own_header()
        with opened(self.content, os.O_RDWR) as fd:
            self._extend(fd, 0 if self.volume.thick else os.fstat(fd).st_size)
            os.fsync(fd)

    def _unshare_blocks(self) -> None:
        """Replace the image by a full copy that shares no blocks.

        Writing to a shared block takes a new one, and in a full pool a thick volume would get none.
        """
        aside = self.content.with_suffix(".new")
        with (
            opened(self.content) as old,
            opened(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL) as new,
        ):
            if self._on_btrfs:
                self._disable_cow(new)
            filecopy.copy(old, new, lambda: None)
        aside.rename(self.content)

    def finish_capture(self) -> None:
        if self.volume.thick and self.shares_blocks:
            self._unshare_blocks()
        self._own_header()
        with opened(self.content) as fd:
            os.fsync(fd)

    def _own_header(self) -> None:
        """Give an encrypted copy blocks of its own for its header.

        So each copy's can be overwritten when that copy is deleted, whichever is deleted first.
        """
        if self.volume.encryption:
            luks.own_header(self.content)
