"""Directory trees with one of everything, and a description of a tree that shows any difference."""

import os
import random
import socket
import stat
import struct
from pathlib import Path
from typing import Any

ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, number)
    for tag, bits, number in [
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 5, 12345),
        (0x04, 4, 0xFFFFFFFF),
        (0x08, 6, 3_000_000),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
)
"""An access control list (acl(5)) as the kernel has it."""

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""The file capability cap_net_bind_service (capabilities(7))."""


def make(root: Path, *, privileged: bool = False) -> None:
    """Make one of everything in an empty directory; device nodes and setuid if `privileged`."""
    chance = random.Random(7)  # noqa: S311
    (root / "empty").touch()
    (root / "deep" / "er").mkdir(parents=True)
    for number in range(20):
        (root / "deep" / "er" / f"file {number}").write_bytes(chance.randbytes(number * 777))
    (root / "large").write_bytes(chance.randbytes(3_000_001))
    with (root / "holes").open("wb") as file:
        for start in (1 << 20, 5 << 20, 9 << 20):
            file.seek(start)
            file.write(chance.randbytes(10_000))
        file.truncate(20 << 20)
    with (root / "only a hole").open("wb") as file:
        file.truncate(7_654_321)
    os.link(root / "large", root / "deep" / "large again")
    os.link(root / "holes", root / "a first name of holes")
    (root / "link").symlink_to("../../etc/passwd")
    (root / "dangling").symlink_to("x" * 300)
    (root / ("n" * 250)).write_text("a long name")
    long = root.joinpath(*["d" * 200] * 3)
    long.mkdir(parents=True)
    (long / "below").write_text("a long path")
    (root / "täg\n\t'\"\\ name").write_text("an odd name")
    (root / os.fsdecode(b"no text \xff\xfe")).write_text("a name that is no text")
    (root / os.fsdecode(b"link to no text")).symlink_to(os.fsdecode(b"\xff"))
    os.mkfifo(root / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(root)
        made.bind("socket")
        os.chdir(here)
    _attributes(root)
    if privileged:
        _privileged(root)
    os.utime(root / "fifo", ns=(1_000_000_001, 999_999_999))
    os.utime(root / "large", ns=(2, 1_600_000_000_123_456_789))
    os.utime(root / "link", ns=(5_000_000_000_000_000_000, 7), follow_symlinks=False)
    os.utime(root / "deep", ns=(3_000_000_000, 4_000_000_005))
    os.utime(root, ns=(11_000_000_000, 12_000_000_013))


def _attributes(root: Path) -> None:
    for name, value in (("user.plain", b"value"), ("user.bytes", bytes(range(256)))):
        os.setxattr(root / "large", name, value)
    os.setxattr(root / "deep", "user.a=b%c", b"=\n")
    os.setxattr(root / "deep", "trusted.overlay.opaque", b"y")
    os.setxattr(root / "empty", "system.posix_acl_access", ACL)
    os.setxattr(root / "deep" / "er", "system.posix_acl_default", ACL)
    os.setxattr(root / "link", "trusted.of.link", b"1", follow_symlinks=False)
    os.chown(root / "link", 12, 34, follow_symlinks=False)
    os.chown(root / "empty", 4_000_000, 3_000_000)
    (root / "deep" / "er").chmod(0o1777)
    (root / "deep").chmod(0o2750)


def _privileged(root: Path) -> None:
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    (root / "setuid").touch()
    (root / "setuid").chmod(0o6755)
    (root / "able").touch()
    os.setxattr(root / "able", "security.capability", CAPABILITY)


def describe(root: Path) -> dict[str, Any]:
    """Return all that is to be kept of each file below a directory, and of the directory."""
    first: dict[int, str] = {}
    found = {}
    paths = [root, *sorted(root.rglob("*"))]
    for path in paths:
        name = str(path.relative_to(root))
        status = path.lstat()
        described: list[Any] = [
            stat.filemode(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev,
            {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in sorted(os.listxattr(path, follow_symlinks=False))
                if not key.startswith(("security.selinux", "btrfs.", "trusted.SGI_ACL_"))
            },
        ]
        if not stat.S_ISDIR(status.st_mode):
            described += [status.st_nlink, first.setdefault(status.st_ino, name), status.st_size]
        if stat.S_ISLNK(status.st_mode):
            described.append(path.readlink())
        if stat.S_ISREG(status.st_mode):
            described += [holes(path), path.read_bytes()]
        found[name] = described
    return found


def holes(path: Path) -> list[tuple[int, int]]:
    """Return the ranges of a file that are holes, in whole units of 128 KiB.

    So it makes no difference what a filesystem allocates beyond the data that was written.
    """
    found = []
    unit = 128 * 1024
    with path.open("rb") as file:
        size, at = path.stat().st_size, 0
        while at < size:
            start = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            try:
                at = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole follows
                at = size
            if start + unit <= at:
                found.append((-(-start // unit) * unit, at // unit * unit))
    return [(start, end) for start, end in found if start < end]
