"""Unmounting what somebody may hold: refused, unless that protects nothing any more."""

import errno
from collections.abc import Callable

import structlog

from pycsi.linux import holders
from pycsi.linux.kernel import KernelView
from pycsi.linux.mounttable import Mount
from pycsi.linux.shutdown import is_shut_down
from pycsi.model.errors import FailedPrecondition

log = structlog.get_logger()


def unmount(volume_id: str, mounted: Mount, kernel: KernelView, act: Callable[[str], None]) -> None:
    """Undo a mount by `act`, which is given its target, or say who holds it.

    What was shut down is detached though somebody holds it, who may never end: nothing is written
    to it any more. But not with another filesystem mounted in it.
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
