"""A volume that is a directory, limited by a quota where it is enforced."""

from pathlib import Path

from pycsi.backends import Backend, attributes
from pycsi.limits import filesystem_usage
from pycsi.linux import mount
from pycsi.model import Capability, Usage
from pycsi.store import sync_directory

DATA = "data"


class Directory(Backend):
    """`<place>/data`: a subvolume on btrfs, a plain directory elsewhere."""

    @property
    def data(self) -> Path:
        return self.place / DATA

    def create(self) -> int | None:
        size = self.volume.capacity if self.volume.enforced else None
        project = self.limiter.make(self.data, size)
        sync_directory(self.data)
        return project

    def resize(self, size: int) -> None:
        if self.volume.enforced:
            self.limiter.limit(self.data, self.volume.project, size)

    def mounts(self) -> list[mount.Mount]:
        inside = self.data.resolve().relative_to(self.ground.target)
        root = f"{self.ground.root.rstrip('/')}/{inside}"
        return [
            item
            for item in mount.mountinfo()
            if item.device == self.ground.device
            and (item.root == root or item.root.startswith(f"{root}/"))
        ]

    def stage(self, path: Path, capability: Capability, *, readonly: bool = False) -> None:
        if self.volume.enforced:
            self.limiter.limit(self.data, self.volume.project, self.volume.capacity)
        mount.bind(self.data, path, attributes(capability, readonly=readonly))

    def usage(self, path: Path) -> Usage:
        if not self.volume.enforced:
            return filesystem_usage(path)
        return self.limiter.usage(self.data, self.volume.project, self.volume.capacity)
