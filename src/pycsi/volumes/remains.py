"""Mounts that are left of a volume that no pool has: its disk failed, or it was deleted by hand.

They are identified by the path that the kernel recorded for the mounted directory or the image of
the loop device: it contains the volume's id, and with that the node's.
"""

import contextlib

from pycsi.linux import backing, devicemapper
from pycsi.linux.kernel import KernelView, Mount
from pycsi.volumes.unmounting import unmount


def undo(volume_id: str, path: str) -> bool:
    """Unmount the volume from `path`; return whether it was mounted there.

    `FailedPrecondition` if the mount is in use: see `unmount`.
    """
    kernel, undone = KernelView(), False
    while (seen := kernel.mounts.topmost(path)) and _shows(seen, volume_id):
        unmount(volume_id, seen, kernel, kernel.unmount)
        _free(kernel, seen)
        undone = True
    return undone


def _shows(mounted: Mount, volume_id: str) -> bool:
    if mounted.origin.endswith(f"/volumes/{volume_id}/data"):
        return True
    number = backing.number_shown(mounted)
    path = None if number is None else backing.path_of(number)
    return path is not None and path.endswith(f"/volumes/{volume_id}/disk.img")


def _free(kernel: KernelView, unmounted: Mount) -> None:
    """Free the block device whose node was mounted, if that is mounted nowhere else."""
    if mapping := devicemapper.shown(unmounted.root):
        if not kernel.mounts.showing(unmounted.root):
            with contextlib.suppress(OSError):  # it is in use
                devicemapper.remove(mapping)  # and the kernel frees the loop device with it
        return
    number = backing.number_of(unmounted.root)
    if number is None or kernel.mounts.showing(unmounted.root):
        return
    if device := backing.device_of(number):
        kernel.detach(device)
