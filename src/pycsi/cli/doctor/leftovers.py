"""Loop devices and mounts that are left of volumes which are gone, or that others have made."""

import functools
from collections.abc import Iterator
from pathlib import Path

from pycsi.backends.image import Image
from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding, Mend
from pycsi.cli.doctor.look import Look
from pycsi.cli.doctor.mending import locked
from pycsi.linux import backing, holders, loop, losetup
from pycsi.linux.kernel import KernelView, Mount
from pycsi.linux.mount import unmount
from pycsi.model.errors import FailedPrecondition
from pycsi.pool.layout import VOLUME_RECORD
from pycsi.pool.trash import Entry
from pycsi.volumes.notes import Notes

_IN_IMAGE = 3
"""The parts of an image's path in its pool: the folder, the volume's directory, the file."""

_TRIAL = "mkfs"
"""The name of the devices with which is tried what the kernel mounts."""

_FOLDERS = frozenset({"volumes", "trash", "tmp"})
"""The folders of a pool whose images may have loop devices."""


def check(look: Look) -> Iterator[Finding | None]:
    """Yield the loop devices and mounts in and of a pool that should not be there."""
    for number in loop.numbers():
        path = backing.path_of(number)
        parts = _parts(look, path, number) if path else None
        if parts:
            yield from _Device(look, number, *parts).findings()
    yield from _directories(look)


def _parts(look: Look, path: str, number: int) -> tuple[str, str] | None:
    """Return the folder of a pool and the name in it that a loop device's file has; None: none."""
    location, root = look.seen.location, str(look.given.path)
    if found := _inside(path, str(location.real_path)):
        return found
    # The kernel shows the path as of another mount: of the filesystem, or of one that is gone. Then
    # the file has to be on the pool's own filesystem.
    for other in (location.root_of(root), location.below_mount(root)):
        if found := _inside(path, other.rstrip("/")):
            status = loop.status_of(number)
            ours = status is not None and status.lo_device == location.path.stat().st_dev
            return found if ours else None
    return None


def _inside(path: str, pool: str) -> tuple[str, str] | None:
    if not path.startswith(f"{pool}/"):
        return None
    parts = path.removeprefix(f"{pool}/").split("/")
    if len(parts) != _IN_IMAGE or parts[0] not in _FOLDERS or parts[2] != Image.NAME:
        return None
    return parts[0], parts[1]


class _Device:
    """A loop device on the image of `name` in a folder of a pool."""

    def __init__(self, look: Look, number: int, folder: str, name: str) -> None:
        self._look = look
        self._number = number
        self._folder = folder
        self._name = name
        self._node = f"/dev/loop{number}"
        self._image = Path(look.given.path, folder, name, Image.NAME)
        self._status = loop.status_of(number)

    def findings(self) -> Iterator[Finding]:
        if self._folder == "tmp" and self._look.served:
            return
        if self._folder == "volumes" and self._is_unknown():
            return
        is_there = self._is_there()
        if not is_there and not backing.is_deleted(self._number):
            return  # it is in another mount namespace, such as that of another node in a container
        device = loop.described(self._status) if self._status else None
        if device and is_there and not any(map(device.is_named, (self._id, _TRIAL))):
            yield self._foreign(device.partial)
        elif self._folder == "volumes" and self._is_needed(device, is_there=is_there):
            return
        else:
            yield from self._left(is_there)

    @property
    def _id(self) -> str:
        """The id of the volume or snapshot whose image it is, which the driver gives the device."""
        match self._folder:
            case "trash":
                return Entry.parse(Path(self._name)).id
            case "tmp":
                return self._name.rpartition(".")[0]
            case _:
                return self._name

    def _is_unknown(self) -> bool:
        """Tell whether there is a volume of whose record nothing is known, or not yet."""
        if self._name in self._look.volumes:
            return False
        made = (self._image.parent / VOLUME_RECORD).exists()
        return made or self._name in self._look.seen.volumes.unreadable

    def _is_needed(self, device: loop.LoopDevice | None, *, is_there: bool) -> bool:
        """Tell whether a volume needs the device, or what is left of it is the driver's to undo."""
        if self._name not in self._look.volumes:
            return False
        notes = Notes(str(self._image.parent))
        if notes.lost or notes.staged or notes.published:
            return True
        return is_there and (device is None or device.autoclear)

    def _is_there(self) -> bool:
        """Tell whether the device shows the file that is at its path now."""
        try:
            found = self._image.stat()
        except OSError:
            return False
        status = self._status
        return status is None or (status.lo_device, status.lo_inode) == (
            found.st_dev,
            found.st_ino,
        )

    def _foreign(self, partial: bool) -> Finding:  # noqa: FBT001
        used = holders.of_device(self._number)
        by = f", used by {holders.named(used)}" if used else ""
        part = "a part of the image" if partial else "the image"
        place = f"{self._folder}/{self._name}"
        return self._look.finding(
            Code.LOOP_DEVICE_FOREIGN,
            self._node,
            f"another program has attached {self._node} to {part} of {place}{by}",
            commands.typed("losetup", "-d", self._node),
        )

    def _left(self, is_there: bool) -> Iterator[Finding]:  # noqa: FBT001
        of = f"{self._folder}/{self._name}"
        lost = "" if is_there else f", which is not there any more: copy from {self._node} what is"
        lost += "" if is_there else " wanted first"
        shown = [*self._shown()]
        detach = commands.typed("losetup", "-d", self._node)
        for item in shown:
            is_last = item is shown[-1] and self._stays()
            yield self._look.finding(
                Code.MOUNT_LEFT,
                item.target,
                f"{item.target} shows {self._node}, the image of {of}{lost}",
                commands.typed("umount", item.target) + (f" && {detach}" if is_last else ""),
            )
        if shown:
            return
        used = holders.of_device(self._number)
        by = f", used by {holders.named(used)}" if used else ""
        yield self._look.finding(
            Code.LOOP_DEVICE_LEAKED,
            self._node,
            f"{self._node} is left on the image of {of}{by}{lost}",
            detach,
            self._detach() if is_there and not used and self._is_idle() else None,
        )

    def _shown(self) -> list[Mount]:
        """Return the mounts of the device's filesystem, or of its node."""
        mounts = self._look.kernel.mounts
        found = [*mounts.of_source(self._node), *mounts.showing(f"/loop{self._number}")]
        return list({item.id: item for item in found}.values())

    def _stays(self) -> bool:
        """Tell whether the device stays bound when nothing uses it any more."""
        return bool(self._status and not self._status.lo_flags & loop.LO_FLAGS_AUTOCLEAR)

    def _is_idle(self) -> bool:
        """Tell whether no driver can stage the volume on this device at the same time."""
        return self._folder != "volumes" or not self._look.served

    def _detach(self) -> Mend:
        def act() -> None:
            if self._folder == "volumes":
                with locked(self._look.given):
                    self._detach_unused()
            else:
                self._detach_unused()

        return Mend(text=f"detach {self._node} from {self._image}", act=act)

    def _detach_unused(self) -> None:
        if used := holders.of_device(self._number):
            raise FailedPrecondition(f"{self._node} is in use by {holders.named(used)}")
        with loop.hold(self._number, self._image) as device:  # so that its number stays its own
            if device:
                losetup.detach(device)


def _directories(look: Look) -> Iterator[Finding]:
    """Yield the mounts of directories of volumes that are gone, or in the trash."""
    location = look.seen.location
    root = location.root.rstrip("/")
    for item in look.kernel.mounts.of(location.device, f"{root}/"):
        parts = item.origin.removeprefix(f"{root}/").split("/")
        if len(parts) < _IN_IMAGE or parts[0] not in {"volumes", "trash"} or parts[2] != "data":
            continue
        place = Path(look.given.path, *parts[:3])
        if parts[0] == "volumes" and place.parent.exists():
            continue
        yield look.finding(
            Code.MOUNT_LEFT,
            item.target,
            f"{item.target} shows the directory of {parts[0]}/{parts[1]}, a volume that is gone",
            commands.typed("umount", item.target),
            Mend(text=f"unmount {item.target}", act=functools.partial(_unmount, item)),
        )


def _unmount(left: Mount) -> None:
    """Unmount a mount that is still the topmost one at its path."""
    seen = KernelView().mounts.topmost(left.target)
    if seen is None or seen.id != left.id:
        return
    try:
        unmount(left.target)
    except OSError as error:
        used = holders.named(holders.of_mount(left))
        raise FailedPrecondition(f"{error.strerror}: it is in use by {used}") from None
