"""The demo's scratch directory, and the pools in it.

The demo changes nothing on the machine for good. In particular, quotas are never switched on in an
existing btrfs, as a driver does in its pools: there the pool gets its own filesystem.
"""

import contextlib
import dataclasses
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pycsi.backends.limiter_choice import limiter_name
from pycsi.backends.quotagroups import SubvolumeLimiter
from pycsi.cli.errors import CommandError
from pycsi.linux import (
    filecopy,
    kernel,
    loop,
    losetup,
    mkfs,
    mount,
)
from pycsi.model.size import GIB, show

_DISK = 2 * GIB
_NEEDED = GIB


class CannotWork(CommandError):
    """The demo cannot run on this machine; the message says why, and what to change."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DemoPool:
    """A pool for the driver.

    `limiter` names the way in which the pool limits directories, None if it cannot. `shares`: files
    in the pool can share blocks.
    """

    name: str
    path: Path
    fstype: str
    limiter: str | None
    shares: bool

    @property
    def option(self) -> str:
        """The driver's option for the pool; it allows a filesystem in memory."""
        return f"--pool={self.name}={self.path},allow-volatile"


@contextlib.contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """Make an empty directory in `parent`, by default among temporary files; remove it at the end.

    `CannotWork` if the directory cannot be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    try:
        folder = tempfile.TemporaryDirectory(prefix="pycsi-demo-", dir=parent)
    except OSError as error:
        raise CannotWork(f"{parent}: {error.strerror}; give another --directory") from None
    with folder as name:
        root = Path(name).resolve()
        try:
            yield root
        finally:
            _free_devices(root)
            _unmount_below(root)


def _free_devices(root: Path) -> None:
    """Detach the loop devices of raw block volumes that an interrupted demo has left."""
    for image in root.glob("*/volumes/*/disk.img"):
        for device in loop.find(image):
            losetup.detach(device)


def _unmount_below(root: Path) -> None:
    for item in reversed(kernel.mountinfo()):
        if Path(item.target).is_relative_to(root):
            mount.umount2(item.target, mount.MNT_DETACH | mount.UMOUNT_NOFOLLOW)


def loops_available() -> bool:
    """Tell whether this process can use loop devices, and so images."""
    try:
        os.close(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def lacking(kind: str, root: Path) -> str | None:
    """Return what this machine lacks for images with the filesystem `kind`, or None.

    `root` is any existing directory.
    """
    if missing := mkfs.missing_programs(kind):
        return f"{', '.join(missing)} not found; install {mkfs.PACKAGES[kind]}"
    try:
        # This mount always fails, but with ENODEV if the kernel does not have the filesystem.
        mount.mount(kind, Path("/dev/null"), root)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return f"the running kernel was built without {kind}"
    return None


def make_pools(root: Path, *, as_root: bool) -> list[DemoPool]:
    """Make the pool `default`, and if it cannot limit directories or share blocks, another.

    The second pool can do both; it is on btrfs in an image, if root and the machine allow that.
    """
    if as_root and loops_available():
        _check_room(root)
    first = _pool("default", root / "default")
    if first.limiter and first.shares and as_root:
        return [first]
    can_have_disk = as_root and loops_available() and lacking("btrfs", root) is None
    if first.fstype != "btrfs" and (first.limiter is None or as_root):
        return [first, _on_disk("btrfs", root)] if can_have_disk else [first]
    # Here quotas could be set only by root, or the driver would switch them on for good.
    if can_have_disk:
        return [_on_disk("default", root)]
    mount.mount("tmpfs", Path("pycsi-demo"), first.path)
    return [dataclasses.replace(first, fstype="tmpfs", limiter=None, shares=False)]


def _pool(name: str, path: Path) -> DemoPool:
    path.mkdir()
    fstype = kernel.mount_under(path).fstype
    with tempfile.NamedTemporaryFile(dir=path) as probe:  # gone before the driver starts
        probe.write(b"probe")
        probe.flush()
        shares = filecopy.can_reflink(Path(probe.name))
    return DemoPool(
        name=name, path=path, fstype=fstype, limiter=limiter_name(path, fstype), shares=shares
    )


def _on_disk(name: str, root: Path) -> DemoPool:
    """Make a pool on a new btrfs in a sparse file; `scratch` unmounts it with all below `root`."""
    image = root / f"{name}.img"
    with image.open("xb") as file:
        file.truncate(_DISK)
    mkfs.make("btrfs", image)
    path = root / name
    path.mkdir(exist_ok=True)
    with losetup.attach(image, autoclear=True, name="pycsi-demo") as device:
        # A commit gives back the room of what was deleted; by default there is one in 30 seconds.
        mount.mount("btrfs", device.path, path, ["commit=1"])
    return DemoPool(
        name=name, path=path, fstype="btrfs", limiter=SubvolumeLimiter.name, shares=True
    )


def _check_room(root: Path) -> None:
    """Raise `CannotWork` unless `root` has room for the largest image when it is full."""
    facts = os.statvfs(root)
    free = facts.f_bavail * facts.f_frsize
    if free < _NEEDED:
        raise CannotWork(
            f"{root.parent}: {show(free)} free, {show(_NEEDED)} needed for a while; give another "
            "--directory"
        )
