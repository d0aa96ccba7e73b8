"""Finding the loop devices on an image whose disk was lost or replaced, or whose pool was moved."""

import os

from pycsi.linux import backing, loop
from pycsi.linux.kernel import Mount
from pycsi.linux.location import Location


def devices_of(
    image: str, location: Location, current: list[loop.LoopDevice]
) -> list[loop.LoopDevice]:
    """Return the loop devices that are bound to the file that was at the path `image` before.

    `image` is in the pool at `location`, and the devices `current` are bound to the file there now.
    Devices on a file that still exists at its path elsewhere are left out.
    """
    here = location.real(image)
    lost = location.below_mount(image)
    there = {here, lost} if here == lost or not os.path.exists(lost) else {here}
    found = [item for item in backing.devices_on(there) if item not in current]
    return found or ([] if os.path.exists(image) else _moved(image, location))


def _moved(image: str, location: Location) -> list[loop.LoopDevice]:
    """Return the loop devices bound to the image before its pool's directory was moved."""
    statuses = [(number, loop.status_of(number)) for number in loop.numbers()]
    return [
        loop.described(status)
        for number, status in statuses
        if status and status.lo_device == location.device and _is_path(number, image)
    ]


def is_shown(mounted: Mount, image: str, volume_id: str) -> bool:
    """Tell whether a mount shows a device that was bound to the image of a volume."""
    number = backing.number_shown(mounted)
    if number is None:
        return False
    return _is_path(number, image) or backing.is_named(number, volume_id)


def _is_path(number: int, image: str) -> bool:
    """Tell whether a loop device's backing file has the image's path within some pool."""
    inside = "/".join(image.split("/")[-3:])  # volumes/ID/disk.img
    return (backing.path_of(number) or "").endswith(f"/{inside}")
