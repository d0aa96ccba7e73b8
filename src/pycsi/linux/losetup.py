"""Binding files to loop devices, and unbinding them, as losetup(8) does.

`attach` passes the file, the sector size and the flags to the kernel in a single `LOOP_CONFIGURE`,
so a device is never bound with only some of them. Needs Linux 5.8.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pycsi.linux import discard, loop
from pycsi.linux.descriptor import closing, opened

LOOP_CLR_FD = 0x4C01
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_ADD = 0x4C80
LOOP_CTL_GET_FREE = 0x4C82
LOOP_CTL_REMOVE = 0x4C81
LOOP_SET_CAPACITY = 0x4C07
LO_FLAGS_DIRECT_IO = 16

SMALLEST_SECTOR = 512
"""The sector size, in bytes, that every filesystem and every partition table supports."""

_ATTEMPTS = 64
_CONTROL = "/dev/loop-control"
_NO_DEVICES = frozenset(
    {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTTY, errno.EACCES, errno.EPERM}
)

_PATIENCE = 1.0
"""Seconds to wait for programs, such as udev, that open a device when its file is detached."""


class _LoopConfig(ctypes.Structure):
    """`struct loop_config` of <linux/loop.h>."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", loop.LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


def _unbound_number(*, new: bool) -> int:
    """Return the number of an unbound loop device; with `new`, add a device if possible."""
    try:
        with opened(_CONTROL, os.O_RDWR) as control:
            if new:
                # Linux before 5.14 adds none while one is free, but resets its refusal of discards.
                with contextlib.suppress(FileExistsError):
                    return fcntl.ioctl(control, LOOP_CTL_ADD, -1)
            return fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    except OSError as error:
        if error.errno not in _NO_DEVICES:
            raise OSError(error.errno, f"no loop device is left: {error.strerror}") from None
        reason = "no loop devices here; load the kernel's module loop, and give a container /dev"
        if isinstance(error, PermissionError):
            reason = "this process may not use loop devices; run it as root, a container privileged"
        raise OSError(errno.ENODEV, reason, _CONTROL) from None


@contextlib.contextmanager
def attach(
    file: Path,
    *,
    sector: int = SMALLEST_SECTOR,
    readonly: bool = False,
    autoclear: bool = False,
    new: bool = False,
    name: str = "",
) -> Iterator[loop.LoopDevice]:
    """Bind a free loop device to `file`, with direct I/O if the file's filesystem supports it.

    `sector` is the device's logical block size in bytes. The kernel's own choice would depend on
    whether the file shares blocks with another one, and so could differ from time to time.

    With `autoclear` the kernel frees the device when its last user closes it: it stays through the
    `with` block, and then as long as a filesystem on it is mounted. Without, it stays until
    `detach`. `name` is shown by losetup(8).

    A `new` device may be set to refuse discards, which cannot be undone; `remove_refusing` removes
    it after use. Any other device accepts discards if its file does.

    ENODEV if this process cannot use loop devices; EBUSY if other programs take every free one.
    """
    flags = LO_FLAGS_DIRECT_IO
    flags |= loop.LO_FLAGS_READ_ONLY if readonly else 0
    flags |= loop.LO_FLAGS_AUTOCLEAR if autoclear else 0
    with opened(file, os.O_RDONLY if readonly else os.O_RDWR) as backing:
        number, device = _configure(backing, flags, sector, name, file, new=new)
    with device:
        yield loop.LoopDevice(number=number, readonly=readonly, autoclear=autoclear)


def _configure(
    backing: int, flags: int, sector: int, name: str, file: Path, *, new: bool
) -> tuple[int, closing]:
    config = _LoopConfig()
    config.fd = backing
    config.block_size = sector
    config.info.lo_file_name = name.encode()[:63]
    config.info.lo_flags = flags
    refusing: list[closing] = []
    try:
        for _ in range(_ATTEMPTS):
            number = _unbound_number(new=new)
            device = _bind(number, config, file)
            if device is None:
                continue
            if new or not _refuses(number):
                return number, device
            refusing.append(device)  # stays bound until the end, so it is not found again
    finally:
        for device in refusing:
            fcntl.ioctl(device, LOOP_CLR_FD)
            os.close(device)
    raise OSError(errno.EBUSY, "every free loop device was taken by others", os.fspath(file))


def _bind(number: int, config: _LoopConfig, file: Path) -> closing | None:
    """Bind a loop device and return its descriptor; None if it was taken or removed meanwhile."""
    try:
        device = loop.open_device(number, os.O_RDWR)
    except OSError as error:
        if error.errno in loop.GONE:
            return None
        raise
    try:
        fcntl.ioctl(device, LOOP_CONFIGURE, config)
    except OSError as error:
        os.close(device)
        if error.errno == errno.EBUSY:
            return None
        raise OSError(error.errno, error.strerror, os.fspath(file)) from None
    return device


def _refuses(number: int) -> bool:
    try:
        return discard.is_refused(number)
    except OSError:
        return False  # not known without /sys


def set_capacity(device: loop.LoopDevice) -> None:
    """Set the size of the loop device to the current size of its file."""
    with loop.open_device(device.number, os.O_RDWR) as fd:
        fcntl.ioctl(fd, LOOP_SET_CAPACITY)


def flush(path: Path) -> None:
    """Write the cached data of the loop device at `path` to its file, durably (fsync(2))."""
    with opened(path) as fd:
        os.fsync(fd)


def remove_refusing() -> None:
    """Remove unbound loop devices that refuse discards, which their next file would inherit.

    They were used for thick files, by this driver or an older one. A device that is in use at the
    moment is left to the next call.
    """
    for number in loop.numbers(unbound=True):
        with contextlib.suppress(OSError):
            if discard.is_refused(number) and not Path(f"{loop.SYSFS}/loop{number}/loop").exists():
                _remove(number)


def _remove(number: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    with opened(_CONTROL, os.O_RDWR) as control:
        while True:
            try:
                fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(0.01)


def detach(device: loop.LoopDevice) -> None:
    """Unbind the device, if bound; while it is in use, the kernel does so at its last close."""
    with loop.open_device(device.number) as fd:
        try:
            fcntl.ioctl(fd, LOOP_CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:  # not bound
                raise
