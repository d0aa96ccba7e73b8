"""Mounts and loop devices as one operation sees them, and changes to them."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pycsi.linux import loop, mount
from pycsi.linux.libc import StrPath
from pycsi.linux.mounttable import MountIndex, MountTable


class KernelView:
    """The mounts and loop devices, cached for one operation.

    They are read on first use, and read again after a change through this object.
    """

    def __init__(self) -> None:
        self._mounts: MountTable | None = None
        self._loops: dict[Path, list[loop.LoopDevice]] = {}

    def invalidate(self) -> None:
        """Forget the mounts and loop devices, so that the next use reads them again."""
        self._mounts = None
        self._loops.clear()

    @property
    def mounts(self) -> MountTable:
        """The mounts in this process's mount namespace."""
        if self._mounts is None:
            self._mounts = MountTable()
        return self._mounts

    def loops(self, file: Path) -> list[loop.LoopDevice]:
        """Return the loop devices that are bound to `file`."""
        if file not in self._loops:
            self._loops[file] = loop.find(file)
        return self._loops[file]

    @contextlib.contextmanager
    def attach(self, file: Path, **how: Any) -> Iterator[loop.LoopDevice]:
        """See `loop.attach`."""
        try:
            with loop.attach(file, **how) as device:
                self.invalidate()
                yield device
        finally:
            self.invalidate()

    def detach(self, device: loop.LoopDevice) -> None:
        """See `loop.detach`."""
        self.invalidate()
        loop.detach(device)

    def bind(
        self, source: StrPath, target: StrPath, change: mount.Attributes = mount.UNCHANGED
    ) -> None:
        """See `mount.bind`."""
        self.invalidate()
        mount.bind(source, target, change)

    def mount(
        self,
        fstype: str,
        source: Path,
        target: StrPath,
        options: Iterable[str] = (),
        attributes: int = 0,
    ) -> None:
        """See `mount.mount`."""
        self.invalidate()
        mount.mount(fstype, source, target, options, attributes)

    def unmount(self, target: StrPath) -> None:
        """See `mount.unmount`."""
        self.invalidate()
        mount.unmount(target)

    def unmount_lazily(self, target: StrPath) -> None:
        """See `mount.unmount_lazily`."""
        self.invalidate()
        mount.unmount_lazily(target)


class IndexedKernelView(KernelView):
    """A view that is read once and indexed, to look at many volumes; changes do not refresh it."""

    @functools.cached_property
    def mounts(self) -> MountTable:
        return MountIndex()

    @functools.cached_property
    def _bound(self) -> dict[tuple[int, int], list[loop.LoopDevice]]:
        return loop.bound()

    def loops(self, file: Path) -> list[loop.LoopDevice]:
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return []
        return self._bound.get((status.st_dev, status.st_ino), [])
