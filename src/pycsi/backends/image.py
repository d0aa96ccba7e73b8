"""Volumes that are an image file: on a loop device, with a filesystem of their own or raw."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pycsi.backends import Backend, attributes
from pycsi.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from pycsi.limits import filesystem_usage
from pycsi.linux import filesystem, loop, mount
from pycsi.linux.program import ProgramError
from pycsi.model import MIB, Capability, Usage
from pycsi.parameters import DEFAULT_FILESYSTEM, mount_options

IMAGE = "disk.img"

_FULL = 64 * MIB
"""With less free than this, a mkfs that failed is taken to have failed for want of room."""

_PATIENCE = 5.0
"""Seconds to wait for the kernel to free a loop device that nobody uses any more."""


class _Image(Backend):
    """`<place>/disk.img`, sparse or fully allocated."""

    @property
    def image(self) -> Path:
        return self.place / IMAGE

    def create(self) -> int | None:
        fd = os.open(self.image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _extend(fd, self.volume.capacity, thick=self.volume.thick)
            self.format()
            if self.volume.thick and os.fstat(fd).st_blocks * 512 < self.volume.capacity:
                _extend(fd, self.volume.capacity, thick=True)  # mkfs has freed blocks
            os.fsync(fd)
        finally:
            os.close(fd)
        return None

    def format(self) -> None:
        """Make the filesystem, if the volume has one."""

    def resize(self, size: int) -> None:
        fd = os.open(self.image, os.O_RDWR | os.O_CLOEXEC)
        try:
            before = os.fstat(fd).st_size
            if before > size:
                os.ftruncate(fd, size)  # what an earlier call left that was never recorded
            elif before < size:
                try:
                    _extend(fd, size, thick=self.volume.thick)
                except OSError:
                    os.ftruncate(fd, before)
                    raise
                os.fsync(fd)
        finally:
            os.close(fd)

    def expose(self) -> None:
        for device in loop.find(self.image):
            loop.set_capacity(device)

    def _forget_unrecorded(self) -> None:
        """Undo a resize that ended before it was recorded: nobody has seen the end of the file."""
        if self.image.stat().st_size > self.volume.capacity:
            os.truncate(self.image, self.volume.capacity)

    @contextlib.contextmanager
    def _attached(self, *, readonly: bool, autoclear: bool) -> Iterator[loop.LoopDevice]:
        with loop.attach(
            self.image, readonly=readonly, autoclear=autoclear, name=self.volume.id
        ) as device:
            if self.volume.thick and not readonly:
                with contextlib.suppress(OSError):  # /sys may be read-only; see check_mount_flags
                    loop.forbid_discard(device)
            yield device


def _extend(fd: int, size: int, *, thick: bool) -> None:
    if thick:
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)


class FilesystemImage(_Image):
    """An image that was formatted when it was created; nothing ever formats it again.

    Its loop device is freed by the kernel when the last mount has gone, so no crash can leak one.
    """

    @property
    def _kind(self) -> str:
        return self.volume.filesystem or DEFAULT_FILESYSTEM

    def format(self) -> None:
        options = list(self.volume.mkfs_options)
        try:
            filesystem.make(self._kind, self.image, options, keep_blocks=self.volume.thick)
        except ProgramError as error:
            pool = os.statvfs(self.place)
            if pool.f_bavail * pool.f_frsize < _FULL or (pool.f_files and not pool.f_favail):
                raise ResourceExhausted(f"the pool's disk is full: {error}") from None
            if options:
                raise InvalidArgument(f"{error}; correct the parameter mkfsOptions") from None
            raise

    def mounts(self) -> list[mount.Mount]:
        devices = loop.find(self.image)
        numbers = {device.device for device in devices}
        paths = {str(device.path) for device in devices}
        # The device number of a mounted btrfs is not its disk's, but its source is.
        return [
            item
            for item in mount.mountinfo()
            if item.device in numbers or (item.fstype == "btrfs" and item.source in paths)
        ]

    def stage(self, path: Path, capability: Capability, *, readonly: bool = False) -> None:
        bits = attributes(capability, readonly=readonly)
        options = mount_options(capability.mount_flags)
        with self._device() as device:
            try:
                mount.mount(self._kind, device.path, path, options, bits)
            except OSError as error:
                if error.errno != errno.EINVAL or not options:
                    raise
                raise InvalidArgument(
                    f"volume {self.volume.id}: {self._kind} refused the mount flags "
                    f"({error.strerror}); correct mountOptions"
                ) from None
        try:
            self.grow(path)
        except BaseException:
            mount.umount2(path)
            raise

    @contextlib.contextmanager
    def _device(self) -> Iterator[loop.LoopDevice]:
        """Hold the loop device of the image; attach one only if there is none.

        The filesystem may be mounted where we do not see it, in another mount namespace, and two
        devices on one image would corrupt it. Mounting the same device again is harmless.
        """
        for device in loop.find(self.image):
            with loop.hold(device) as alive:
                if alive:
                    yield device
                    return
        self._forget_unrecorded()
        self._grow_unmounted()
        with self._attached(readonly=False, autoclear=True) as device:
            yield device

    def holder(self) -> str | None:
        devices = loop.find(self.image)
        return f"{devices[0].path}, mounted in another mount namespace" if devices else None

    def _grow_unmounted(self) -> None:
        found = filesystem.identify(self.image)
        if found is None or found.kind != self._kind:
            raise FailedPrecondition(
                f"volume {self.volume.id}: {self.image} holds "
                f"{found.kind if found else 'no filesystem that we know'}, not {self._kind}; "
                "nothing was formatted; restore the image"
            )
        if found.kind == "ext4" and found.size < self.volume.capacity:
            filesystem.grow_unmounted_ext4(self.image)

    def grow(self, path: Path) -> None:
        size = self.volume.capacity
        found = [filesystem.identify(device.path) for device in loop.find(self.image)]
        if all(item is None or item.size >= size for item in found):
            return
        try:
            filesystem.grow_mounted(self._kind, path, size)
        except PermissionError:
            raise FailedPrecondition(
                f"volume {self.volume.id}: the kernel lets only CAP_SYS_RESOURCE grow a mounted "
                f"{self._kind}; give the driver that capability, or unpublish the volume: it "
                "grows when it is staged next"
            ) from None

    def release(self) -> None:
        # The kernel closes the device of an unmounted btrfs a moment after umount2 has returned.
        if self.mounts():
            return
        deadline = time.monotonic() + _PATIENCE
        while loop.find(self.image) and time.monotonic() < deadline:
            time.sleep(0.01)

    def usage(self, path: Path) -> Usage:
        return filesystem_usage(path)


class RawImage(_Image):
    """An image that is given out as a block device.

    A read-only publication has a loop device of its own that is read-only: a read-only mount of a
    device node would not keep anybody from writing to the device.
    """

    target_is_file = True

    def mounts(self) -> list[mount.Mount]:
        roots = {f"/loop{device.number}" for device in loop.find(self.image)}
        return [
            item
            for item in mount.mountinfo()
            if item.root in roots and item.fstype in {"devtmpfs", "tmpfs"}
        ]

    def _device(self, *, readonly: bool) -> loop.LoopDevice | None:
        devices = [item for item in loop.find(self.image) if item.readonly is readonly]
        return devices[0] if devices else None

    def is_staged(self, path: Path) -> bool:
        return self._device(readonly=False) is not None

    def stage(self, path: Path, capability: Capability, *, readonly: bool = False) -> None:
        if self._device(readonly=False) is None:
            self._forget_unrecorded()
            with self._attached(readonly=False, autoclear=False):
                pass

    def release(self) -> None:
        for device in loop.find(self.image):
            loop.detach(device)

    def publish(
        self, source: Path, target: Path, capability: Capability, *, readonly: bool
    ) -> None:
        device = self._device(readonly=readonly or capability.readonly)
        if device is None:
            with self._attached(readonly=True, autoclear=False) as device:
                pass
        mount.bind(device.path, target)

    def withdraw(self) -> None:
        used = {item.root for item in self.mounts()}
        for device in loop.find(self.image):
            if device.readonly and f"/loop{device.number}" not in used:
                loop.detach(device)

    def usage(self, path: Path) -> Usage:
        return Usage(total=self.image.stat().st_size)
