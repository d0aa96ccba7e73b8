"""Where a directory lies: by which mount one sees it, and where that is on its filesystem."""

import dataclasses
import os
from pathlib import Path
from typing import Self

from pycsi.linux.btrfs import is_subvolume
from pycsi.linux.mount import mount_of
from pycsi.linux.mounttable import Mount, MountTable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """The directory `path` on the filesystem `mount`.

    `real_path` is the same without symbolic links, `root` its path from the filesystem's own root.
    Below the directory there are no symbolic links to what is asked about.
    """

    path: Path
    real_path: Path
    mount: Mount
    root: str

    @classmethod
    def of(cls, path: Path, fd: int) -> Self:
        """Find out for a directory that is open as `fd`."""
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
        """Return the same as it is now: somebody may have renamed a directory above, elsewhere.

        The kernel tells it of a part of a filesystem that is mounted here.
        """
        mount = mounts.numbered(self.mount.id)
        if mount is None or mount.root == self.mount.root:
            return self
        inside = os.path.relpath(self.root, self.mount.root)
        root = os.path.normpath(os.path.join(mount.root, inside))
        return dataclasses.replace(self, mount=mount, root=root)

    @property
    def device(self) -> int:
        """The filesystem's device number."""
        return self.mount.device

    @property
    def is_disk(self) -> bool:
        """Whether a whole filesystem, or a btrfs subvolume, is mounted at the directory.

        A container has something mounted there in any case: its part of the host's disk.
        """
        mount, path = self.mount, self.real_path
        whole = mount.root == "/" or (mount.fstype == "btrfs" and is_subvolume(path))
        return whole and mount.target == str(path)

    def root_of(self, place: str) -> str:
        """Return the path of what lies below, from the filesystem's own root."""
        return f"{self.root.rstrip('/')}{self._inside(place)}"

    def real(self, place: str) -> str:
        """Return the path of what lies below, without symbolic links."""
        return f"{self.real_path}{self._inside(place)}"

    def below_mount(self, place: str) -> str:
        """Return the path of what lies below from the root of the mount through which it is seen.

        So the kernel calls it where that mount has gone.
        """
        return f"/{os.path.relpath(self.real(place), self.mount.target)}"

    def _inside(self, place: str) -> str:
        return place.removeprefix(str(self.path))
