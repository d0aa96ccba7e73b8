"""The location of a directory: the mount that shows it, and its place on the filesystem."""

import dataclasses
import os
from pathlib import Path
from typing import Self

from pycsi.linux.btrfs import is_subvolume
from pycsi.linux.kernel import Mount, MountTable, mount_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """The location of the directory `path`, which is seen through `mount`.

    `real_path` is `path` without symbolic links; `root` is the directory's path from the root of
    its filesystem. The paths that the methods take lie below `path`, with no symbolic link there.
    """

    path: Path
    real_path: Path
    mount: Mount
    root: str

    @classmethod
    def of(cls, path: Path, fd: int) -> Self:
        """Return the location of the directory `path`, which is open as `fd`."""
        mount = mount_of(fd)
        real_path = Path(os.path.realpath(path))
        inside = os.path.relpath(real_path, mount.target)
        return cls(
            path=path,
            real_path=real_path,
            mount=mount,
            root=os.path.normpath(os.path.join(mount.root, inside)),
        )

    def seen_in(self, mounts: MountTable) -> Self:
        """Return the location as of `mounts`: a directory above may have been renamed elsewhere.

        mountinfo shows such a rename if only a part of the filesystem is mounted here.
        """
        mount = mounts.numbered(self.mount.id)
        if mount is None or mount.root == self.mount.root:
            return self
        inside = os.path.relpath(self.root, self.mount.root)
        root = os.path.normpath(os.path.join(mount.root, inside))
        return dataclasses.replace(self, mount=mount, root=root)

    @property
    def device(self) -> int:
        """The device number of the filesystem."""
        return self.mount.device

    @property
    def is_disk(self) -> bool:
        """Whether a whole filesystem, or a btrfs subvolume, is mounted at the directory.

        A mount point is not enough: in a container a directory of the host's disk is one too.
        """
        mount, path = self.mount, self.real_path
        whole = mount.root == "/" or (mount.fstype == "btrfs" and is_subvolume(path))
        return whole and mount.target == str(path)

    def root_of(self, place: str) -> str:
        """Return the path of `place` from the root of the filesystem."""
        return f"{self.root.rstrip('/')}{self._inside(place)}"

    def real(self, place: str) -> str:
        """Return the path of `place` without symbolic links."""
        return f"{self.real_path}{self._inside(place)}"

    def below_mount(self, place: str) -> str:
        """Return the path of `place` from the root of the mount through which it is seen.

        The kernel shows this path once that mount is gone.
        """
        return f"/{os.path.relpath(self.real(place), self.mount.target)}"

    def _inside(self, place: str) -> str:
        return place.removeprefix(str(self.path))
