"""What volumes are made of: a `Backend` is one volume's data.

| volume                    | backend           | staged                  | published      |
|---------------------------|-------------------|-------------------------|----------------|
| `directory`               | `Directory`       | the directory, bound    | a bind mount   |
| `image` with a filesystem | `FilesystemImage` | its filesystem, mounted | a bind mount   |
| `image`, raw block        | `RawImage`        | a loop device           | a bound device |
"""

import abc
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pycsi.backends.limits import Limiter, Progress
from pycsi.linux.kernel import KernelView
from pycsi.linux.location import Location
from pycsi.linux.mount import MOUNT_ATTR_RDONLY, Attributes, attributes_of
from pycsi.linux.mounttable import Mount
from pycsi.model import mountflags
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Usage, Volume
from pycsi.model.request import Capability


class Backend(abc.ABC):
    """The data of `volume` in the directory `where`, on the pool's `location`.

    `kernel` is asked what is mounted, and mounts.
    """

    NAME: ClassVar[str]
    """What `content` is called in `place`."""

    target_is_file = False
    """Whether a volume of this kind is published at a file, as a device, or at a directory."""

    def __init__(
        self, where: str, volume: Volume, limiter: Limiter, location: Location, kernel: KernelView
    ) -> None:
        self.where = where
        self.volume = volume
        self.limiter = limiter
        self.location = location
        self.kernel = kernel

    @functools.cached_property
    def place(self) -> Path:
        """The directory as a path, made when it is wanted: there may be thousands of volumes."""
        return Path(self.where)

    @property
    def inside(self) -> str:
        """Where the data is: what `where` is to `place`, this is to `content`."""
        return f"{self.where}/{self.NAME}"

    @functools.cached_property
    def content(self) -> Path:
        """The directory or the file that the data is in."""
        return Path(self.inside)

    @abc.abstractmethod
    def create(self) -> int | None:
        """Make the data, whole; return its project id if it has one."""

    def sync_names(self) -> None:
        """Make the names in what `create` has made durable, when the record is on the disk."""

    @abc.abstractmethod
    def resize(self, size: int) -> None:
        """Make the data `size` bytes large, never smaller; nobody sees that before `expose`."""

    def expose(self) -> None:
        """Let the devices on the data be as large as it is; its new size is recorded now."""

    @abc.abstractmethod
    def mounts(self) -> list[Mount]:
        """Return the mounts of this volume or of a part of it, as the kernel lists them."""

    @abc.abstractmethod
    def stage(self, path: str, capability: Capability, *, readonly: bool = False) -> None:
        """Make the volume usable at the empty directory `path`."""

    @abc.abstractmethod
    def usage(self, path: Path) -> Usage:
        """Measure the volume through `path`, where it is mounted."""

    def grow(self) -> None:
        """Make the filesystem, which is mounted, as large as the data."""

    def is_seen(self, path: str) -> bool:
        """Tell whether the volume is mounted at `path`, and nothing over it."""
        seen = self.kernel.mounts.topmost(path)
        return seen is not None and seen in self.mounts()

    @abc.abstractmethod
    def is_relic(self, mounted: Mount) -> bool:
        """Tell whether a mount shows the volume as it was on a disk that is lost or replaced.

        It is for undoing only: a relic is neither staged nor published.
        """

    def is_staged(self, path: str) -> bool:
        """Tell whether the volume is staged at `path`, as far as the kernel knows."""
        return self.is_seen(path)

    def holder(self) -> str | None:
        """Return what uses the volume besides its mounts, or None."""
        return None

    def refuse_strangers(self) -> None:
        """Refuse to go on while somebody else has attached a device to the data."""

    def release(self) -> None:
        """Free what staging took besides the mount."""

    def unmount(self, path: str) -> None:
        """Undo the topmost mount at `path`, and what only it took."""
        self.kernel.unmount(path)

    def publish(self, source: str, target: str, capability: Capability, *, readonly: bool) -> None:
        """Make the volume that is staged at `source` visible at `target`, which exists."""
        self.bind(source, target, attributes(capability, readonly=readonly))

    def bind(self, source: str, target: str, change: Attributes) -> None:
        """Bind `source` to `target` with changed attributes, or say why they cannot be changed."""
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
        """Free what published targets took and no longer need."""

    # Health

    @property
    def healthy_path(self) -> str:
        """The directory whose presence alone rules out `faults`; empty where it takes more."""
        return ""

    @abc.abstractmethod
    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the data, each found by looking at it now."""

    # Snapshots

    @property
    def shares(self) -> bool:
        """Whether copies of this in its own pool share blocks, and so are made at once."""
        return False

    @abc.abstractmethod
    def occupied(self) -> int:
        """Return how many bytes of the pool the data occupies, shared blocks included."""

    @abc.abstractmethod
    def owned(self, *, shares: bool) -> int:
        """Return how many bytes of its size the volume can rewrite without room in the pool.

        At least these are known to be its own; `shares` says that it may share blocks with others.
        """

    def written_at(self) -> str | None:
        """Return where somebody may be writing to the volume now, or None where nobody can."""
        writable = [item.target for item in self.mounts() if not item.readonly]
        return writable[0] if writable else self.holder()

    def freezable(self) -> bool:
        """Tell whether the volume is in use, as a filesystem of its own that can be frozen."""
        return False

    def prepare_capture(self) -> None:
        """Bring the volume to a state of which a capture is good; nobody may use it if idle."""

    @abc.abstractmethod
    def capture(self, source: "Backend", progress: Progress, *, point_in_time: bool) -> None:
        """Become a snapshot's copy of `source`, which is of the same kind.

        Without `point_in_time` files of different moments will do. `progress` is called now and
        then; what it raises ends the copy.
        """

    @abc.abstractmethod
    def restore(self, source: "Backend", progress: Progress) -> int | None:
        """Become a volume's copy of `source`, of one point in time; return its project id.

        The volume may be larger than its source, not smaller; `adapt` is still to be called.
        """

    @abc.abstractmethod
    def adapt(self, source: Volume, project: int | None) -> None:
        """Make what `restore` has copied from `source`, returning `project`, this volume's own.

        Then it is as large as it shall be, durable, and usable beside its source.
        """

    @abc.abstractmethod
    def make_durable(self) -> None:
        """Make what `capture` has copied durable, when the source may be written to again."""


def attributes(capability: Capability, *, readonly: bool) -> Attributes:
    """Return what a capability changes of a mount's attributes; read-only wins over `rw`."""
    change = attributes_of(mountflags.split(capability.mount_flags))
    if readonly or capability.readonly:
        return change._replace(set=change.set | MOUNT_ATTR_RDONLY)
    return change
