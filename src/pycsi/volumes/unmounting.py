"""Unmounting volumes, which is refused while they are in use, unless their disk has failed."""

import errno
from collections.abc import Callable

import structlog

from pycsi.linux import holders
from pycsi.linux.kernel import KernelView, Mount
from pycsi.linux.shutdown import is_shut_down
from pycsi.model.errors import FailedPrecondition

log = structlog.get_logger()


def unmount(volume_id: str, mounted: Mount, kernel: KernelView, act: Callable[[str], None]) -> None:
    """Unmount a volume by `act`, which is given the target of the mount.

    `FailedPrecondition`, which names the processes that use it, if the mount is busy. But a
    filesystem that was shut down is detached all the same (MNT_DETACH, umount(2)): nothing is
    written to it any more, and its users may never end. A filesystem mounted in it forbids that.
    """
    try:
        act(mounted.target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        who = holders.named(holders.of_mount(mounted))
        if any(item.parent == mounted.id for item in kernel.mounts) or not is_shut_down(mounted):
            raise FailedPrecondition(
                f"volume {volume_id}: {mounted.target} is in use by {who}; end that"
            ) from None
        log.warning(
            "detached while it is in use: its filesystem was shut down",
            volume=volume_id,
            path=mounted.target,
            used_by=who,
        )
        kernel.unmount_lazily(mounted.target)
