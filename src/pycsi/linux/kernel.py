"""What the kernel has mounted and attached now: asked each time, or once for many questions."""

import functools
from pathlib import Path

from pycsi.linux import loop, mount


class Kernel:
    """The kernel's answers, each asked for when it is wanted."""

    def mounts(self) -> list[mount.Mount]:
        """Return what this process sees mounted, in the order of mounting."""
        return mount.mountinfo()

    def loops(self, file: Path) -> list[loop.LoopDevice]:
        """Return the loop devices that are bound to `file`."""
        return loop.find(file)


class Glance(Kernel):
    """The kernel's answers as they were at the first question: to look at many volumes at once."""

    @functools.cached_property
    def _mounts(self) -> list[mount.Mount]:
        return mount.mountinfo()

    @functools.cached_property
    def _loops(self) -> dict[tuple[int, int], list[loop.LoopDevice]]:
        return loop.bound()

    def mounts(self) -> list[mount.Mount]:
        return self._mounts

    def loops(self, file: Path) -> list[loop.LoopDevice]:
        try:
            status = file.stat()
        except FileNotFoundError:
            return []
        return self._loops.get((status.st_dev, status.st_ino), [])
