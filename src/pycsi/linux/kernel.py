"""What the kernel has mounted and attached, and changing what is mounted."""

import functools
from collections.abc import Iterable
from pathlib import Path

from pycsi.linux import loop, mount
from pycsi.linux.mounttable import Mount, MountIndex, MountTable


class Kernel:
    """The kernel, for one operation.

    What is mounted is read when it is asked for first, and again when this has changed it.
    """

    def __init__(self) -> None:
        self._mounts: MountTable | None = None

    @property
    def mounts(self) -> MountTable:
        """What this process sees mounted."""
        if self._mounts is None:
            self._mounts = MountTable()
        return self._mounts

    def topmost(self, path: Path) -> Mount | None:
        """Return the mount that one sees at `path`, or None where nothing is mounted."""
        found = self.mounts.at(str(path))
        return found[-1] if found else None

    def loops(self, file: Path) -> list[loop.LoopDevice]:
        """Return the loop devices that are bound to `file`."""
        return loop.find(file)

    def bind(self, source: Path, target: Path, attributes: int = 0) -> None:
        """See `mount.bind`."""
        self._mounts = None
        mount.bind(source, target, attributes)

    def mount(
        self,
        fstype: str,
        source: Path,
        target: Path,
        options: Iterable[str] = (),
        attributes: int = 0,
    ) -> None:
        """See `mount.mount`."""
        self._mounts = None
        mount.mount(fstype, source, target, options, attributes)

    def unmount(self, target: Path) -> None:
        """See `mount.unmount`."""
        self._mounts = None
        mount.unmount(target)


class Glance(Kernel):
    """The kernel as it was at the first question: to look at many volumes at once."""

    @functools.cached_property
    def mounts(self) -> MountTable:
        return MountIndex()

    @functools.cached_property
    def _loops(self) -> dict[tuple[int, int], list[loop.LoopDevice]]:
        return loop.bound()

    def loops(self, file: Path) -> list[loop.LoopDevice]:
        try:
            status = file.stat()
        except FileNotFoundError:
            return []
        return self._loops.get((status.st_dev, status.st_ino), [])
