"""Running btrfs' own programs, which examine every mount of the node before they touch an image.

They ask each loop device that a filesystem is mounted from for its backing file, to see whether it
is the image. If one is unmounted at that moment, or lies on a disk that has failed, they give up,
whatever the image; they have written nothing by then.
"""

import contextlib
import os
import threading
from pathlib import Path

from pycsi.linux import backing, namespace, program
from pycsi.linux.descriptor import DISK_FAULTS
from pycsi.linux.kernel import mountinfo
from pycsi.linux.mount import MNT_DETACH, umount2

_ATTEMPTS = 20
_CANNOT_CHECK = "cannot check mount status"
_DEVICE_HAS_GONE = "No such device"


def run(name: str, *arguments: str | Path) -> None:
    """Run a program of btrfs-progs; `program.ProgramError` if it fails for the image's own sake."""
    for _ in range(_ATTEMPTS):
        try:
            program.run(name, *arguments)
        except program.ProgramError as error:
            if _DEVICE_HAS_GONE in str(error):
                continue
            if _CANNOT_CHECK not in str(error):
                raise
            _run_without_failed_disks(name, *arguments)
        return
    program.run(name, *arguments)


def _run_without_failed_disks(name: str, *arguments: str | Path) -> None:
    """Run a program where no filesystem is mounted whose backing file cannot be examined."""
    failures: list[Exception] = []

    def attempt() -> None:
        try:
            namespace.enter_mounts()
            _detach_failed()
            program.run(name, *arguments)
        except (OSError, program.ProgramError) as error:
            failures.append(error)

    # A thread has its mount namespace to itself, and the program inherits it (unshare(2)).
    thread = threading.Thread(target=attempt, name=name, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _detach_failed() -> None:
    """Detach what is mounted from loop devices with a failed disk, in this thread's namespace."""
    for item in reversed(mountinfo()):
        number = backing.number_of(item.source)
        path = None if number is None else backing.path_of(number)
        try:
            if path is not None:
                os.stat(path)
        except OSError as error:
            if error.errno in DISK_FAULTS:
                with contextlib.suppress(OSError):  # it lay below one that was detached before
                    umount2(item.target, MNT_DETACH)
