"""Loop devices, which present a file as a block device (loop(4)): finding those on a file."""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pycsi.linux.descriptor import DISK_FAULTS, closing, opened, read_file

LOOP_GET_STATUS64 = 0x4C05
LOOP_MAJOR = 7
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_READ_ONLY = 1

GONE = frozenset({errno.ENXIO, errno.ENOENT, errno.ENOTDIR, errno.ENODEV})
"""The errors for a loop device that is not bound, or was removed."""

_PARTITIONS = "/proc/partitions"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LONGEST_LINE = 128
"""More bytes than a line of /proc/partitions has: a name of 31, and fewer than 40 of numbers."""

_UNLINKED = b" (deleted)\n"
"""The kernel's suffix for the path of an unlinked file, even one that was linked again."""

_LONGEST = 4096
"""The greatest length of a sysfs attribute, in bytes: a page."""

SYSFS = Path("/sys/block")


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopDevice:
    """A loop device that is bound to a file; a `partial` one has an offset or a size limit.

    `name` is the name given to `losetup.attach`, cut to 63 bytes; None if a failed disk hides it.
    """

    number: int
    readonly: bool
    autoclear: bool
    partial: bool = dataclasses.field(default=False, compare=False)
    name: bytes | None = dataclasses.field(default=None, compare=False)

    @property
    def node(self) -> str:
        """The name of the device node in /dev."""
        return f"loop{self.number}"

    @property
    def path(self) -> Path:
        return Path("/dev", self.node)

    @property
    def device(self) -> int:
        return os.makedev(LOOP_MAJOR, self.number)

    def is_named(self, name: str) -> bool:
        """Tell whether the device has this name, cut to 63 bytes; True if its name is not known."""
        return self.name in {None, name.encode()[:63]}


def open_device(number: int, flags: int = os.O_RDONLY) -> closing:
    """Open a loop device by its number."""
    path = f"/dev/loop{number}"
    try:
        return opened(path, flags)
    except FileNotFoundError:
        # In a container, where /dev is a private tmpfs, nothing makes the nodes of new devices.
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o660, os.makedev(LOOP_MAJOR, number))
    return opened(path, flags)


def find(file: Path) -> list[LoopDevice]:
    """Return the loop devices that are bound to `file`.

    The file's device and inode number decide. The path that the kernel recorded is only a hint: it
    depends on the mount namespace, and cannot be read if it is longer than a page.
    """
    hints = os.fsencode(f"/{file.parent.name}/{file.name}\n"), _UNLINKED
    found = []
    for number in numbers():
        try:
            with opened(f"{SYSFS}/loop{number}/loop/backing_file") as shown:
                if not os.read(shown, _LONGEST).endswith(hints):
                    continue
        except OSError as error:
            if error.errno in GONE:
                continue  # not bound, or no longer
            if error.errno != errno.ENAMETOOLONG:
                raise
        with hold(number, file) as device:
            if device:
                found.append(device)
    return found


def numbers(*, unbound: bool = False) -> list[int]:
    """Return the numbers of all bound loop devices, in order; unbound ones may be among them.

    With `unbound` all of them are.
    """
    names = [] if unbound else _partitions()
    names = names or os.listdir(os.fsencode(SYSFS))
    return sorted(
        int(name[4:]) for name in names if name.startswith(b"loop") and name[4:].isdigit()
    )


def backing_paths() -> list[bytes]:
    """Return the recorded paths of the files that loop devices are bound to; too long ones lack.

    The files are not accessed, so a disk that hangs keeps nobody waiting.
    """
    paths = []
    for number in numbers():
        with contextlib.suppress(OSError):  # not bound, or no longer
            paths.append(read_file(f"{SYSFS}/loop{number}/loop/backing_file").rstrip(b"\n"))
    return paths


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


class LoopIndex:
    """The bound loop devices at one moment, to find those on many files.

    A device's status makes the kernel query the device's file, whose disk may hang. So only devices
    are asked whose recorded path may be that of the file that is looked for.
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, list[int]] = {}
        self._statuses: dict[int, LoopInfo64 | None] = {}
        for number in numbers():
            try:
                path = read_file(f"{SYSFS}/loop{number}/loop/backing_file")
            except OSError as error:
                if error.errno in GONE:
                    continue
                path = _UNLINKED  # its path is too long to be told
            self._numbers.setdefault(self._end(path), []).append(number)

    @staticmethod
    def _end(path: bytes) -> bytes:
        return _UNLINKED if path.endswith(_UNLINKED) else b"/".join(path.rsplit(b"/", 2)[1:])

    def find(self, file: Path) -> list[LoopDevice]:
        """Return the loop devices that are bound to `file`, as the function `find` does."""
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        end = os.fsencode(f"{file.parent.name}/{file.name}\n")
        for number in [*self._numbers.get(end, ()), *self._numbers.get(_UNLINKED, ())]:
            if number not in self._statuses:
                self._statuses[number] = status_of(number)
            info = self._statuses[number]
            if info and (info.lo_device, info.lo_inode) == (status.st_dev, status.st_ino):
                found.append(described(info))
        return found


def status_of(number: int) -> LoopInfo64 | None:
    """Return a loop device's status; None if it is not bound, or the disk of its file failed."""
    with contextlib.suppress(OSError), open_device(number) as fd:
        info = LoopInfo64()
        fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
        return info
    return None


@contextlib.contextmanager
def hold(number: int, file: Path) -> Iterator[LoopDevice | None]:
    """Yield a loop device, and keep it open, so that it is not freed, through the `with` block.

    Yield None if it is not bound to `file`.
    """
    try:
        status = file.stat()
        opening = open_device(number)
    except OSError as error:
        if error.errno not in GONE:
            raise
        yield None
        return
    with opening as fd:
        info = LoopInfo64()
        try:
            fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
        except OSError as error:
            # The kernel queries the backing file; if its disk failed, it is not the caller's file.
            if error.errno not in GONE | DISK_FAULTS:
                raise
        ours = (info.lo_device, info.lo_inode) == (status.st_dev, status.st_ino)
        yield described(info) if ours else None


def described(info: LoopInfo64) -> LoopDevice:
    """Return the loop device that a status describes."""
    return LoopDevice(
        number=info.lo_number,
        readonly=bool(info.lo_flags & LO_FLAGS_READ_ONLY),
        autoclear=bool(info.lo_flags & LO_FLAGS_AUTOCLEAR),
        partial=bool(info.lo_offset or info.lo_sizelimit),
        name=info.lo_file_name,
    )
