"""Loop devices, which present a file as a block device (loop(4)).

`attach` passes the file, the sector size and the flags to the kernel in a single `LOOP_CONFIGURE`,
so a device is never bound with only some of them. Needs Linux 5.8.
"""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pycsi.linux import discard
from pycsi.linux.descriptor import DISK_FAULTS, closing, opened

LOOP_CLR_FD = 0x4C01
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_ADD = 0x4C80
LOOP_CTL_GET_FREE = 0x4C82
LOOP_CTL_REMOVE = 0x4C81
LOOP_GET_STATUS64 = 0x4C05
LOOP_MAJOR = 7
LOOP_SET_CAPACITY = 0x4C07
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16
LO_FLAGS_READ_ONLY = 1

SMALLEST_SECTOR = 512
"""The sector size, in bytes, that every filesystem and every partition table supports."""

_ATTEMPTS = 64
_CONTROL = "/dev/loop-control"
_NO_DEVICES = frozenset(
    {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTTY, errno.EACCES, errno.EPERM}
)
_PARTITIONS = "/proc/partitions"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LONGEST_LINE = 128
"""More bytes than a line of /proc/partitions has: a name of 31, and fewer than 40 of numbers."""

_UNLINKED = b" (deleted)\n"
"""The kernel's suffix for the path of an unlinked file, even one that was linked again."""

_PATIENCE = 1.0
"""Seconds to wait for programs, such as udev, that open a device when its file is detached."""

_LONGEST = 4096
"""The greatest length of a sysfs attribute, in bytes: a page."""

_SYSFS = Path("/sys/block")


class LoopInfo64(ctypes.Structure):
    """`struct loop_info64` of <linux/loop.h>."""

    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_char * 64),
        ("lo_crypt_name", ctypes.c_char * 64),
        ("lo_encrypt_key", ctypes.c_char * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    """`struct loop_config` of <linux/loop.h>."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopDevice:
    """A loop device that is bound to a file; a `partial` one has an offset or a size limit.

    `name` is the name given to `attach`, cut to 63 bytes; None if a failed disk hides it.
    """

    number: int
    readonly: bool
    autoclear: bool
    partial: bool = dataclasses.field(default=False, compare=False)
    name: bytes | None = dataclasses.field(default=None, compare=False)

    @property
    def path(self) -> Path:
        return Path(f"/dev/loop{self.number}")

    @property
    def device(self) -> int:
        return os.makedev(LOOP_MAJOR, self.number)

    def is_named(self, name: str) -> bool:
        """Tell whether the device has this name, cut to 63 bytes; True if its name is not known."""
        return self.name in {None, name.encode()[:63]}


def _open(number: int, flags: int = os.O_RDWR) -> int:
    path = Path(f"/dev/loop{number}")
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        # In a container, where /dev is a private tmpfs, nothing makes the nodes of new devices.
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o660, os.makedev(LOOP_MAJOR, number))
    return os.open(path, flags | os.O_CLOEXEC)


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
) -> Iterator[LoopDevice]:
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
    flags |= LO_FLAGS_READ_ONLY if readonly else 0
    flags |= LO_FLAGS_AUTOCLEAR if autoclear else 0
    with opened(file, os.O_RDONLY if readonly else os.O_RDWR) as backing:
        number, device = _configure(backing, flags, sector, name, file, new=new)
    with closing(device):
        yield LoopDevice(number=number, readonly=readonly, autoclear=autoclear)


def _configure(
    backing: int, flags: int, sector: int, name: str, file: Path, *, new: bool
) -> tuple[int, int]:
    config = _LoopConfig()
    config.fd = backing
    config.block_size = sector
    config.info.lo_file_name = name.encode()[:63]
    config.info.lo_flags = flags
    refusing: list[int] = []
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


def _bind(number: int, config: _LoopConfig, file: Path) -> int | None:
    """Bind a loop device and return its descriptor; None if it was taken or removed meanwhile."""
    try:
        device = _open(number)
    except OSError as error:
        if error.errno in _GONE:
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


_GONE = frozenset({errno.ENXIO, errno.ENOENT, errno.ENOTDIR, errno.ENODEV})


def find(file: Path) -> list[LoopDevice]:
    """Return the loop devices that are bound to `file`.

    The file's device and inode number decide. The path that the kernel recorded is only a hint: it
    depends on the mount namespace, and cannot be read if it is longer than a page.
    """
    hints = os.fsencode(f"/{file.parent.name}/{file.name}\n"), _UNLINKED
    found = []
    for number in numbers():
        try:
            fd = os.open(f"{_SYSFS}/loop{number}/loop/backing_file", os.O_RDONLY | os.O_CLOEXEC)
            with closing(fd):
                if not os.read(fd, _LONGEST).endswith(hints):
                    continue
        except OSError as error:
            if error.errno in _GONE:
                continue  # not bound, or no longer
            if error.errno != errno.ENAMETOOLONG:
                raise
        with _held(number, file) as device:
            if device:
                found.append(device)
    return found


def numbers() -> list[int]:
    """Return the numbers of all bound loop devices, in order; unbound ones may be among them."""
    return _numbers_in(_partitions() or _block_devices())


def _block_devices() -> list[bytes]:
    return os.listdir(os.fsencode(_SYSFS))


def _numbers_in(names: list[bytes]) -> list[int]:
    return sorted(
        int(name[4:]) for name in names if name.startswith(b"loop") and name[4:].isdigit()
    )


def _partitions() -> list[bytes]:
    """Return the names of the block devices that are not empty, from /proc/partitions (proc(5)).

    The list is empty if it cannot be read reliably. The kernel returns up to a page of lines per
    read(2), and continues by line number, so it skips a device if another one was removed since.
    Only a first read that does not fill the page is a complete list of one moment.
    """
    try:
        with opened(_PARTITIONS) as fd:
            text = os.read(fd, _PAGE)
    except FileNotFoundError:  # /proc was mounted with subset=pid
        return []
    if len(text) > _PAGE - _LONGEST_LINE:
        return []
    return [line.rpartition(b" ")[2] for line in text.splitlines()]


def bound() -> dict[tuple[int, int], list[LoopDevice]]:
    """Return all bound loop devices, by the device and inode number of their files."""
    found: dict[tuple[int, int], list[LoopDevice]] = {}
    for number in numbers():
        if info := status_of(number):
            found.setdefault((info.lo_device, info.lo_inode), []).append(described(info))
    return found


def status_of(number: int) -> LoopInfo64 | None:
    """Return a loop device's status; None if it is not bound, or the disk of its file failed."""
    with contextlib.suppress(OSError), closing(_open(number, os.O_RDONLY)) as fd:
        info = LoopInfo64()
        fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
        return info
    return None


@contextlib.contextmanager
def hold(device: LoopDevice, file: Path) -> Iterator[bool]:
    """Keep a loop device open, so that it is not freed, through the `with` block.

    Yield False if it was freed since it was found, and perhaps bound to another file.
    """
    with _held(device.number, file) as held:
        yield held == device


@contextlib.contextmanager
def _held(number: int, file: Path) -> Iterator[LoopDevice | None]:
    """Open a loop device through the `with` block; yield None if it is not bound to `file`."""
    try:
        status = file.stat()
        fd = _open(number, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        yield None
        return
    with closing(fd):
        yield _status(fd, status.st_dev, status.st_ino)


def _status(fd: int, device: int, inode: int) -> LoopDevice | None:
    info = LoopInfo64()
    try:
        fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
    except OSError as error:
        # The kernel queries the backing file; if its disk has failed, it is not the caller's file.
        if error.errno in _GONE | DISK_FAULTS:
            return None
        raise
    if (info.lo_device, info.lo_inode) != (device, inode):
        return None
    return described(info)


def described(info: LoopInfo64) -> LoopDevice:
    """Return the loop device that a status describes."""
    return LoopDevice(
        number=info.lo_number,
        readonly=bool(info.lo_flags & LO_FLAGS_READ_ONLY),
        autoclear=bool(info.lo_flags & LO_FLAGS_AUTOCLEAR),
        partial=bool(info.lo_offset or info.lo_sizelimit),
        name=info.lo_file_name,
    )


def set_capacity(device: LoopDevice) -> None:
    """Set the size of the loop device to the current size of its file."""
    with closing(_open(device.number)) as fd:
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
    for number in _numbers_in(_block_devices()):
        with contextlib.suppress(OSError):
            if discard.is_refused(number) and not Path(f"{_SYSFS}/loop{number}/loop").exists():
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


def detach(device: LoopDevice) -> None:
    """Unbind the device, if bound; while it is in use, the kernel does so at its last close."""
    with closing(_open(device.number, os.O_RDONLY)) as fd:
        try:
            fcntl.ioctl(fd, LOOP_CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:  # not bound
                raise
