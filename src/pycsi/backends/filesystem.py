"""Volumes that are images with a filesystem of their own, mounted through a loop device."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from pycsi.backends import attributes
from pycsi.backends.growth import GrowingImage
from pycsi.backends.limits import filesystem_usage
from pycsi.linux import (
    btrfs,
    filesystem,
    holders,
    loop,
    losetup,
    mkfs,
    mount,
)
from pycsi.linux.descriptor import DIRECTORY, opened
from pycsi.linux.kernel import Mount
from pycsi.linux.program import ProgramError
from pycsi.model import mountflags, parameters
from pycsi.model.errors import (
    CsiError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from pycsi.model.records import Usage, Volume
from pycsi.model.request import Capability
from pycsi.model.rootdirectory import RootDirectory

_DAMAGED = frozenset(
    {errno.EINVAL, errno.EUCLEAN, errno.EBADMSG, errno.EIO, errno.ENOSYS, errno.EFBIG}
)
"""The errors of mount(2) for a damaged or unknown filesystem; the last two are for XFS sizes."""

_SAID = 4000
"""The number of characters, from the end of e2fsck's output, that are logged."""

_UNREPLAYED = frozenset({"noload", "norecovery"})
"""The mount options of ext4 that prevent the replay of its journal."""

log = structlog.get_logger()


class FilesystemImage(GrowingImage):
    """An image with a filesystem, which is formatted only once, when the volume is created.

    The kernel frees its loop device together with the last mount, so a crash cannot leak one.
    """

    @property
    def kind(self) -> str:
        return self.volume.filesystem or parameters.DEFAULT_FILESYSTEM

    def format(self, root: RootDirectory | None) -> None:
        options = self.volume.mkfs_options
        fit = mkfs.fit(self.kind, self.where)
        if fit.refusal and not options:
            raise self._unmountable(fit.refusal)
        try:
            mkfs.make(
                self.kind, self.content, options, base=fit.options, keep_blocks=self.volume.thick
            )
        except ProgramError as error:
            if options and not self.pool_is_full():
                raise InvalidArgument(f"{error}; correct the parameter mkfsOptions") from None
            raise self._program_failed(error) from None
        if root and not root.differs(self.kind):
            root = None
        if options or root:
            self._mount_first(fit, root)

    def _unmountable(self, refusal: str) -> CsiError:
        return FailedPrecondition(
            f"this node's kernel does not mount what its mkfs.{self.kind} makes ({refusal}): use "
            "another fs_type, or another version of the kernel or of the program"
        )

    def _mount_first(self, fit: mkfs.Fit, root: RootDirectory | None) -> None:
        """Mount the new filesystem detached from any path, and set up its root directory.

        `InvalidArgument` if this kernel cannot mount it writable because of the mkfs options.
        """
        try:
            with (
                self._attached() as device,
                mount.detached(self.kind, device.path) as mounted,
                opened(Path(), DIRECTORY, at=mounted) as fd,
            ):
                if root:
                    root.apply(fd)
                    mount.syncfs(fd)  # unmounting does not report write errors
        except OSError as error:
            if fit.refusal:
                raise self._unmountable(fit.refusal) from None
            if error.errno not in mkfs.REFUSALS or not self.volume.mkfs_options:
                raise self._explained(error) from None
            raise InvalidArgument(
                f"parameter mkfsOptions: this kernel cannot mount such a {self.kind} writable "
                f"({error.strerror}); correct it"
            ) from None
        finally:
            self.wait_until_free()

    def mounts(self) -> list[Mount]:
        mounts = self.kernel.mounts
        found: list[Mount] = []
        for device in self.devices():
            # A mounted btrfs has a device number of its own, so its source is compared instead.
            if self.kind == "btrfs":
                found += mounts.of_source(str(device.path))
            else:
                found += mounts.of(device.device)
        return found

    def stage(self, path: str, capability: Capability, *, readonly: bool = False) -> None:
        if self._mount(path, capability, readonly=readonly):
            return
        try:
            usable = self.grow_staged(path)
        except BaseException:
            self.kernel.unmount(path)
            self.release()
            raise
        if not usable:
            self.kernel.unmount(path)
            self.grow_unmounted()
            self._mount(path, capability, readonly=readonly)

    def _mount(self, path: str, capability: Capability, *, readonly: bool) -> bool:
        """Mount the filesystem; tell whether it already had the volume's size."""
        options = mountflags.split(capability.mount_flags)
        bits = attributes(capability, readonly=readonly).set
        # Without journal replay nothing may be written to the image, and a check would write.
        check = parameters.wants_check(self.volume.settings) and not _UNREPLAYED & {*options}
        with self._held_device(check=check) as device:
            grown = self.is_grown(self.content)
            try:
                self.kernel.mount(self.kind, device.path, path, options, bits)
            except OSError as error:
                if error.errno == errno.EINVAL and options:
                    raise InvalidArgument(
                        f"volume {self.volume.id}: {self.kind} refused the mount flags "
                        f"({error.strerror}); correct mountOptions"
                    ) from None
                raise self._explained(error) from None
            if not mount.tells_attributes(path):
                self.kernel.unmount(path)
                raise FailedPrecondition(
                    f"volume {self.volume.id}: its {self.kind} was shut down, and the kernel "
                    f"mounts it so again while somebody holds it, on {device.path}; unstage it "
                    "everywhere, and end who holds it"
                )
        return grown

    @contextlib.contextmanager
    def _held_device(self, *, check: bool = False) -> Iterator[loop.LoopDevice]:
        """Keep the image's loop device through the `with` block; if there is none, attach one.

        With `check`, an ext4 is checked before it is attached. An existing device is used again,
        since the filesystem may be mounted in another mount namespace, unseen: mounting the same
        device twice is harmless, while two devices on one image would corrupt it.
        """
        for device in loop.find(self.content):
            with loop.hold(device.number, self.content) as held:
                if held == device and not device.readonly:
                    if device.partial:
                        raise self.attached_by_others(device)
                    self.keep_blocks(device)
                    yield device
                    return
        self.forget_unrecorded()
        self.undo_growth()
        self._refuse_unknown()
        if check:
            self._check()
        with self._attached() as device:
            yield device

    def _check(self) -> None:
        """Check and repair an unmounted ext4; `FailedPrecondition` if e2fsck needs a person.

        XFS and btrfs recover when they are mounted: fsck.xfs(8) and fsck.btrfs(8) do nothing.
        """
        if self.kind != "ext4":
            return
        self.refuse_strangers()
        self.require_free()
        if self.lacks_room():
            # A repair that stops halfway, for want of space, would be worse than none.
            log.warning("a filesystem is not checked: the pool is full", volume=self.volume.id)
            return
        try:
            said = filesystem.check_unmounted_ext4(self.content)
        except ProgramError as error:
            if self.lacks_room():
                raise self._program_failed(error) from None
            raise FailedPrecondition(
                f"volume {self.volume.id}: the check of its ext4 did not pass, so it is not "
                f"mounted: {error}. On this node run: e2fsck -f {self.content}"
            ) from None
        if len(said.splitlines()) > 1:  # a clean filesystem has a single line
            log.info(
                "a filesystem was recovered or mended", volume=self.volume.id, said=said[-_SAID:]
            )

    @contextlib.contextmanager
    def _attached(self) -> Iterator[loop.LoopDevice]:
        """Attach a loop device to the image; the kernel frees it together with its last mount."""
        found = filesystem.identify(self.content)
        try:
            with self.kernel.attach(
                self.content,
                sector=found.sector if found else losetup.SMALLEST_SECTOR,
                autoclear=True,
                new=self.volume.thick,
                name=self.volume.id,
            ) as device:
                self.keep_blocks(device)
                yield device
        finally:
            if self.volume.thick:
                self.release()

    def _refuse_unknown(self) -> None:
        found = filesystem.identify(self.content)
        if found is None or found.kind != self.kind:
            raise FailedPrecondition(
                f"volume {self.volume.id}: {self.content} holds "
                f"{found.kind if found else 'no filesystem that we know'}, not {self.kind}; "
                "nothing was formatted; restore the image"
            )

    # Health

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        mounted = self.mounts()
        if not mounted and self.content.exists():
            found = filesystem.identify(self.content)
            if found is None or found.kind != self.kind:
                yield f"its image holds {found.kind if found else 'foreign data'}, not {self.kind}"
            elif found.errors:
                yield f"its {self.kind} has counted {found.errors} errors; check it"
        for item in mounted[:1]:
            if errors := self._errors(item):
                yield f"its {self.kind} has counted {errors} errors; look at the kernel's log"
        for item in mounted:
            if item.super_options & {"ro", "emergency_ro"} and not item.readonly:
                yield f"its {self.kind} has gone read-only; look at the kernel's log"
            elif "shutdown" in item.super_options or not mount.answers(item.target):
                yield f"its {self.kind} has been shut down; look at the kernel's log"

    def _errors(self, mounted: Mount) -> int:
        if self.kind == "btrfs":
            return btrfs.errors(Path(mounted.target))
        return filesystem.errors(mounted.device) if self.kind == "ext4" else 0

    # Snapshots

    def freezable(self) -> bool:
        return bool(self.mounts())

    def written_at(self) -> str | None:
        # A read-only mount may be of a writable filesystem, whose other mounts may be in another
        # namespace; so the options of the filesystem decide.
        mounted = self.mounts()
        writable = [item.target for item in mounted if "ro" not in item.super_options]
        return writable[0] if writable else None if mounted else self.holder()

    def prepare_capture(self) -> None:
        """Let the kernel recover the filesystem after a crash, unless it is mounted.

        A mounted filesystem was recovered when it was mounted. `FailedPrecondition` if something
        out of the driver's sight uses it.
        """
        if self.mounts():
            return
        if holder := self.holder():
            raise FailedPrecondition(
                f"volume {self.volume.id} is in use by {holder}: it cannot be frozen from here"
            )
        with self._held_device() as device:
            self._recover(device.path)
        self.require_free()

    def _recover(self, device: Path, *options: str) -> CsiError | None:
        """Mount the filesystem detached from any path, for recovery, and grow it meanwhile.

        Return the reason if it cannot grow. None also stands for a kernel that does not let this
        process grow a mounted filesystem: call `grow_unmounted` then.
        """
        try:
            with (
                mount.detached(self.kind, device, options) as mounted,
                contextlib.suppress(PermissionError),
            ):
                return self.grow_at(Path(), at=mounted)
        except OSError as error:
            raise self._explained(error) from None
        return None

    def _explained(self, error: OSError) -> Exception:
        """Return the exception to raise if the kernel could not mount the filesystem."""
        if error.errno not in _DAMAGED:
            return error
        if error.errno == errno.EIO and self.pool_is_full():
            return ResourceExhausted(
                f"the pool's disk is full: the kernel cannot write to {self.content} to mount it"
            )
        if relics := self.relics():
            return FailedPrecondition(
                f"volume {self.volume.id}: its {self.kind} cannot be mounted ({error.strerror}), "
                f"and is mounted yet from a disk that was lost: {self._held(relics[0])}; end that"
            )
        return FailedPrecondition(
            f"volume {self.volume.id}: its {self.kind} cannot be mounted ({error.strerror}); look "
            f"at the kernel's log and check {self.content}"
        )

    def adapt(self, source: Volume, project: int | None) -> None:
        """Recover the copied filesystem, give it a UUID of its own, and grow it to the volume.

        A btrfs gets its UUID first, because until then it must not be mounted beside its source; an
        XFS gets it afterwards, because its log has to be empty for that.
        """
        super().adapt(source, project)
        if self.kind == "btrfs":
            self._renew_uuid()
        with self._attached() as device:
            failure = self._recover(device.path, *(["nouuid"] if self.kind == "xfs" else []))
        self.require_free()
        if self.kind == "xfs":
            self._renew_uuid()
        failure = self.grow_unmounted() or failure
        if failure and self.volume.capacity > source.capacity:
            raise failure
        with opened(self.content) as fd:
            os.fsync(fd)

    def _renew_uuid(self) -> None:
        try:
            filesystem.renew_uuid(self.kind, self.content)
        except ProgramError as error:
            raise self._program_failed(error) from None

    def _program_failed(self, error: ProgramError) -> CsiError:
        """Return the exception to raise if a program has failed."""
        if self.pool_is_full():
            return ResourceExhausted(f"the pool's disk is full: {error}")
        return FailedPrecondition(f"volume {self.volume.id}: {error}")

    def holder(self) -> str | None:
        own = self.wait_until_free()
        devices = own or self.strangers()
        if not devices:
            return None
        seen = holders.of_device(devices[0].number)
        who = f": {holders.named(seen)}" if seen else ""
        how = "mounted in another mount namespace" if own else "attached to its image by others"
        return f"{devices[0].path}, {how}{who}"

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
