"""A volume that is an image with a filesystem of its own, on a loop device."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pycsi import mountflags
from pycsi.backends import attributes
from pycsi.backends.image import Image
from pycsi.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from pycsi.limits import filesystem_usage
from pycsi.linux import btrfs, filesystem, loop, mount
from pycsi.linux.descriptor import opened
from pycsi.linux.mounttable import Mount
from pycsi.linux.program import ProgramError
from pycsi.model import MIB, Capability, Usage, Volume
from pycsi.parameters import DEFAULT_FILESYSTEM

_FULL = 64 * MIB
"""With less free than this, what failed is taken to have failed for want of room."""

_WORTHWHILE = 4 * MIB
"""Less than this is not worth a check of the whole filesystem; ext4 may not use it at all."""

_DAMAGED = frozenset(
    {errno.EINVAL, errno.EUCLEAN, errno.EBADMSG, errno.EIO, errno.ENOSYS, errno.EFBIG}
)
"""What the kernel says to a filesystem that it does not mount: the last two to sizes of an XFS."""


def _answers(mountpoint: str) -> bool:
    """Tell whether a directory can be read: not in an XFS that was shut down."""
    try:
        next(Path(mountpoint).iterdir(), None)
    except OSError as error:
        return error.errno != errno.EIO
    return True


class FilesystemImage(Image):
    """An image that was formatted when it was created; nothing ever formats it again.

    Its loop device is freed by the kernel when the last mount has gone, so no crash can leak one.
    """

    @property
    def _kind(self) -> str:
        return self.volume.filesystem or DEFAULT_FILESYSTEM

    @property
    def _undo(self) -> Path:
        return self.place / "resize.undo"

    def format(self) -> None:
        options = list(self.volume.mkfs_options)
        try:
            filesystem.make(self._kind, self.image, options, keep_blocks=self.volume.thick)
        except ProgramError as error:
            if self._pool_is_full():
                raise ResourceExhausted(f"the pool's disk is full: {error}") from None
            if options:
                raise InvalidArgument(f"{error}; correct the parameter mkfsOptions") from None
            raise
        if options:
            self._refuse_unmountable()

    def _pool_is_full(self) -> bool:
        pool = os.statvfs(self.place)
        return pool.f_bavail * pool.f_frsize < _FULL or bool(pool.f_files and not pool.f_favail)

    def _refuse_unmountable(self) -> None:
        """Refuse mkfs options that make a filesystem which this kernel cannot mount."""
        with self._attached(readonly=True) as device:
            try:
                mount.refuse_unmountable(self._kind, device.path)
            except OSError as error:
                raise InvalidArgument(
                    f"parameter mkfsOptions: this kernel cannot mount such a {self._kind} "
                    f"({error.strerror}); correct it"
                ) from None

    def mounts(self) -> list[Mount]:
        mounts = self.kernel.mounts
        found: list[Mount] = []
        for device in self.kernel.loops(self.image):
            # The device number of a mounted btrfs is not its disk's, but its source is.
            if self._kind == "btrfs":
                found += mounts.of_source(str(device.path))
            else:
                found += mounts.of(device.device)
        return found

    def stage(self, path: str, capability: Capability, *, readonly: bool = False) -> None:
        if self._mount(path, capability, readonly=readonly):
            return
        try:
            writable = any(item.target == path for item in self._writable())
            if writable and not self._is_grown(self._disk):
                filesystem.grow_mounted(self._kind, Path(path), self.volume.capacity)
        except PermissionError:
            self.kernel.unmount(path)
            self._grow_unmounted()
            self._mount(path, capability, readonly=readonly)
        except BaseException:
            self.kernel.unmount(path)
            self.release()
            raise

    def _mount(self, path: str, capability: Capability, *, readonly: bool) -> bool:
        """Mount it; tell whether it was as large as the volume before, and so need not grow."""
        options = mountflags.split(capability.mount_flags)
        bits = attributes(capability, readonly=readonly).set
        with self._held_device() as device:
            grown = self._is_grown(self.image)
            try:
                self.kernel.mount(self._kind, device.path, path, options, bits)
            except OSError as error:
                if error.errno == errno.EINVAL and options:
                    raise InvalidArgument(
                        f"volume {self.volume.id}: {self._kind} refused the mount flags "
                        f"({error.strerror}); correct mountOptions"
                    ) from None
                raise self._explained(error) from None
        return grown

    @contextlib.contextmanager
    def _held_device(self) -> Iterator[loop.LoopDevice]:
        """Hold the loop device of the image; attach one only if there is none.

        The filesystem may be mounted where we do not see it, in another mount namespace, and two
        devices on one image would corrupt it. Mounting the same device again is harmless.
        """
        for device in loop.find(self.image):
            with loop.hold(device, self.image) as still:
                if still and not device.readonly:
                    self.keep_blocks(device)
                    yield device
                    return
        self.forget_unrecorded()
        filesystem.undo_growth(self.image, self._undo)
        self._refuse_unknown()
        with self._attached() as device:
            yield device

    @contextlib.contextmanager
    def _attached(self, *, readonly: bool = False) -> Iterator[loop.LoopDevice]:
        """Attach a loop device that the kernel frees when the last mount of it has gone."""
        found = filesystem.identify(self.image)
        try:
            with self.kernel.attach(
                self.image,
                sector=found.sector if found else loop.SMALLEST_SECTOR,
                readonly=readonly,
                autoclear=True,
                new=self.volume.thick and not readonly,
                name=self.volume.id,
            ) as device:
                self.keep_blocks(device)
                yield device
        finally:
            if self.volume.thick:
                self.release()

    def _refuse_unknown(self) -> None:
        found = filesystem.identify(self.image)
        if found is None or found.kind != self._kind:
            raise FailedPrecondition(
                f"volume {self.volume.id}: {self.image} holds "
                f"{found.kind if found else 'no filesystem that we know'}, not {self._kind}; "
                "nothing was formatted; restore the image"
            )

    # Health

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        mounted = self.mounts()
        if not mounted and self.image.exists():
            found = filesystem.identify(self.image)
            if found is None or found.kind != self._kind:
                yield f"its image holds {found.kind if found else 'foreign data'}, not {self._kind}"
            elif found.errors:
                yield f"its {self._kind} has counted {found.errors} errors; check it"
        for item in mounted[:1]:
            if errors := self._errors(item):
                yield f"its {self._kind} has counted {errors} errors; look at the kernel's log"
        for item in mounted:
            if "ro" in item.super_options and not item.readonly:
                yield f"its {self._kind} has gone read-only; look at the kernel's log"
            elif "shutdown" in item.super_options or not _answers(item.target):
                yield f"its {self._kind} has been shut down; look at the kernel's log"

    def _errors(self, mounted: Mount) -> int:
        if self._kind == "btrfs":
            return btrfs.errors(Path(mounted.target))
        return filesystem.errors(mounted.device) if self._kind == "ext4" else 0

    # Snapshots

    def freezable(self) -> bool:
        return bool(self.mounts())

    def written_at(self) -> str | None:
        # A read-only mount may be one of several, and what is mounted elsewhere is not seen here.
        mounted = self.mounts()
        writable = [item.target for item in mounted if "ro" not in item.super_options]
        return writable[0] if writable else None if mounted else self.holder()

    def prepare_capture(self) -> None:
        """Have the kernel recover what a crash has left; a mounted one was recovered then."""
        if self.mounts():
            return
        if holder := self.holder():
            raise FailedPrecondition(
                f"volume {self.volume.id} is in use by {holder}: it cannot be frozen from here"
            )
        with self._held_device() as device:
            self._recover(device.path)
        self.require_free()

    def _recover(self, device: Path, *options: str) -> None:
        """Mount and unmount the filesystem where nobody sees it; make it as large as it can be."""
        try:
            with (
                mount.detached(self._kind, device, options) as mounted,
                contextlib.suppress(PermissionError),
            ):
                filesystem.grow_mounted(self._kind, Path(), self.volume.capacity, at=mounted)
        except OSError as error:
            raise self._explained(error) from None

    def _explained(self, error: OSError) -> Exception:
        """Return what to answer where the kernel could not mount the filesystem."""
        if error.errno not in _DAMAGED:
            return error
        if error.errno == errno.EIO and self._pool_is_full():
            return ResourceExhausted(
                f"the pool's disk is full: the kernel cannot write to {self.image} to mount it"
            )
        return FailedPrecondition(
            f"volume {self.volume.id}: its {self._kind} cannot be mounted ({error.strerror}); look "
            f"at the kernel's log and check {self.image}"
        )

    def adapt(self, source: Volume, project: int | None) -> None:
        """Make the copied filesystem recovered, mountable beside its source, and as large.

        A btrfs gets its UUID first, because until then it must not be mounted beside its source; an
        XFS afterwards, because its log has to be empty for that.
        """
        super().adapt(source, project)
        if self._kind == "btrfs":
            filesystem.renew_uuid(self._kind, self.image)
        with self._attached() as device:
            self._recover(device.path, *(["nouuid"] if self._kind == "xfs" else []))
        self.require_free()
        if self._kind == "xfs":
            filesystem.renew_uuid(self._kind, self.image)
        self._grow_unmounted()
        with opened(self.image) as fd:
            os.fsync(fd)

    def holder(self) -> str | None:
        devices = self.wait_until_free()
        return f"{devices[0].path}, mounted in another mount namespace" if devices else None

    # Growing

    @property
    def _disk(self) -> Path:
        """Where the filesystem is as the kernel has it: its device, if it has one."""
        devices = self.kernel.loops(self.image)
        return devices[0].path if devices else self.image

    def _shortfall(self, disk: Path) -> int:
        """Return by how many bytes the filesystem on `disk` is smaller than the volume."""
        found = filesystem.identify(disk)
        return self.volume.capacity - found.size if found else 0

    def _is_grown(self, disk: Path) -> bool:
        """Tell whether the filesystem is as large as the volume, and no growth was cut off."""
        return self._shortfall(disk) <= 0 and filesystem.copies_agree(disk)

    def _writable(self) -> list[Mount]:
        """Return the mounts through which the filesystem can be grown."""
        return [
            item
            for item in self.mounts()
            if item.root == "/" and not item.readonly and "ro" not in item.super_options
        ]

    def _grow_unmounted(self) -> None:
        """Grow an ext4 where the kernel does not let us while it is mounted."""
        if self._kind != "ext4" or self.holder() is not None:
            return
        if self._shortfall(self._disk) >= _WORTHWHILE:
            filesystem.grow_unmounted_ext4(self.image, self._undo)

    def grow(self) -> None:
        if self._is_grown(self._disk):
            return
        writable = self._writable()
        if not writable:
            raise FailedPrecondition(
                f"volume {self.volume.id} is mounted read-only; it grows when it is staged writable"
            )
        try:
            mountpoint = Path(writable[0].target)
            filesystem.grow_mounted(self._kind, mountpoint, self.volume.capacity)
        except PermissionError:
            if self._shortfall(self._disk) < _WORTHWHILE:
                return
            raise FailedPrecondition(
                f"volume {self.volume.id}: the kernel lets only CAP_SYS_RESOURCE grow a mounted "
                f"{self._kind}; give the driver that capability, or unpublish the volume: it "
                "grows when it is staged next"
            ) from None

    def release(self) -> None:
        if not self.mounts():
            self.forget_devices()

    def publish(self, source: str, target: str, capability: Capability, *, readonly: bool) -> None:
        change = attributes(capability, readonly=readonly)
        if change.clear & ~change.set & mount.MOUNT_ATTR_RDONLY and not self._writable():
            raise FailedPrecondition(
                f"volume {self.volume.id} is staged read-only, and the mount flags ask for rw; "
                "stage it without ro"
            )
        self.bind(source, target, change)

    def usage(self, path: Path) -> Usage:
        return filesystem_usage(path)
