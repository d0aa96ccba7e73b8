"""The paths of loop devices' backing files, as the kernel recorded them when they were bound.

They are read from sysfs, without opening the files: on a failed disk these are out of reach, and on
XFS not even the status of the loop device can be queried.
"""

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from pycsi.linux import devicemapper, loop
from pycsi.linux.descriptor import read_file
from pycsi.linux.kernel import Mount

_DELETED = " (deleted)"
_NODE = re.compile(r"(?:/dev)?/loop(\d+)")
_SYSFS = "/sys/block"


def number_of(node: str) -> int | None:
    """Return the number in a loop device's path, such as /dev/loop7, or /loop7 from /dev's root.

    With the path of a mapping's device it is that of the loop device under the mapping.
    """
    if found := _NODE.fullmatch(node):
        return int(found[1])
    mapping = devicemapper.shown(node)
    return devicemapper.loop_under(mapping.number) if mapping else None


def number_shown(mount: Mount) -> int | None:
    """Return the number of the loop device that a mount shows: its node, or its filesystem.

    There may be a mapping in between.
    """
    return number_of(mount.root if mount.fstype in {"devtmpfs", "tmpfs"} else mount.source)


def path_of(number: int) -> str | None:
    """Return the path of a loop device's backing file; None if there is none, or it is too long.

    If the file's mount is gone, the path begins at the root of that mount.
    """
    text = _shown(number)
    return text.removesuffix(_DELETED) if text else None


def is_deleted(number: int) -> bool:
    """Tell whether a loop device's backing file was deleted.

    One that is there only in another mount namespace was not.
    """
    return (_shown(number) or "").endswith(_DELETED)


def _shown(number: int) -> str | None:
    with contextlib.suppress(OSError):
        text = read_file(f"{_SYSFS}/loop{number}/loop/backing_file")
        return os.fsdecode(text.removesuffix(b"\n"))
    return None


def is_named(number: int, name: str) -> bool:
    """Tell whether `losetup.attach` gave the device this name."""
    status = loop.status_of(number)
    return status is not None and loop.described(status).is_named(name)


def on_top_of(number: int) -> list[loop.LoopDevice]:
    """Return the loop devices that are bound to the device node of this one, by whatever path."""
    return on_device(os.makedev(loop.LOOP_MAJOR, number))


def on_device(device: int) -> list[loop.LoopDevice]:
    """Return the loop devices that are bound to a node of the block device with this number."""
    found = (loop.status_of(other) for other in loop.numbers())
    return [loop.described(status) for status in found if status and status.lo_rdevice == device]


def devices_on(paths: Collection[str]) -> list[loop.LoopDevice]:
    """Return the loop devices whose recorded backing file is at one of these paths."""
    return [
        found
        for number in loop.numbers()
        if path_of(number) in paths and (found := device_of(number)) is not None
    ]


def device_of(number: int) -> loop.LoopDevice | None:
    """Return the loop device with a number, as sysfs describes it; None if it is not bound."""
    place = Path(_SYSFS, f"loop{number}")
    with contextlib.suppress(OSError):  # freed since
        return loop.LoopDevice(
            number=number,
            readonly=(place / "ro").read_text().strip() != "0",
            autoclear=(place / "loop/autoclear").read_text().strip() != "0",
        )
    return None
