"""Preparing the filesystem in an image before it is mounted: attach, set up, check, recover."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from pycsi.backends.devices import Disk
from pycsi.backends.growth import Growth, pool_is_full
from pycsi.backends.image import Image
from pycsi.linux import filesystem, loop, losetup, mkfs, mount
from pycsi.linux.descriptor import DIRECTORY, opened
from pycsi.linux.program import ProgramError
from pycsi.model.errors import (
    CsiError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from pycsi.model.records import Volume
from pycsi.model.rootdirectory import RootDirectory
from pycsi.model.trace import phase

_DAMAGED = frozenset(
    {errno.EINVAL, errno.EUCLEAN, errno.EBADMSG, errno.EIO, errno.ENOSYS, errno.EFBIG}
)
"""The errors of mount(2) for a damaged or unknown filesystem; the last two are for XFS sizes."""

_SAID = 4000
"""The number of characters, from the end of e2fsck's output, that are logged."""

log = structlog.get_logger()


class OfflineFilesystem:
    """Prepares the filesystem in `image`, of the type `kind`, while it is not mounted at a path.

    For that the kernel mounts it detached from any path, for a moment.
    """

    def __init__(self, image: Image, kind: str, growth: Growth) -> None:
        self._image = image
        self._file = image.content
        self._devices = image.devices
        self._volume = image.volume
        self._kind = kind
        self._growth = growth

    def set_up(self, support: mkfs.KernelSupport, root: RootDirectory | None) -> None:
        """Mount the new filesystem detached from any path, and set up its root directory.

        `InvalidArgument` if this kernel cannot mount it writable because of the mkfs options.
        """
        try:
            with (
                self.attached() as disk,
                mount.detached(self._kind, disk.path) as mounted,
                opened(Path(), DIRECTORY, at=mounted) as fd,
            ):
                if root:
                    root.apply(fd)
                    mount.syncfs(fd)  # unmounting does not report write errors
        except OSError as error:
            if support.refusal:
                raise self.unmountable(support.refusal) from None
            if error.errno not in mkfs.REFUSALS or not self._volume.mkfs_options:
                raise self.explained(error) from None
            raise InvalidArgument(
                f"parameter mkfsOptions: this kernel cannot mount such a {self._kind} writable "
                f"({error.strerror}); correct it"
            ) from None
        finally:
            self._devices.wait_until_free()

    @contextlib.contextmanager
    def device(self, *, check: bool = False) -> Iterator[Disk]:
        """Keep the image's block device through the `with` block; if there is none, attach one.

        With `check`, an ext4 is checked before that. An existing device is used again,
        since the filesystem may be mounted in another mount namespace, unseen: mounting the same
        device twice is harmless, while two devices on one image would corrupt it.
        """
        for device in loop.find(self._file):
            with loop.hold(device.number, self._file) as held:
                if held == device and not device.readonly:
                    if device.partial:
                        raise self._devices.foreign_error(device)
                    self._devices.keep_blocks(device)
                    with self._devices.presented(device) as disk:
                        yield disk
                    return
        self._image.undo_unrecorded_resize()
        if self._volume.encryption:
            with self.attached() as disk:
                self._prepare(disk.path, check=check)
                yield disk
            return
        self._growth.undo()
        self._prepare(self._file, check=check)
        with self.attached() as disk:
            yield disk

    def place(self, disk: Disk) -> Path:
        """Return where to read a filesystem that is not mounted: the image, or what decrypts it."""
        return disk.path if self._volume.encryption else self._file

    def _prepare(self, place: Path, *, check: bool) -> None:
        """Refuse what is not the volume's filesystem, and check that at `place` if wanted."""
        self.need_identity(place)
        if check:
            with phase("fsck"):
                self._check(place)

    def _check(self, place: Path) -> None:
        """Check and repair an unmounted ext4; `FailedPrecondition` if e2fsck leaves errors.

        XFS and btrfs recover when they are mounted: fsck.xfs(8) and fsck.btrfs(8) do nothing.
        """
        if self._kind != "ext4":
            return
        if not self._volume.encryption:
            self._image.refuse_foreign()
            self._devices.require_free()
        if self._growth.lacks_room():
            # A repair that stops halfway, for want of space, would be worse than none.
            log.warning(
                "a filesystem is not checked: the pool is full; free space there",
                volume=self._volume.id,
            )
            return
        try:
            said = filesystem.check_unmounted_ext4(place)
        except ProgramError as error:
            if self._growth.lacks_room():
                raise self.program_failed(error) from None
            raise FailedPrecondition(
                f"volume {self._volume.id}: the check of its ext4 did not pass, so it is not "
                f"mounted: {error}. On this node run: e2fsck -f {place}"
            ) from None
        if len(said.splitlines()) > 1:  # a clean filesystem has a single line
            log.info(
                "e2fsck has recovered or repaired a filesystem",
                volume=self._volume.id,
                said=said[-_SAID:],
            )

    @contextlib.contextmanager
    def attached(self) -> Iterator[Disk]:
        """Attach a loop device to the image, and yield what presents the filesystem on it.

        The kernel frees it together with its last mount.
        """
        found = filesystem.identify(self._file)
        try:
            with self._image.kernel.attach(
                self._file,
                sector=found.sector if found else losetup.SMALLEST_SECTOR,
                autoclear=True,
                new=self._volume.thick,
                name=self._volume.id,
            ) as device:
                self._devices.keep_blocks(device)
                with self._devices.presented(device) as disk:
                    yield disk
        finally:
            if self._volume.thick:
                self._image.release()

    @contextlib.contextmanager
    def contents(self) -> Iterator[Path]:
        """Yield what the filesystem is on, which nothing uses: the image, or what decrypts it."""
        if not self._volume.encryption:
            yield self._file
            return
        with self.attached() as disk:
            yield disk.path
        self._devices.require_free()

    def need_identity(self, place: Path | None = None) -> filesystem.Identity:
        """Return what the image holds; `FailedPrecondition` if that is not of the volume's kind.

        It is read at `place`, or in the image.
        """
        found = filesystem.identify(place or self._file)
        if found is None or found.kind != self._kind:
            raise FailedPrecondition(
                f"volume {self._volume.id}: {self._file} holds "
                f"{found.kind if found else 'no filesystem'}, not {self._kind}; "
                "nothing was formatted; restore the image"
            )
        return found

    def recover(self, device: Path, *options: str) -> CsiError | None:
        """Mount the filesystem detached from any path, for recovery, and grow it meanwhile.

        Return the reason if it cannot grow. None also stands for a kernel that does not let this
        process grow a mounted filesystem: call `grow_unmounted` then.
        """
        try:
            with (
                mount.detached(self._kind, device, options) as mounted,
                contextlib.suppress(PermissionError),
            ):
                return self._growth.grow_at(Path(), at=mounted)
        except OSError as error:
            raise self.explained(error) from None
        return None

    def finish_restore(self, source: Volume) -> None:
        """Recover the copied filesystem, give it a UUID of its own, and grow it to the volume.

        A btrfs gets its UUID first, because until then it must not be mounted beside its source; an
        XFS gets it afterwards, because its log has to be empty for that.
        """
        if self._kind == "btrfs":
            self._renew_uuid()
        with self.attached() as disk:
            failure = self.recover(disk.path, *(["nouuid"] if self._kind == "xfs" else []))
        self._devices.require_free()
        if self._kind == "xfs":
            self._renew_uuid()
        failure = self._growth.grow_unmounted() or failure
        if failure and self._volume.capacity > source.capacity:
            raise failure
        with opened(self._file) as fd:
            os.fsync(fd)

    def _renew_uuid(self) -> None:
        try:
            with self.contents() as place:
                filesystem.renew_uuid(self._kind, place)
        except ProgramError as error:
            raise self.program_failed(error) from None

    def unmountable(self, refusal: str) -> CsiError:
        """Return the exception to raise if the kernel mounts none of this kind, by `refusal`."""
        return FailedPrecondition(
            f"this node's kernel does not mount what its mkfs.{self._kind} makes ({refusal}): use "
            "another fs_type, or another version of the kernel or of the program"
        )

    def explained(self, error: OSError) -> Exception:
        """Return the exception to raise if the kernel could not mount the filesystem."""
        if error.errno not in _DAMAGED:
            return error
        if error.errno == errno.EIO and pool_is_full(self._image.where):
            return ResourceExhausted(
                f"the pool's disk is full: the kernel cannot write to {self._file} to mount it"
            )
        text = f"volume {self._volume.id}: its {self._kind} cannot be mounted ({error.strerror})"
        if relics := self._devices.relics():
            return FailedPrecondition(
                f"{text}, and is still mounted from a disk that was lost: "
                f"{self._devices.in_use(relics[0])}; end that use"
            )
        return FailedPrecondition(f"{text}; look at the kernel's log and check {self._file}")

    def program_failed(self, error: ProgramError) -> CsiError:
        """Return the exception to raise if a program has failed."""
        if pool_is_full(self._image.where):
            return ResourceExhausted(f"the pool's disk is full: {error}")
        return FailedPrecondition(f"volume {self._volume.id}: {error}")
