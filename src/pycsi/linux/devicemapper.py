"""Mappings of the kernel's device mapper, which present a block device as another one (dm-ioctl.h).

Those on a loop device, and the one under a mapping, are read from sysfs.
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from pycsi.linux.descriptor import closing, opened

DM_DEFERRED_REMOVE = 1 << 17
DM_DEV_REMOVE = 0xC138FD04
DM_GET_TARGET_VERSION = 0xC138FD11

_CONTROL = Path("/dev/mapper/control")
_NODE = re.compile(r"(?:/dev)?/dm-(\d+)")
_REQUEST = struct.Struct("=3I2IIiIIIQ128s129s7s")
"""`struct dm_ioctl`."""

_ROOM = 512
"""More bytes than a request and what the kernel answers about a target."""

_VERSION = 4, 0, 0
_SYSFS = "/sys/block"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A mapping: its number, by which the kernel names the block device, and its own name.

    `device` is the number of the block device.
    """

    number: int
    name: str = dataclasses.field(compare=False)
    device: int = dataclasses.field(compare=False)

    @property
    def node(self) -> str:
        """The name of the device node in /dev."""
        return f"dm-{self.number}"

    @property
    def path(self) -> Path:
        return Path("/dev", self.node)


def on_loop(number: int) -> list[Mapping]:
    """Return the mappings that are on the loop device with a number."""
    try:
        holders = os.listdir(f"{_SYSFS}/loop{number}/holders")
    except FileNotFoundError:
        return []
    found = (_mapping(int(name[3:])) for name in holders if name.startswith("dm-"))
    return [mapping for mapping in found if mapping]


def _mapping(number: int) -> Mapping | None:
    place = Path(_SYSFS, f"dm-{number}")
    with contextlib.suppress(OSError):  # removed since
        major, _, minor = (place / "dev").read_text().strip().partition(":")
        name = (place / "dm/name").read_text().strip()
        found = Mapping(number=number, name=name, device=os.makedev(int(major), int(minor)))
        if not found.path.exists():
            # In a container, where /dev is a private tmpfs, nothing makes the nodes.
            with contextlib.suppress(FileExistsError):
                os.mknod(found.path, stat.S_IFBLK | 0o660, found.device)
        return found
    return None


def shown(node: str) -> Mapping | None:
    """Return the mapping whose device node is at a path, such as /dev/dm-7, or /dm-7 from /dev."""
    found = _NODE.fullmatch(node)
    return _mapping(int(found[1])) if found else None


def is_node(node: str) -> bool:
    """Tell whether a path is that of a mapping's device node, whether there is one or not."""
    return _NODE.fullmatch(node) is not None


def loop_under(number: int) -> int | None:
    """Return the number of the loop device under a mapping; None if there is none."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{_SYSFS}/dm-{number}/slaves"):
            if name.startswith("loop"):
                return int(name[4:])
    return None


def remove(mapping: Mapping, *, deferred: bool = False) -> None:
    """Remove a mapping; EBUSY while it is in use. One that is gone is fine.

    With `deferred` one that is in use is removed by the kernel when its last user is gone. The node
    that a killed program has made beside the kernel's own is removed at once: nothing else would.
    """
    Path("/dev/mapper", mapping.name).unlink(missing_ok=True)
    try:
        _ask(DM_DEV_REMOVE, mapping.name, DM_DEFERRED_REMOVE if deferred else 0)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise


def refusal(target: str) -> str | None:
    """Return why this kernel has no mappings of the type `target`, such as "crypt"; None if it has.

    The kernel loads the module of that type, if need be.
    """
    try:
        _ask(DM_GET_TARGET_VERSION, target)
    except FileNotFoundError:
        return "this kernel has no device mapper; load its module dm_mod"
    except PermissionError as error:
        return f"this process may not use the device mapper ({error.strerror})"
    except OSError as error:
        if error.errno in {errno.ENODEV, errno.ENXIO}:
            return "this kernel has no device mapper; load its module dm_mod"
        return f"this kernel has no dm-{target} ({error.strerror}); load its module dm_{target}"
    return None


def _ask(command: int, name: str, flags: int = 0) -> None:
    request = bytearray(_ROOM)
    head = (*_VERSION, _ROOM, _REQUEST.size, 0, 0, flags, 0, 0, 0, name.encode(), b"", b"")
    _REQUEST.pack_into(request, 0, *head)
    with _control() as control:
        fcntl.ioctl(control, command, request, True)


def _control() -> closing:
    try:
        return opened(_CONTROL, os.O_RDWR)
    except FileNotFoundError:
        number = _control_number()
        if number is None:
            raise
    _CONTROL.parent.mkdir(mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mknod(_CONTROL, stat.S_IFCHR | 0o600, number)
    return opened(_CONTROL, os.O_RDWR)


def _control_number() -> int | None:
    """Return the number of the device mapper's control device; None if the kernel has none."""
    misc = 10
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/misc").read_text().splitlines():
            minor, _, name = line.strip().partition(" ")
            if name == "device-mapper":
                return os.makedev(misc, int(minor))
    return None


@contextlib.contextmanager
def held(mapping: Mapping) -> Iterator[Mapping]:
    """Keep a mapping through the `with` block, and then as long as a filesystem on it is mounted.

    ENXIO if it is gone.
    """
    with opened(mapping.path):
        remove(mapping, deferred=True)
        yield mapping
