"""btrfs subvolumes and their size limits, through ioctls (<linux/btrfs.h>) and sysfs.

A subvolume's quota group has the subvolume's own number, at level 0. Its usage is read from sysfs,
which has the current numbers; those in the quota tree are from the last commit.
"""

import dataclasses
import enum
import errno
import fcntl
import os
import struct
import time
import uuid
from pathlib import Path

from pycsi.linux.descriptor import DIRECTORY, opened

BTRFS_FIRST_FREE_OBJECTID = 256
BTRFS_IOC_FS_INFO = 0x8400941F
BTRFS_IOC_INO_LOOKUP = 0xD0009412
BTRFS_IOC_QGROUP_CREATE = 0x4010942A
BTRFS_IOC_QGROUP_LIMIT = 0x8030942B
BTRFS_IOC_QUOTA_CTL = 0xC0109428
BTRFS_IOC_QUOTA_RESCAN = 0x4040942C
BTRFS_IOC_QUOTA_RESCAN_STATUS = 0x8040942D
BTRFS_IOC_SNAP_CREATE_V2 = 0x50009417
BTRFS_IOC_SNAP_DESTROY_V2 = 0x5000943F
BTRFS_IOC_SUBVOL_CREATE = 0x5000940E
BTRFS_IOC_SUBVOL_SETFLAGS = 0x4008941A
BTRFS_IOC_TREE_SEARCH = 0xD0009411
BTRFS_QGROUP_LIMIT_MAX_RFER = 1
BTRFS_QUOTA_CTL_ENABLE = 1
BTRFS_ROOT_REF_KEY = 156
BTRFS_ROOT_TREE_OBJECTID = 1
BTRFS_SUBVOL_RDONLY = 1 << 1
BTRFS_SUBVOL_SPEC_BY_ID = 1 << 4

_FS_INFO = struct.Struct("=QQ16s992x")
_INO_LOOKUP = struct.Struct("=QQ4080x")
_QGROUP_CREATE = struct.Struct("=QQ")
_QGROUP_LIMIT = struct.Struct("=QQQQQQ")
_QUOTA_CTL = struct.Struct("=QQ")
_QUOTA_RESCAN = struct.Struct("=QQ48x")
_SEARCH_ITEM = struct.Struct("=QQQII")
_SEARCH_KEY = struct.Struct("=QQQQQQQIIII32x")
_SEARCH_SIZE = 4096
_UNLIMITED = 2**64 - 1
_PAUSE = 0.01
_VOL_ARGS = struct.Struct("=q4088s")
_VOL_ARGS_V2 = struct.Struct("=qQQ32xQ4032x")
_VOL_ARGS_V2_NAME = struct.Struct("=qQQ32x4040s")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupUsage:
    """A quota group's limit on referenced bytes (0: none), and the bytes that it references.

    `exclusive` are those of them that are not shared with another subvolume.
    """

    limit: int
    used: int
    exclusive: int


class Accounting(enum.Enum):
    """The state of a filesystem's quota group accounting."""

    GOOD = enum.auto()
    """Quota groups count the bytes that their subvolumes reference, and limits are enforced."""
    OFF = enum.auto()
    """Nothing is counted, and there are no limits."""
    SIMPLE = enum.auto()
    """Simple quotas: shared blocks count only for the subvolume that wrote them, if it exists."""
    INCONSISTENT = enum.auto()
    """The kernel has stopped counting, and does not enforce limits."""
    COUNTING = enum.auto()
    """A rescan is running; until it ends, the counts may be too low."""


def _ioctl(path: Path, request: int, argument: bytes) -> bytes:
    # fcntl.ioctl takes immutable buffers of up to 1024 bytes only; these are larger.
    buffer = bytearray(argument)
    with opened(path, DIRECTORY) as fd:
        try:
            fcntl.ioctl(fd, request, buffer, True)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    return bytes(buffer)


def create_subvolume(path: Path) -> None:
    """Make an empty subvolume at `path`."""
    _ioctl(path.parent, BTRFS_IOC_SUBVOL_CREATE, _VOL_ARGS.pack(0, os.fsencode(path.name)))


def snapshot(source: Path, path: Path, *, readonly: bool) -> None:
    """Make a snapshot of the subvolume `source` at `path`; it shares the blocks of `source`.

    Subvolumes inside `source` are left out.
    """
    flags = BTRFS_SUBVOL_RDONLY if readonly else 0
    with opened(source, DIRECTORY) as fd:
        argument = _VOL_ARGS_V2_NAME.pack(fd, 0, flags, os.fsencode(path.name))
        _ioctl(path.parent, BTRFS_IOC_SNAP_CREATE_V2, argument)


def delete_subvolume(path: Path, number: int) -> None:
    """Delete a subvolume by its number from the filesystem that holds the directory `path`.

    The kernel frees its blocks in the background. ENOTEMPTY while it contains another subvolume.
    """
    argument = _VOL_ARGS_V2.pack(0, 0, BTRFS_SUBVOL_SPEC_BY_ID, number)
    _ioctl(path, BTRFS_IOC_SNAP_DESTROY_V2, argument)


def subvolumes_in(path: Path, number: int) -> list[int]:
    """Return the numbers of the subvolumes in any directory of subvolume `number`, not nested ones.

    `path` is a directory on the same filesystem.
    """
    found: list[int] = []
    least = 0
    while True:
        key = _SEARCH_KEY.pack(
            BTRFS_ROOT_TREE_OBJECTID, number, number, least, _UNLIMITED, 0, _UNLIMITED,
            BTRFS_ROOT_REF_KEY, BTRFS_ROOT_REF_KEY, _SEARCH_SIZE, 0,
        )  # fmt: skip
        answer = _ioctl(path, BTRFS_IOC_TREE_SEARCH, key.ljust(_SEARCH_SIZE, b"\0"))
        items = _SEARCH_KEY.unpack_from(answer)[9]
        if not items:
            return found
        at = _SEARCH_KEY.size
        for _ in range(items):
            _, _, child, _, length = _SEARCH_ITEM.unpack_from(answer, at)
            found.append(child)
            at += _SEARCH_ITEM.size + length
        least = found[-1] + 1


def make_writable(path: Path) -> None:
    """Clear the read-only flag of the subvolume `path`."""
    _ioctl(path, BTRFS_IOC_SUBVOL_SETFLAGS, struct.pack("=Q", 0))


def is_subvolume(path: Path) -> bool:
    """Tell whether the directory `path`, which must be on btrfs, is the root of a subvolume."""
    return path.lstat().st_ino == BTRFS_FIRST_FREE_OBJECTID


def subvolume_number(path: Path) -> int:
    """Return the number of the subvolume that holds `path`, which is also its quota group's."""
    argument = _INO_LOOKUP.pack(0, BTRFS_FIRST_FREE_OBJECTID)
    number: int = _INO_LOOKUP.unpack(_ioctl(path, BTRFS_IOC_INO_LOOKUP, argument))[0]
    return number


def _sysfs(path: Path) -> Path:
    _, _, fsid = _FS_INFO.unpack(_ioctl(path, BTRFS_IOC_FS_INFO, bytes(_FS_INFO.size)))
    return Path(f"/sys/fs/btrfs/{uuid.UUID(bytes=fsid)}")


def _groups(path: Path) -> Path:
    return _sysfs(path) / "qgroups"


def errors(path: Path) -> int:
    """Return the number of errors counted on the devices of the filesystem that holds `path`."""
    counted = 0
    for entry in _sysfs(path).glob("devinfo/*/error_stats"):
        counted += sum(int(line.split()[1]) for line in entry.read_text().splitlines())
    return counted


def quota_enabled(path: Path) -> bool:
    """Tell whether quota groups are on in the filesystem that holds the directory `path`."""
    return _groups(path).is_dir()


def accounting(path: Path) -> Accounting:
    """Return the state of quota groups in the filesystem that holds the directory `path`.

    sysfs has `inconsistent` since Linux 5.18, and `mode` since 6.7, which brought simple quotas.
    What an older kernel does not report is taken to be good. ENOTTY if this is not btrfs.
    """
    groups = _groups(path)
    if _fact(groups / "mode") == "squota":
        return Accounting.SIMPLE
    if _rescans(path):
        return Accounting.COUNTING
    if _fact(groups / "inconsistent") == "1":
        return Accounting.INCONSISTENT
    return Accounting.GOOD if groups.is_dir() else Accounting.OFF


def _fact(file: Path) -> str | None:
    """Return the content of a sysfs file; None if it does not exist, or no longer does."""
    try:
        return file.read_text().strip()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV}:
            return None
        raise


def _rescans(path: Path) -> bool:
    """Tell whether a quota rescan is running; False if this process may not ask."""
    try:
        answer = _ioctl(path, BTRFS_IOC_QUOTA_RESCAN_STATUS, bytes(_QUOTA_RESCAN.size))
    except PermissionError:
        return False
    return bool(_QUOTA_RESCAN.unpack(answer)[0])


def rescan(path: Path) -> None:
    """Start a quota rescan, unless one is running."""
    try:
        _ioctl(path, BTRFS_IOC_QUOTA_RESCAN, bytes(_QUOTA_RESCAN.size))
    except OSError as error:
        if error.errno != errno.EINPROGRESS:
            raise


def await_rescan(path: Path, seconds: float) -> None:
    """Wait until the quota rescan has ended, but at most `seconds`."""
    end = time.monotonic() + seconds
    while _rescans(path) and time.monotonic() < end:
        time.sleep(_PAUSE)


def enable_quota(path: Path) -> None:
    """Switch quota groups on in the filesystem that holds the directory `path`."""
    _ioctl(path, BTRFS_IOC_QUOTA_CTL, _QUOTA_CTL.pack(BTRFS_QUOTA_CTL_ENABLE, 0))


def set_limit(path: Path, limit: int) -> None:
    """Limit the subvolume that holds `path` to `limit` referenced bytes."""
    argument = _QGROUP_LIMIT.pack(
        subvolume_number(path), BTRFS_QGROUP_LIMIT_MAX_RFER, limit, 0, 0, 0
    )
    _ioctl(path, BTRFS_IOC_QGROUP_LIMIT, argument)


def usage(path: Path) -> GroupUsage | None:
    """Return the limit and usage of the subvolume that holds `path`; None without a quota group."""
    group = _groups(path) / f"0_{subvolume_number(path)}"
    names = ("limit_flags", "max_referenced", "referenced", "exclusive")
    facts = [int(fact, 0) for name in names if (fact := _fact(group / name)) is not None]
    if len(facts) < len(names):
        return None
    flags, limit, used, exclusive = facts
    limited = flags & BTRFS_QGROUP_LIMIT_MAX_RFER
    return GroupUsage(limit=limit if limited else 0, used=used, exclusive=exclusive)


def forget_group(path: Path, number: int) -> bool:
    """Remove the quota group of a deleted subvolume from the filesystem that holds `path`.

    False means that the kernel is still freeing the subvolume; try again later.
    """
    try:
        _ioctl(path, BTRFS_IOC_QGROUP_CREATE, _QGROUP_CREATE.pack(0, number))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno not in {errno.ENOENT, errno.ENOTCONN, errno.EINVAL}:
            raise
    return True
