"""The kinds of volume data; a `Backend` is the data of one volume.

| volume                    | backend           | staged                  | published      |
|---------------------------|-------------------|-------------------------|----------------|
| `directory`               | `Directory`       | the directory, bound    | a bind mount   |
| `image` with a filesystem | `FilesystemImage` | its filesystem, mounted | a bind mount   |
| `image`, raw block        | `RawImage`        | a loop device           | a bound device |

On the loop device of an encrypted image is a mapping, which takes its place there.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from pycsi.backends.limits import Limiter, Progress
from pycsi.linux.kernel import KernelView, Mount
from pycsi.linux.location import Location
from pycsi.linux.mount import MOUNT_ATTR_RDONLY, UNCHANGED, Attributes, attributes_of
from pycsi.model import mountflags
from pycsi.model.encryption import Passphrase
from pycsi.model.errors import FailedPrecondition
from pycsi.model.health import Fault
from pycsi.model.records import Usage, Volume
from pycsi.model.request import Capability
from pycsi.model.rootdirectory import RootDirectory


@dataclasses.dataclass(eq=False)
class Backend(abc.ABC):
    """The data of `volume` or of a snapshot, in the directory `where` of the pool at `location`.

    `limiter` limits the size of directories; mounts are read from and made through `kernel`. The
    `passphrase` is that of the request, if it has brought one.
    """

    NAME: ClassVar[str]
    """The name of `content` within `where`."""

    target_is_file: ClassVar[bool] = False
    """Whether the target path is a file, for a device node; otherwise it is a directory."""

    where: str
    volume: Volume
    limiter: Limiter
    location: Location
    kernel: KernelView
    passphrase: Passphrase | None = None

    @functools.cached_property
    def content(self) -> Path:
        """The directory or file that contains the data."""
        return Path(f"{self.where}/{self.NAME}")

    @property
    def inside(self) -> str:
        """`content` as a string, which is faster where every volume of a pool is looked at."""
        return f"{self.where}/{self.NAME}"

    @abc.abstractmethod
    def create(self, root: RootDirectory | None) -> int | None:
        """Create the data of a new volume; return its project id, or None if it has none.

        `root` are the attributes of its root directory, if the request names any.
        """

    @abc.abstractmethod
    def create_unfilled(self) -> int | None:
        """Create the data of a new volume for another process to fill; return its project id.

        An image has the volume's size, and holds nothing.
        """

    @abc.abstractmethod
    def finish_filled(
        self, source: Volume, project: int | None, is_taken: Callable[[str], bool]
    ) -> None:
        """Check what was filled in, make it the volume's own as `finish_restore`, and durable.

        It is what `source` held. A filesystem that needs no change is not touched: it is changed if
        the volume is larger, or if `is_taken` says that another volume has its UUID, beside which
        it could not be mounted. `FailedPrecondition` if it is not what a `source` holds.
        """

    def sync_names(self) -> None:
        """Make the directory entries that `create` has made durable, once the record is on disk."""

    @abc.abstractmethod
    def resize(self, size: int) -> None:
        """Set the size of the data to `size` bytes, before that size is recorded.

        No device shows the new size before `expose`, so it can be taken back until then. A volume
        never becomes smaller than its recorded capacity.
        """

    def expose(self) -> None:
        """Set the devices on the data to its new size, once that size is recorded."""

    @abc.abstractmethod
    def mounts(self) -> list[Mount]:
        """Return all mounts of this volume, or of a part of it, as the kernel lists them."""

    @abc.abstractmethod
    def stage(self, path: str, capability: Capability, *, readonly: bool = False) -> None:
        """Stage the volume at the staging path `path`, an empty directory."""

    @abc.abstractmethod
    def usage(self, path: Path) -> Usage:
        """Return the volume's usage in bytes, and inodes if known; it is mounted at `path`."""

    def grow(self) -> None:
        """Grow the mounted filesystem to the size of the volume."""

    def is_seen(self, path: str) -> bool:
        """Tell whether the topmost mount at `path` is of this volume."""
        seen = self.kernel.mounts.topmost(path)
        return seen is not None and seen in self.mounts()

    @abc.abstractmethod
    def is_relic(self, mounted: Mount) -> bool:
        """Tell whether a mount shows this volume's data on a disk that was lost or replaced.

        Such a mount, a relic, may only be undone; the volume does not count as staged or published.
        """

    def may_have_shown(self, mounted: Mount) -> bool:
        """Tell whether a mount where the volume was published can be what publishing left there."""
        return False

    def is_staged(self, path: str) -> bool:
        """Tell whether the kernel has the volume staged at `path`."""
        return self.is_seen(path)

    def holder(self) -> str | None:
        """Describe what uses the volume other than the mounts in `mounts`; None if nothing does."""
        return None

    def refuse_foreign(self) -> None:
        """Raise `FailedPrecondition` if another program has attached a loop device to the data."""

    def block_devices(self) -> list[int]:
        """Return the numbers of the block devices through which this volume alone is accessed."""
        return []

    def renew_passphrase(self) -> None:
        """Replace the previous passphrase of an encrypted image, in use or not, by the new one.

        `Unauthenticated` if neither is the image's.
        """

    def release(self) -> None:
        """Free what staging has allocated besides the mount, such as loop devices."""

    def unmount(self, path: str) -> None:
        """Undo the topmost mount at `path`, and free what only that mount needed."""
        self.kernel.unmount(path)

    def publish(self, source: str, target: str, capability: Capability, *, readonly: bool) -> None:
        """Publish the volume, staged at the path `source`, at the existing path `target`."""
        self.bind(source, target, attributes(capability, readonly=readonly))

    def bind(self, source: str, target: str, change: Attributes) -> None:
        """Bind `source` to `target` with changed mount attributes.

        `FailedPrecondition` if the kernel does not allow this process to clear an attribute.
        """
        try:
            self.kernel.bind(source, target, change)
        except PermissionError as error:
            if not change.clear:
                raise
            raise FailedPrecondition(
                f"volume {self.volume.id}: the kernel does not let the driver, in its user "
                f"namespace, allow what the pool's mount forbids ({error.strerror}); mount the "
                "pool with what the mount flags ask for, or leave them out"
            ) from None

    def withdraw(self) -> None:
        """Free what publishing has allocated and no published target needs any more."""

    # Health

    @property
    def healthy_path(self) -> str:
        """The path of a directory whose existence alone rules out `faults`; empty if none does."""
        return ""

    @abc.abstractmethod
    def faults(self) -> Iterator[Fault]:
        """Yield the faults that the data in the pool has now."""

    def mount_faults(self, mounted: Mount) -> Iterator[Fault]:
        """Yield the faults that the volume's own filesystem has at one of its `mounts`.

        It is asked at its target, which may answer late or never, however well the pool's disk is.
        """
        yield from ()

    # Snapshots

    @property
    def shares_blocks(self) -> bool:
        """Whether a copy within the pool shares blocks (reflink, btrfs snapshot), so is instant."""
        return False

    @abc.abstractmethod
    def occupied(self) -> int:
        """Return the number of bytes that the data occupies in the pool, with shared blocks."""

    @abc.abstractmethod
    def owned(self, *, may_share: bool) -> int:
        """Return a lower bound for the bytes that can be rewritten without new blocks in the pool.

        These blocks belong to this volume alone. `may_share` tells whether it may share others.
        """

    def written_at(self) -> str | None:
        """Return where the volume may be written to now, a path or a device; None if nowhere."""
        writable = [item.target for item in self.mounts() if not item.readonly]
        return writable[0] if writable else self.holder()

    def freezable(self) -> bool:
        """Tell whether the volume is mounted as a filesystem of its own, which can be frozen."""
        return False

    def prepare_copy(self) -> None:
        """Make the data consistent on disk before it is copied, as by replaying a journal.

        `FailedPrecondition` if the volume is in use where the driver cannot freeze it.
        """

    @abc.abstractmethod
    def capture(self, source: "Backend", progress: Progress, *, point_in_time: bool) -> None:
        """Copy `source`, a backend of the same kind, into this new snapshot.

        Without `point_in_time`, the files may be copied at different moments. `progress` is called
        repeatedly; an exception from it ends the copy. Call `finish_capture` afterwards.
        """

    @abc.abstractmethod
    def restore(self, source: "Backend", progress: Progress) -> int | None:
        """Make this new volume a point-in-time copy of `source`; return its project id, if any.

        The volume may be larger than its source, not smaller. Call `finish_restore` afterwards.
        """

    @abc.abstractmethod
    def finish_restore(self, source: Volume, project: int | None) -> None:
        """Make the data that `restore` has copied from `source` this volume's own.

        Afterwards it has the volume's size, is durable, and can be mounted beside its source.
        `project` is the project id that `restore` returned.
        """

    @abc.abstractmethod
    def finish_capture(self) -> None:
        """Make the copy that `capture` has made durable, and give it its own blocks if it is thick.

        The source may be written to again by now.
        """


def attributes(capability: Capability, *, readonly: bool) -> Attributes:
    """Return the changes to a mount's attributes that a capability's mount flags ask for.

    Read-only takes precedence over the flag `rw`.
    """
    flags = capability.mount_flags
    change = attributes_of(mountflags.split(flags)) if flags else UNCHANGED
    if readonly or capability.mode.readonly:
        return change._replace(set=change.set | MOUNT_ATTR_RDONLY)
    return change
