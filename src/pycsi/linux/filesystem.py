"""Filesystems in image files: make, identify, check and grow them.

ext4, XFS and btrfs. Making and checking run the filesystem's own programs; what is on an image is
read from its superblock, and a mounted filesystem grows through its ioctl.
"""

import contextlib
import dataclasses
import fcntl
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from pycsi.linux import program
from pycsi.linux.descriptor import (
    DIRECTORY,
    closing,
    opened,
    sync_directory,
)
from pycsi.linux.tree import FS_SYNC_FL, change_marks

BTRFS_IOC_RESIZE = 0x50009403
EXT4_IOC_RESIZE_FS = 0x40086610
XFS_IOC_FSGEOMETRY_V1 = 0x80705864
XFS_IOC_FSGROWFSDATA = 0x4010586E

EXT_MAGIC = 0xEF53

MIB = 1024 * 1024

_ATTEMPTS = 20
_BTRFS_SUPERBLOCK = 64 * 1024
_DEVICE_HAS_GONE = "No such device"
_EXT_SUPERBLOCK = 1024
_EXT_LARGEST_LOG_SIZE = 6
_SECTOR = 4096
_SECTORS = frozenset({512, 1024, 2048, _SECTOR})
_FARTHEST = 2**63 - _SECTOR
"""No file reaches farther."""

_BLOCK = 4096
_MOST_GROUPS = 10_000
_XFS_SIZES = struct.Struct(">4sIQ68xII")
"""Of a superblock of XFS: magic, block size, blocks, blocks of an allocation group, groups."""
_UNDO_HEADER = struct.Struct("<8s24xI476x")
"""Of an undo file of e2fsprogs: magic, and the block size; 0 before anything was recorded."""
_UNDO_MAGIC = b"E2UNDO02"
_E2FSCK_SETTINGS = b"""
[problems]
    0x030004 = {
        no_default = true
        no_ok = true
    }
"""
"""That e2fsck is not to make a missing lost+found, and takes it for no fault (e2fsck.conf(5))."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What there is to know of one kind of filesystem.

    `options` are the mkfs options that may be asked for: those that take a value map to True. None
    of them can name another file or device. `minimum` is the least size in bytes.
    """

    programs: tuple[str, ...]
    make: tuple[str, ...]
    keep_blocks: tuple[str, ...]
    options: dict[str, bool]
    minimum: int


KINDS = {
    "ext4": Kind(
        programs=("mkfs.ext4", "e2fsck", "resize2fs", "e2undo"),
        # -m 0: the blocks that ext4 keeps for root are of no use in a volume.
        # -b 4096: smaller blocks do not fit a disk whose sectors have 4 KiB.
        make=("-F", "-q", "-m", "0", "-b", "4096"),
        keep_blocks=("-E", "nodiscard"),
        options=dict.fromkeys(("-b", "-C", "-E", "-g", "-G", "-i", "-I", "-m", "-N"), True)
        | dict.fromkeys(("-O", "-r", "-T"), True),
        minimum=16 * MIB,
    ),
    "xfs": Kind(
        programs=("mkfs.xfs", "xfs_db"),
        make=("-f", "-q"),
        keep_blocks=("-K",),
        options=dict.fromkeys(("-b", "-d", "-i", "-l", "-m", "-n", "-s"), True) | {"-K": False},
        minimum=300 * MIB,
    ),
    "btrfs": Kind(
        programs=("mkfs.btrfs", "btrfstune"),
        make=("-f", "-q"),
        keep_blocks=("-K",),
        options=dict.fromkeys(("-d", "-m", "-n", "-s", "-O", "-R"), True)
        | dict.fromkeys(("--csum", "--data", "--features", "--metadata", "--nodesize"), True)
        | dict.fromkeys(("-K", "-M", "--mixed", "--nodiscard"), False),
        minimum=256 * MIB,  # the kernel lets none grow to less than that
    ),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a superblock says: the kind, its UUID, and its size in bytes.

    `sector` is the largest sector in bytes that its disk may have, `errors` how many it has met.
    """

    kind: str
    uuid: uuid.UUID
    size: int
    sector: int
    errors: int = 0


def missing_programs(kind: str) -> list[str]:
    """Return the names of the programs that `kind` needs and that are not installed."""
    return [name for name in KINDS[kind].programs if program.find(name) is None]


def make(kind: str, image: Path, options: list[str], *, keep_blocks: bool = False) -> None:
    """Make a filesystem that fills the file `image`.

    With `keep_blocks` the blocks that the file has are not given back to its filesystem.
    """
    facts = KINDS[kind]
    kept = facts.keep_blocks if keep_blocks else ()
    # A file that shares blocks takes direct I/O of whole blocks only.
    sectors = ("-s", f"size={_SECTOR}") if kind == "xfs" and "-s" not in options else ()
    _run(f"mkfs.{kind}", *facts.make, *sectors, *kept, *options, image)


def _run(name: str, *arguments: str | Path) -> None:
    """Run a program that looks first whether the image is mounted.

    btrfs' programs ask each loop device that something is mounted from, and fail where that is
    unmounted just then; they have written nothing yet.
    """
    for _ in range(_ATTEMPTS):
        try:
            program.run(name, *arguments)
        except program.ProgramError as error:
            if _DEVICE_HAS_GONE not in str(error):
                raise
        else:
            return
    program.run(name, *arguments)


def identify(image: Path) -> Identity | None:
    """Read the superblock in a file or device; None where there is no filesystem that we know."""
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
        # A damaged one may say anything; the kernel will refuse it, on a device that can be made.
        sector=sector if sector in _SECTORS else min(_SECTORS),
    )


def _identify_btrfs(block: bytes) -> Identity | None:
    if block[0x40:0x48] != b"_BHRfS_M":
        return None
    (size,) = struct.unpack_from("<Q", block, 0x70)
    return Identity(kind="btrfs", uuid=uuid.UUID(bytes=block[0x20:0x30]), size=size, sector=_SECTOR)


def errors(device: int) -> int:
    """Return how many errors the ext4 that is mounted from the device number `device` has met."""
    disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    try:
        return int(Path(f"/sys/fs/ext4/{disk}/errors_count").read_text())
    except FileNotFoundError:  # not ext4, or not mounted any more
        return 0


def grow_unmounted_ext4(image: Path, undo: Path) -> None:
    """Make an unmounted ext4 fill the file `image`; EAGAIN while another process does so.

    What resize2fs changes is kept in the file `undo` until it has ended, and is taken back where it
    fails; `undo_growth` takes back an interrupted growth. If neither can, `undo` is left, and the
    filesystem must not be mounted. The programs share a lock on the image, for they outlive us if
    we die.
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
    """Check an unmounted ext4 as at boot; return what e2fsck(8) said. EAGAIN as in growing it.

    The journal is replayed. All is looked at only where the superblock says that it was not
    unmounted properly, without a journal, or has met errors; what takes no decision is mended.
    """
    with _locked(image) as fd:
        return _check_ext4(image, fd)


def _check_ext4(image: Path, fd: int, *options: str) -> str:
    """Check an unmounted ext4, and mend what takes no decision; `fd` is a lock on it.

    A lost+found that it does not have is not made.
    """
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

    EAGAIN while a program works on the image that has outlived who started it.
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
    """Tell whether an undo file holds anything; otherwise nothing was changed, and e2undo fails.

    Its header is whole on the disk before the filesystem is changed for the first time.
    """
    with undo.open("rb") as file:
        header = file.read(_UNDO_HEADER.size)
    if len(header) < _UNDO_HEADER.size:
        return False
    magic, block_size = _UNDO_HEADER.unpack(header)
    return bool(magic == _UNDO_MAGIC and block_size > 0)


def _make_synchronous(undo: Path) -> None:
    """Make an empty file of which every write is durable before the next (chattr(1), S).

    So no change of the image can survive a power cut that the file does not know.
    """
    with opened(undo, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        change_marks(fd, add=FS_SYNC_FL)  # a filesystem that knows no marks may not last either
        os.fsync(fd)
    sync_directory(undo.parent)


def _forget(undo: Path, image: int) -> None:
    """Delete the undo file, durably: found again, it would undo what was written since."""
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
            # A process that another thread is just starting has a copy of the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)


def grow_mounted(kind: str, mountpoint: Path, size: int, *, at: int | None = None) -> None:
    """Make the filesystem mounted at `mountpoint` as large as its device, `size` bytes.

    `mountpoint` is relative to the descriptor `at` if that is given.
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
    """Give an unmounted copy of an XFS or btrfs a UUID of its own.

    Two filesystems with one UUID cannot be mounted side by side: XFS refuses the second, btrfs
    takes it for the first. XFS must have been unmounted properly, for its log is cleared.
    """
    if kind == "xfs":
        program.run("xfs_db", "-x", "-c", "uuid generate", image)
    elif kind == "btrfs":
        _run("btrfstune", "-f", "-m", image)


def _grow_xfs(fd: int, size: int) -> None:
    geometry = fcntl.ioctl(fd, XFS_IOC_FSGEOMETRY_V1, bytes(112))
    words = struct.unpack_from("=8IQ", geometry)
    block_size, inode_percent, blocks = words[0], words[7], words[8]
    # Also where it is that large: then the kernel writes the copies of the superblock anew.
    request = struct.pack("=QI4x", max(size // block_size, blocks), inode_percent)
    fcntl.ioctl(fd, XFS_IOC_FSGROWFSDATA, request)


def copies_agree(image: Path) -> bool:
    """Tell whether the copies of an XFS' superblock know its size; of others, True.

    The kernel writes them when the growth is in the log, and not through it: after a power cut they
    may be old, and xfs_repair believes the most of them.
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
