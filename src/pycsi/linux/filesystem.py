"""Filesystems in image files: identify, check and grow ext4, XFS and btrfs.

They are identified by their superblock, checked by their own programs, and grown through an ioctl
while they are mounted.
"""

import contextlib
import dataclasses
import fcntl
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from pycsi.linux import btrfsprogs, program
from pycsi.linux.descriptor import (
    DIRECTORY,
    closing,
    opened,
    sync_directory,
)
from pycsi.linux.tree import FS_SYNC_FL, try_change_inode_flags

BTRFS_IOC_RESIZE = 0x50009403
EXT4_IOC_RESIZE_FS = 0x40086610
XFS_IOC_FSGEOMETRY_V1 = 0x80705864
XFS_IOC_FSGROWFSDATA = 0x4010586E

EXT_MAGIC = 0xEF53

_BTRFS_SUPERBLOCK = 64 * 1024
_EXT_SUPERBLOCK = 1024
_EXT_LARGEST_LOG_SIZE = 6
_SECTOR = 4096
_SECTORS = frozenset({512, 1024, 2048, _SECTOR})
_FARTHEST = 2**63 - _SECTOR
"""The largest offset in a file at which a superblock is looked for."""

_BLOCK = 4096
_MOST_GROUPS = 10_000
_XFS_SIZES = struct.Struct(">4sIQ68xII")
"""Fields of an XFS superblock: magic, block size, blocks, blocks per allocation group, groups."""
_UNDO_HEADER = struct.Struct("<8s24xI476x")
"""Fields of an e2fsprogs undo file: magic, and block size, which is 0 until a block is recorded."""
_UNDO_MAGIC = b"E2UNDO02"
_E2FSCK_SETTINGS = b"""
[problems]
    0x030004 = {
        no_default = true
        no_ok = true
    }
"""
"""Settings with which e2fsck accepts a missing lost+found, and makes none (e2fsck.conf(5))."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The content of a superblock: the kind of filesystem, its UUID, and its size in bytes.

    `sector` is the largest sector size in bytes that its device may have; `errors` is the number of
    errors that the filesystem has recorded.
    """

    kind: str
    uuid: uuid.UUID
    size: int
    sector: int
    errors: int = 0


def identify(image: Path) -> Identity | None:
    """Return the superblock's content in a file or device; None if it is none of the three."""
    with opened(image) as fd:
        head = os.pread(fd, _BLOCK, 0)
        block = os.pread(fd, _BLOCK, _BTRFS_SUPERBLOCK)
    if len(block) < _BLOCK:
        return None
    return _identify_ext4(head) or _identify_xfs(head) or _identify_btrfs(block)


def _identify_ext4(head: bytes) -> Identity | None:
    block = head[_EXT_SUPERBLOCK : _EXT_SUPERBLOCK + 1024]
    (magic,) = struct.unpack_from("<H", block, 0x38)
    low, log_size = (
        struct.unpack_from("<I", block, 0x4)[0],
        struct.unpack_from("<I", block, 0x18)[0],
    )
    if magic != EXT_MAGIC or log_size > _EXT_LARGEST_LOG_SIZE:
        return None
    incompatible, high = (struct.unpack_from("<I", block, at)[0] for at in (0x60, 0x150))
    has_64_bit = 0x80
    blocks = low | (high << 32 if incompatible & has_64_bit else 0)
    return Identity(
        kind="ext4",
        uuid=uuid.UUID(bytes=block[0x68:0x78]),
        size=blocks * (1024 << log_size),
        sector=min(1024 << log_size, _SECTOR),
        errors=struct.unpack_from("<I", block, 0x194)[0],
    )


def _identify_xfs(head: bytes) -> Identity | None:
    if head[:4] != b"XFSB":
        return None
    block_size, blocks = struct.unpack_from(">IQ", head, 4)
    (sector,) = struct.unpack_from(">H", head, 102)
    return Identity(
        kind="xfs",
        uuid=uuid.UUID(bytes=head[32:48]),
        size=block_size * blocks,
        # A damaged superblock may have any value here. With a valid sector size the loop device can
        # be made, and the kernel refuses the mount.
        sector=sector if sector in _SECTORS else min(_SECTORS),
    )


def _identify_btrfs(block: bytes) -> Identity | None:
    if block[0x40:0x48] != b"_BHRfS_M":
        return None
    (size,) = struct.unpack_from("<Q", block, 0x70)
    return Identity(kind="btrfs", uuid=uuid.UUID(bytes=block[0x20:0x30]), size=size, sector=_SECTOR)


def errors(device: int) -> int:
    """Return the number of errors of the ext4 mounted from the device number `device`.

    It is 0 for other filesystems, and if nothing is mounted.
    """
    disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    try:
        return int(Path(f"/sys/fs/ext4/{disk}/errors_count").read_text())
    except FileNotFoundError:  # not ext4, or not mounted any more
        return 0


def grow_unmounted_ext4(image: Path, undo: Path) -> None:
    """Grow an unmounted ext4 to fill the file `image`; EAGAIN while another process does so.

    resize2fs records the blocks that it changes in the file `undo`. If it fails, its changes are
    undone; if the growth is interrupted, `undo_growth` undoes them. As long as `undo` exists, the
    filesystem must not be mounted. The programs inherit a lock on the image, since they survive a
    killed driver.
    """
    with _locked(image) as fd:
        _undo(image, undo, fd)
        _check_ext4(image, fd, "-f")
        try:
            _make_synchronous(undo)
            program.run("resize2fs", "-z", undo, image, keep=(fd,))
        except BaseException:
            _undo(image, undo, fd)
            raise
        _forget(undo, fd)


def check_unmounted_ext4(image: Path) -> str:
    """Check an unmounted ext4 as at boot (e2fsck(8) with -p), and return the output of e2fsck.

    The journal is replayed. The whole filesystem is checked only if the superblock records errors,
    or an unclean unmount without a journal. Errors are repaired if that is safe without a decision;
    others raise `ProgramError`. EAGAIN while a program works on the image.
    """
    with _locked(image) as fd:
        return _check_ext4(image, fd)


def _check_ext4(image: Path, fd: int, *options: str) -> str:
    """Run e2fsck with -p on an unmounted ext4 whose lock is `fd`, without making a lost+found."""
    mended = 1
    with closing(os.memfd_create("e2fsck.conf")) as settings:
        os.write(settings, _E2FSCK_SETTINGS)
        return program.run(
            "e2fsck",
            *options,
            "-p",
            image,
            ok=(0, mended),
            keep=(fd, settings),
            variables={"E2FSCK_CONFIG": f"/proc/self/fd/{settings}"},
        )


def undo_growth(image: Path, undo: Path) -> None:
    """Undo an interrupted `grow_unmounted_ext4`, if there was one.

    EAGAIN while a program that a killed driver had started still works on the image.
    """
    with _locked(image) as fd:
        _undo(image, undo, fd)


def _undo(image: Path, undo: Path, fd: int) -> None:
    if not undo.exists():
        return
    if _has_recorded(undo):
        program.run("e2undo", "-f", undo, image, keep=(fd,))
    _forget(undo, fd)


def _has_recorded(undo: Path) -> bool:
    """Tell whether an undo file has recorded any block; e2undo fails on one that has not.

    The file's header is complete on the disk before the first change of the filesystem, so without
    it nothing was changed.
    """
    with undo.open("rb") as file:
        header = file.read(_UNDO_HEADER.size)
    if len(header) < _UNDO_HEADER.size:
        return False
    magic, block_size = _UNDO_HEADER.unpack(header)
    return bool(magic == _UNDO_MAGIC and block_size > 0)


def _make_synchronous(undo: Path) -> None:
    """Make the empty undo file, with synchronous writes (chattr(1), S).

    So a power cut cannot leave a change of the image without its record in this file.
    """
    with opened(undo, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        # A filesystem without such flags may be volatile anyway.
        try_change_inode_flags(fd, add=FS_SYNC_FL)
        os.fsync(fd)
    sync_directory(undo.parent)


def _forget(undo: Path, image: int) -> None:
    """Delete the undo file durably: if it came back, it would undo later writes."""
    os.fsync(image)
    undo.unlink()
    sync_directory(undo.parent)


@contextlib.contextmanager
def _locked(image: Path) -> Iterator[int]:
    with opened(image, os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield fd
        finally:
            # Closing is not enough: another thread's fork may hold a copy of the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)


def grow_mounted(kind: str, mountpoint: Path, size: int, *, at: int | None = None) -> None:
    """Grow the filesystem mounted at `mountpoint` to the `size` of its device, in bytes.

    `mountpoint` is relative to the directory descriptor `at` if that is given.
    """
    with opened(mountpoint, DIRECTORY, at=at) as fd:
        try:
            if kind == "ext4":
                blocks = size // os.fstatvfs(fd).f_bsize
                fcntl.ioctl(fd, EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
            elif kind == "xfs":
                _grow_xfs(fd, size)
            else:
                request = bytearray(struct.pack("=q4088s", 0, b"max"))
                fcntl.ioctl(fd, BTRFS_IOC_RESIZE, request, True)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(mountpoint)) from None


def renew_uuid(kind: str, image: Path) -> None:
    """Give an unmounted copy of an XFS or btrfs a new UUID; ext4 needs none.

    Two filesystems with the same UUID cannot be mounted at the same time: XFS refuses the second,
    and btrfs takes it for the first. An XFS must have been unmounted cleanly, since its log is
    cleared.
    """
    if kind == "xfs":
        program.run("xfs_db", "-x", "-c", "uuid generate", image)
    elif kind == "btrfs":
        btrfsprogs.run("btrfstune", "-f", "-m", image)


def _grow_xfs(fd: int, size: int) -> None:
    geometry = fcntl.ioctl(fd, XFS_IOC_FSGEOMETRY_V1, bytes(112))
    words = struct.unpack_from("=8IQ", geometry)
    block_size, inode_percent, blocks = words[0], words[7], words[8]
    # Called even at the full size: the kernel then rewrites the copies of the superblock.
    request = struct.pack("=QI4x", max(size // block_size, blocks), inode_percent)
    fcntl.ioctl(fd, XFS_IOC_FSGROWFSDATA, request)


def copies_agree(image: Path) -> bool:
    """Tell whether all copies of an XFS superblock have its size; True for other filesystems.

    The kernel writes the copies after it has logged a growth, and not through the log. After a
    power cut they may be out of date, and xfs_repair trusts the majority of them.
    """
    with opened(image) as fd:
        first = os.pread(fd, _XFS_SIZES.size, 0)
        if len(first) < _XFS_SIZES.size or first[:4] != b"XFSB":
            return True
        _, block_size, blocks, group_blocks, groups = _XFS_SIZES.unpack(first)
        for number in range(1, min(groups, _MOST_GROUPS)):
            place = number * group_blocks * block_size
            if place > _FARTHEST:
                return False
            copy = os.pread(fd, _XFS_SIZES.size, place)
            if len(copy) < _XFS_SIZES.size or _XFS_SIZES.unpack(copy)[1:3] != (block_size, blocks):
                return False
    return True
