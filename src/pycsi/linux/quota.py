"""Project quotas: a size limit on a directory tree of XFS or ext4 (quotactl(2)).

New files below a directory with a project id and the inherit flag count towards that project.
`quotactl_fd` needs Linux 5.14; it takes no path of the block device, so it works in a container.
"""

import ctypes
import dataclasses
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from pycsi.linux.descriptor import DIRECTORY, opened
from pycsi.linux.libc import system_call
from pycsi.linux.treecopy import walk

FS_DQ_BHARD = 1 << 3
FS_DQ_BSOFT = 1 << 2
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_PROJ_QUOTA = 2
FS_QUOTA_PDQ_ACCT = 1 << 4
FS_QUOTA_PDQ_ENFD = 1 << 5
FS_XFLAG_PROJINHERIT = 0x200
PRJQUOTA = 2
Q_XGETQSTATV = 0x5808
Q_XGETQUOTA = 0x5803
Q_XSETQLIM = 0x5804

_BASIC_BLOCK = 512
_FSXATTR = struct.Struct("=IIIII8x")
_DISK_QUOTA = struct.Struct("=bbHIQQQQQQiiHHbbbbQQQiHh8s")

_quotactl_fd = system_call(443, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)


class _QuotaStatus(ctypes.Structure):
    """The head of `struct fs_quota_statv` of <linux/dqblk_xfs.h>."""

    _fields_ = (
        ("qs_version", ctypes.c_int8),
        ("qs_pad1", ctypes.c_uint8),
        ("qs_flags", ctypes.c_uint16),
        ("qs_rest", ctypes.c_uint8 * 252),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProjectUsage:
    """A project's hard limit (0: no limit) and usage in bytes, and its number of inodes."""

    limit: int
    used: int
    inodes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProjectState:
    """Whether a filesystem counts the usage of projects, and whether it enforces their limits."""

    counted: bool
    enforced: bool


def _quotactl(path: Path, command: int, project: int, argument: object) -> None:
    with opened(path, DIRECTORY) as fd:
        _quotactl_fd(fd, command << 8 | PRJQUOTA, project, argument, path=path)


def project_state(path: Path) -> ProjectState:
    """Return the state of project quotas on the filesystem that holds the directory `path`."""
    status = _QuotaStatus(qs_version=1)
    try:
        _quotactl(path, Q_XGETQSTATV, 0, ctypes.byref(status))
    except OSError as error:
        if error.errno in {errno.ENOSYS, errno.ESRCH, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}:
            return ProjectState(counted=False, enforced=False)
        raise
    counted = bool(status.qs_flags & FS_QUOTA_PDQ_ACCT)
    return ProjectState(
        counted=counted, enforced=counted and bool(status.qs_flags & FS_QUOTA_PDQ_ENFD)
    )


def enforces_projects(path: Path) -> bool:
    """Tell whether the filesystem that holds the directory `path` enforces project limits."""
    return project_state(path).enforced


def set_project(path: Path, project: int) -> None:
    """Set the project id of the directory `path`, which everything created in it later inherits."""
    _change_project(path, project, inherit=True)


def clear_project(path: Path) -> None:
    """Clear the project id of the directory `path`; existing entries keep theirs."""
    _change_project(path, 0, inherit=False)


def _change_project(path: Path, project: int, *, inherit: bool) -> None:
    with opened(path, DIRECTORY) as fd:
        _change_open(fd, project, inherit=inherit)


def _change_open(fd: int, project: int, *, inherit: bool) -> None:
    flags, extent, extents, before, cow_extent = _attributes(fd)
    wanted = flags | FS_XFLAG_PROJINHERIT if inherit else flags & ~FS_XFLAG_PROJINHERIT
    if (wanted, project) != (flags, before):
        new = _FSXATTR.pack(wanted, extent, extents, project, cow_extent)
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, new)


def set_project_of_tree(root: Path, project: int, *, inherit: bool) -> None:
    """Set the project id of a directory, and of all directories and regular files in it.

    With `inherit` what is created in them later inherits it. Other kinds of files keep theirs, for
    they cannot be opened; they have no blocks of data. The errors are those of `treecopy.walk`.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

    def change(name: str, status: os.stat_result | None, at: int) -> None:
        if status is None or not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            return
        with opened(name, flags, at=at) as fd:
            _change_open(fd, project, inherit=inherit and stat.S_ISDIR(status.st_mode))

    walk(root, change)


def _attributes(fd: int) -> tuple[int, ...]:
    return _FSXATTR.unpack(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))


def project_of(path: Path) -> int:
    """Return the project id that new files in the directory `path` inherit, or 0."""
    project, inherit = attributes_of(path)
    return project if inherit else 0


def attributes_of(path: Path) -> tuple[int, bool]:
    """Return the project id of the directory `path`, and whether new files in it inherit that."""
    with opened(path, DIRECTORY) as fd:
        flags, _, _, project, _ = _attributes(fd)
    return project, bool(flags & FS_XFLAG_PROJINHERIT)


def set_limit(path: Path, project: int, limit: int) -> None:
    """Limit the project to `limit` bytes, rounded down to 512; 0 removes the limit.

    `path` is a directory on the project's filesystem.
    """
    blocks = limit // _BASIC_BLOCK
    fields: list[int] = [1, FS_PROJ_QUOTA, FS_DQ_BHARD | FS_DQ_BSOFT, project, blocks, blocks]
    request = _DISK_QUOTA.pack(*fields, *[0] * 18, b"")
    buffer = ctypes.create_string_buffer(request, _DISK_QUOTA.size)
    _quotactl(path, Q_XSETQLIM, project, buffer)


def usage(path: Path, project: int) -> ProjectUsage:
    """Return a project's limit and usage on the filesystem that holds the directory `path`."""
    buffer = ctypes.create_string_buffer(_DISK_QUOTA.size)
    try:
        _quotactl(path, Q_XGETQUOTA, project, buffer)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ESRCH}:  # no quota record for this id
            return ProjectUsage(limit=0, used=0, inodes=0)
        raise
    fields = _DISK_QUOTA.unpack(buffer.raw)
    return ProjectUsage(
        limit=fields[4] * _BASIC_BLOCK, used=fields[8] * _BASIC_BLOCK, inodes=fields[9]
    )
