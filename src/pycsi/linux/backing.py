"""The paths of loop devices' files, as the kernel recorded them when the devices were bound.

They are read without the files, whose disk may have failed: then nothing is to be had of these, and
of an XFS not even the status of the device.
"""

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from pycsi.linux import loop
from pycsi.linux.descriptor import read_file
from pycsi.linux.mounttable import Mount

_DELETED = " (deleted)"
_NODE = re.compile(r"(?:/dev)?/loop(\d+)")
_SYSFS = "/sys/block"


def number_of(node: str) -> int | None:
    """Return the number of the loop device whose node is at a path, in /dev or from its root."""
    found = _NODE.fullmatch(node)
    return int(found[1]) if found else None


def number_shown(mount: Mount) -> int | None:
    """Return the number of the loop device that a mount shows: its node, or a filesystem on it."""
    return number_of(mount.root if mount.fstype in {"devtmpfs", "tmpfs"} else mount.source)


def path_of(number: int) -> str | None:
    """Return the path of a device's file; None where there is none, or one that is too long.

    It is a path from the root of what was mounted, where that is not to be seen any more.
    """
    with contextlib.suppress(OSError):
        text = read_file(f"{_SYSFS}/loop{number}/loop/backing_file")
        return os.fsdecode(text.removesuffix(b"\n")).removesuffix(_DELETED)
    return None


def is_named(number: int, name: str) -> bool:
    """Tell whether `loop.attach` was given this name for a device; the kernel keeps 63 bytes."""
    status = loop.status_of(number)
    return status is not None and status.lo_file_name == name.encode()[:63]


def on_top_of(number: int) -> list[loop.LoopDevice]:
    """Return the loop devices whose file is the node of this one, by whatever path."""
    found = (loop.status_of(other) for other in loop.numbers())
    device = os.makedev(loop.LOOP_MAJOR, number)
    return [loop.described(status) for status in found if status and status.lo_rdevice == device]


def devices_on(paths: Collection[str]) -> list[loop.LoopDevice]:
    """Return the loop devices on whatever was at one of these paths."""
    return [
        found
        for number in loop.numbers()
        if path_of(number) in paths and (found := device_of(number)) is not None
    ]


def device_of(number: int) -> loop.LoopDevice | None:
    """Return the device with a number, as sysfs tells it; None where it is not bound."""
    place = Path(_SYSFS, f"loop{number}")
    with contextlib.suppress(OSError):  # freed since
        return loop.LoopDevice(
            number=number,
            readonly=(place / "ro").read_text().strip() != "0",
            autoclear=(place / "loop/autoclear").read_text().strip() != "0",
        )
    return None
