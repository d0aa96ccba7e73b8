"""The directory or file at a path that others have made, examined without following links."""

import dataclasses
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePath

from pycsi.linux import holders, loop
from pycsi.linux.descriptor import opened
from pycsi.linux.kernel import Mount, MountTable
from pycsi.linux.location import Location
from pycsi.linux.survey import Survey, survey

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Unfit(Exception):
    """What is at the path cannot be adopted; the message says why, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """What is at `path`, which has no symbolic links, and where on which filesystem that is."""

    path: Path
    status: os.stat_result
    location: Location

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    def lies_in(self, other: Location) -> bool:
        """Tell whether it is, or lies below, the directory at `other`, by whatever mount."""
        return self.location.device == other.device and PurePath(self.location.root).is_relative_to(
            other.root
        )

    def contains(self, other: Location) -> bool:
        """Tell whether the directory at `other` lies below it, by whatever mount."""
        return self.location.device == other.device and PurePath(other.root).is_relative_to(
            self.location.root
        )


def resolved(text: str) -> Path:
    """Return a path whose parents are resolved, but whose last name may be a symbolic link.

    `Unfit` if it is not absolute, goes up by "..", or is the root.
    """
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts:
        raise Unfit(f"{text} is not a whole path: begin it with /, and leave .. out")
    if path == Path("/"):
        raise Unfit("it is the root of the node's filesystem")
    return Path(os.path.realpath(path.parent)) / path.name


def examine(path: Path) -> Source:
    """Return what is at a path; `Unfit` if it is neither a directory nor a file of its own."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise Unfit(f"it is a symbolic link to {path.readlink()}; give that path")
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise Unfit("it is neither a directory nor an image file")
        if found := MountTable().at(str(path)):
            raise Unfit(
                f"{found[-1].fstype} {found[-1].source} is mounted there; unmount it, or give a "
                "directory in it"
            )
        with opened(path, _FLAGS) as fd:
            return Source(path, os.fstat(fd), Location.of(path, fd))
    except FileNotFoundError:
        raise Unfit("it is not there, on this node") from None
    except OSError as error:
        raise Unfit(f"it cannot be read: {error.strerror}") from None


@dataclasses.dataclass(frozen=True, slots=True)
class Uses:
    """What uses the filesystem with the number `device`: see `holders.of_filesystem`."""

    device: int
    mounts: Iterable[Mount]
    files: dict[tuple[int, int], str]

    @classmethod
    def of(cls, device: int) -> "Uses":
        return cls(device, *holders.of_filesystem(device))

    def shown(self, root: str) -> list[str]:
        """Return the mounts, in any namespace, of the path `root` on the filesystem."""
        return [
            f"a mount at {item.target}"
            for item in self.mounts
            if f"{item.origin}/".startswith(f"{root.rstrip('/')}/")
        ]


def look_into(path: Path, root: str, uses: Uses) -> Survey:
    """Return what is in a directory or an image, with all that uses it.

    `root` is the path on its filesystem. `Unfit` if there is a mount or a subvolume in it.
    """
    try:
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            found = survey(path, uses.files)
        else:
            found = Survey(occupied=status.st_blocks * 512, entries=1)
            found.users += filter(None, [uses.files.get((status.st_dev, status.st_ino))])
            found.users += [f"{device.path}, a loop device on it" for device in loop.find(path)]
    except OSError as error:
        raise Unfit(f"{error.filename or path}: {error.strerror}") from None
    found.users += uses.shown(root)
    return found
