"""Loop devices: a file as a block device (loop(4)).

`attach` hands file, size and flags to the kernel in one `LOOP_CONFIGURE`: there is no moment at
which a device exists half made. Needs Linux 5.8.
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
"""The sector that every filesystem and every partition table can do with."""

_ATTEMPTS = 64
_CONTROL = "/dev/loop-control"
_NO_DEVICES = frozenset(
    {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTTY, errno.EACCES, errno.EPERM}
)
_PARTITIONS = "/proc/partitions"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LONGEST_LINE = 128
"""More than a line of that file can have: a name has 31 bytes, and the numbers fewer than 40."""

_UNLINKED = b" (deleted)\n"
"""What the kernel adds to the path of a file that was unlinked, also if it was linked again."""

_PATIENCE = 1.0
"""Seconds to wait for those who look at a device when its file has gone, as udev does."""

_LONGEST = 4096
"""No attribute in sysfs is longer: a page."""

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
    """A loop device that is bound to a file; one that is `partial` shows not all of it.

    `name` is what it was called when it was attached; None where a failed disk hides that.
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
        """Tell whether `attach` was, or may have been, given this name; it is cut to 63 bytes."""
        return self.name in {None, name.encode()[:63]}


def _open(number: int, flags: int = os.O_RDWR) -> int:
    path = Path(f"/dev/loop{number}")
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        # Where /dev is a private tmpfs (a container) nobody makes the nodes of new devices.
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o660, os.makedev(LOOP_MAJOR, number))
    return os.open(path, flags | os.O_CLOEXEC)


def _unbound_number(*, new: bool) -> int:
    """Return the number of a device without a file, or of a `new` one."""
    try:
        with opened(_CONTROL, os.O_RDWR) as control:
            if new:
                # Linux before 5.14 makes none while one is free, and forgets what that one refused.
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
    """Bind a free loop device to `file`, with direct I/O where the file's filesystem can.

    `sector` is the device's logical block size in bytes. The kernel's own choice would depend on
    whether the file has blocks in common with another, which may change from one time to the next.

    With `autoclear` the kernel frees the device when its last user has gone: the device lives
    through the `with` block, and then as long as a filesystem on it is mounted. Otherwise it
    stays until `detach`. `name` is shown by losetup(8).

    A `new` device can be changed for good: `remove_refusing` takes it away afterwards. Any other is
    one that takes discards if its file can.
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
            refusing.append(device)  # bound until the end, or it would be the next one again
    finally:
        for device in refusing:
            fcntl.ioctl(device, LOOP_CLR_FD)
            os.close(device)
    raise OSError(errno.EBUSY, "every free loop device was taken by others", os.fspath(file))


def _bind(number: int, config: _LoopConfig, file: Path) -> int | None:
    """Bind a device, and return it, open; None where it was taken, or removed, by somebody else."""
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
        return False  # there is no /sys that would tell


_GONE = frozenset({errno.ENXIO, errno.ENOENT, errno.ENOTDIR, errno.ENODEV})


def find(file: Path) -> list[LoopDevice]:
    """Return the loop devices that are bound to `file`.

    The kernel's record of the path is only a hint, for it depends on the mount namespace, and there
    is none where it would be longer than a page; the file's device and inode number decide.
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
                continue  # not bound, or not any more
            if error.errno != errno.ENAMETOOLONG:
                raise
        with _held(number, file) as device:
            if device:
                found.append(device)
    return found


def numbers() -> list[int]:
    """Return the numbers of the loop devices that are bound, and perhaps of others."""
    return _numbers_in(_partitions() or _block_devices())


def _block_devices() -> list[bytes]:
    return os.listdir(os.fsencode(_SYSFS))


def _numbers_in(names: list[bytes]) -> list[int]:
    return sorted(
        int(name[4:]) for name in names if name.startswith(b"loop") and name[4:].isdigit()
    )


def _partitions() -> list[bytes]:
    """Return the block devices that have blocks (proc(5)); none where that cannot be told.

    The kernel gives as many lines at a time as there is room for in a page, and goes on by their
    number: where a device has gone since, another one is passed over. So what did not fill the page
    is all there was at one moment, and nothing else is good.
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
    """Return all loop devices that are bound, by device and inode number of their files."""
    found: dict[tuple[int, int], list[LoopDevice]] = {}
    for number in numbers():
        if info := status_of(number):
            found.setdefault((info.lo_device, info.lo_inode), []).append(described(info))
    return found


def status_of(number: int) -> LoopInfo64 | None:
    """Return what the kernel tells of a device; None where it is not bound, or its disk failed."""
    with contextlib.suppress(OSError), closing(_open(number, os.O_RDONLY)) as fd:
        info = LoopInfo64()
        fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
        return info
    return None


@contextlib.contextmanager
def hold(device: LoopDevice, file: Path) -> Iterator[bool]:
    """Keep a device from being freed through the `with` block; False where `file` has it no more.

    Between a look and this call it may have been freed, and given to another file.
    """
    with _held(device.number, file) as held:
        yield held == device


@contextlib.contextmanager
def _held(number: int, file: Path) -> Iterator[LoopDevice | None]:
    """Open a device and tell what it is, if it is bound to `file`."""
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
        # The device's own file is asked, whose disk may have failed: it is another file then.
        if error.errno in _GONE | DISK_FAULTS:
            return None
        raise
    if (info.lo_device, info.lo_inode) != (device, inode):
        return None
    return described(info)


def described(info: LoopInfo64) -> LoopDevice:
    """Return the device that a status is of."""
    return LoopDevice(
        number=info.lo_number,
        readonly=bool(info.lo_flags & LO_FLAGS_READ_ONLY),
        autoclear=bool(info.lo_flags & LO_FLAGS_AUTOCLEAR),
        partial=bool(info.lo_offset or info.lo_sizelimit),
        name=info.lo_file_name,
    )


def set_capacity(device: LoopDevice) -> None:
    """Make the device as large as its file is now."""
    with closing(_open(device.number)) as fd:
        fcntl.ioctl(fd, LOOP_SET_CAPACITY)


def flush(path: Path) -> None:
    """Write what was written to the device `path` through its cache to its file."""
    with opened(path) as fd:
        os.fsync(fd)


def remove_refusing() -> None:
    """Remove the devices without a file that refuse discards, which their next file would find so.

    They were made for a file whose blocks are not to be discarded, or have served one in an older
    driver. One that is in use at this moment is for the next call to remove.
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
    """Free the device; while it is in use the kernel does so when its last user has gone."""
    with closing(_open(device.number, os.O_RDONLY)) as fd:
        try:
            fcntl.ioctl(fd, LOOP_CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: not bound to a file, which is what we want
                raise
