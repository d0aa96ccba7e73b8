"""Volumes that are images with a filesystem of their own, mounted through a loop device."""

import errno
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from pycsi.backends import attributes, damage
from pycsi.backends.growth import Growth, pool_is_full
from pycsi.backends.image import Image
from pycsi.backends.limits import filesystem_usage
from pycsi.backends.offline import OfflineFilesystem
from pycsi.linux import (
    mkfs,
    mount,
)
from pycsi.linux.kernel import Mount
from pycsi.linux.program import ProgramError
from pycsi.model import mountflags, parameters
from pycsi.model.errors import (
    FailedPrecondition,
    InvalidArgument,
)
from pycsi.model.health import Fault
from pycsi.model.records import Usage, Volume
from pycsi.model.request import Capability
from pycsi.model.rootdirectory import RootDirectory
from pycsi.model.trace import phase

_UNREPLAYED = frozenset({"noload", "norecovery"})
"""The mount options of ext4 that prevent the replay of its journal."""

_EXCLUSIVE = frozenset({"xfs", "btrfs"})
"""The filesystems of which two with the same UUID cannot be mounted at a time."""


class FilesystemImage(Image):
    """An image with a filesystem, which is formatted only once, when the volume is created.

    The kernel frees its loop device together with the last mount, so a crash cannot leak one.
    """

    @property
    def kind(self) -> str:
        """The type of the filesystem, such as "ext4"."""
        return self.volume.filesystem or parameters.DEFAULT_FILESYSTEM

    @functools.cached_property
    def growth(self) -> Growth:
        """The growth of the filesystem to the size of the volume."""
        return Growth(self, self.kind)

    @functools.cached_property
    def offline(self) -> OfflineFilesystem:
        """The filesystem, for what is done to it before it is mounted."""
        return OfflineFilesystem(self, self.kind, self.growth)

    def grow(self) -> None:
        self.growth.grow()

    def format(self, root: RootDirectory | None) -> None:
        options = self.volume.mkfs_options
        support = mkfs.kernel_support(self.kind, self.where)
        if support.refusal and not options:
            raise self.offline.unmountable(support.refusal)
        try:
            with self.offline.contents() as place, phase("mkfs"):
                mkfs.make(
                    self.kind,
                    place,
                    options,
                    base=support.options,
                    keep_blocks=self.volume.thick,
                )
        except ProgramError as error:
            if options and not pool_is_full(self.where):
                raise InvalidArgument(f"{error}; correct the parameter mkfsOptions") from None
            raise self.offline.program_failed(error) from None
        if root and not root.differs(self.kind):
            root = None
        if options or root:
            self.offline.set_up(support, root)

    def mounts(self) -> list[Mount]:
        mounts = self.kernel.mounts
        found: list[Mount] = []
        for disk in self.devices.disks():
            # A mounted btrfs has a device number of its own, so its source is compared instead.
            if self.kind == "btrfs":
                found += mounts.of_source(str(disk.path))
            else:
                found += mounts.of(disk.device)
        return found

    def stage(self, path: str, capability: Capability, *, readonly: bool = False) -> None:
        if self._mount(path, capability, readonly=readonly):
            return
        try:
            with phase("grow"):
                usable = self.growth.grow_staged(path)
        except BaseException:
            self.kernel.unmount(path)
            self.release()
            raise
        if not usable:
            self.kernel.unmount(path)
            self.growth.grow_unmounted()
            self._mount(path, capability, readonly=readonly)

    def _mount(self, path: str, capability: Capability, *, readonly: bool) -> bool:
        """Mount the filesystem; tell whether it already had the volume's size."""
        options = mountflags.split(capability.mount_flags)
        bits = attributes(capability, readonly=readonly).set
        # Without journal replay nothing may be written to the image, and a check would write.
        check = parameters.wants_check(self.volume.settings) and not _UNREPLAYED & {*options}
        with self.offline.device(check=check) as disk:
            grown = self.growth.is_grown(self.offline.place(disk))
            try:
                self.kernel.mount(self.kind, disk.path, path, options, bits)
            except OSError as error:
                if error.errno == errno.EINVAL and options:
                    raise InvalidArgument(
                        f"volume {self.volume.id}: {self.kind} refused the mount flags "
                        f"({error.strerror}); correct mountOptions"
                    ) from None
                raise self.offline.explained(error) from None
            if not mount.tells_attributes(path):
                self.kernel.unmount(path)
                raise FailedPrecondition(
                    f"volume {self.volume.id}: its {self.kind} was shut down, and stays so "
                    f"while anything else uses it through {disk.path}; unstage it everywhere, "
                    "and end what uses it"
                )
        return grown

    # Health

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        yield from self.growth.faults()
        mounted = self.mounts()
        if not mounted and self.content.is_file() and not self.volume.encryption:
            yield from damage.in_image(self.kind, self.content)
        yield from damage.listed(self.kind, mounted)

    def mount_faults(self, mounted: Mount) -> Iterator[Fault]:
        return damage.at_mount(self.kind, mounted)

    # Snapshots

    def freezable(self) -> bool:
        return bool(self.mounts())

    def written_at(self) -> str | None:
        # A read-only mount may be of a writable filesystem, whose other mounts may be in another
        # namespace; so the options of the filesystem decide.
        mounted = self.mounts()
        writable = [item.target for item in mounted if "ro" not in item.super_options]
        return writable[0] if writable else None if mounted else self.holder()

    def prepare_copy(self) -> None:
        """Let the kernel recover the filesystem after a crash, unless it is mounted, or encrypted.

        A mounted filesystem was recovered when it was mounted. `FailedPrecondition` if something
        out of the driver's sight uses it.
        """
        if self.mounts():
            return
        if holder := self.holder():
            raise FailedPrecondition(
                f"volume {self.volume.id} is in use by {holder}: it cannot be frozen from here"
            )
        if self.volume.encryption:
            return  # it takes the passphrase; a volume that is made of the copy is recovered then
        with self.offline.device() as disk:
            self.offline.recover(disk.path)
        self.devices.require_free()

    def finish_restore(self, source: Volume, project: int | None) -> None:
        super().finish_restore(source, project)
        self.offline.finish_restore(source)

    def finish_filled(
        self, source: Volume, project: int | None, is_taken: Callable[[str], bool]
    ) -> None:
        super().finish_filled(source, project, is_taken)
        found = self.offline.need_identity()
        if self.volume.capacity > source.capacity or (
            self.kind in _EXCLUSIVE and is_taken(str(found.uuid))
        ):
            self.offline.finish_restore(source)

    def holder(self) -> str | None:
        return self.devices.holder()

    def release(self) -> None:
        if not self.mounts():
            self.devices.forget()

    def publish(self, source: str, target: str, capability: Capability, *, readonly: bool) -> None:
        change = attributes(capability, readonly=readonly)
        if change.clear & ~change.set & mount.MOUNT_ATTR_RDONLY and not self.growth.writable():
            raise FailedPrecondition(
                f"volume {self.volume.id} is staged read-only, and the mount flags ask for rw; "
                "stage it without ro"
            )
        self.bind(source, target, change)

    def usage(self, path: Path) -> Usage:
        return filesystem_usage(path)
