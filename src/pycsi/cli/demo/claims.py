"""The claims about volumes, each proved by doing what it claims.

A claim is a function that returns one sentence on what was found, or raises `Disproved`. The
summary lists the claims by the names of their functions.
"""

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pycsi.linux import kernel
from pycsi.model.records import Usage
from pycsi.model.size import BLOCK, MIB, show

KEPT = "kept"
"""The file that is written first to a volume, and must survive everything after."""

PATIENCE = 60.0
"""Seconds in which deleted data must be gone: the driver frees it at the lowest priority."""

_FOLDERS = ("volumes", "snapshots", "groups", "frozen", "tmp", "trash")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_LEAST_SHARE = 0.6  # of a filesystem's size, for files; the rest is XFS's log, ext4's inode tables
_NOISE = 64  # the tolerance, 1/64 of a pool's available capacity, for other users of the disk
_OF_THE_MACHINE = frozenset(
    {"KernelFeatureMissing", "PoolErrors", "PoolFewInodes", "PoolNearlyFull", "ProgramMissing"}
)
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_TEXT = b"written through the published path\n"


class Disproved(Exception):
    """A claim is not true."""

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(expected, found)
        self.expected = expected
        self.found = found


def expect(expected: str, found: object, *, true: bool) -> None:
    """Raise `Disproved`, with what was `expected` and what was `found`, unless `true`."""
    if not true:
        raise Disproved(expected=expected, found=str(found))


# Creation


def creation_idempotent(first: str, again: str) -> str:
    expect(f"the same request gives {first} again", again, true=first == again)
    return "the same request again gives the same volume"


def no_other_size(reason: str) -> str:
    expect("the reason names capacity_range", reason, true="capacity_range" in reason)
    return "its name with another size is refused"


def near(promised: int, now: int) -> bool:
    """Tell whether two available capacities in bytes are equal, but for other users of the disk."""
    return abs(promised - now) <= promised // _NOISE


def capacity_counted(before: int, after: int, size: int) -> str:
    """Prove that GetCapacity promises `size` bytes less after a volume of that size was made.

    A small difference is allowed, for other users of the disk and the filesystem's own records.
    """
    found = f"{before - after} bytes less"
    counted = near(before - size, after)
    expect(f"GetCapacity promises {size} bytes less", found, true=counted)
    return f"the pool promises {show(size)} less than before"


def room_returned(before: int, after: int) -> str:
    expect(f"GetCapacity promises {before} bytes again", after, true=near(before, after))
    return f"all the room is back: {show(after)}"


# Files


def _write(path: Path, data: bytes, limit: int) -> tuple[int, OSError | None]:
    """Write `data` repeatedly until `limit` bytes; return the bytes written and the error, if any.

    The file is synchronised, since some filesystems notice only then that they are full.
    """
    written = 0
    try:
        with path.open("r+b" if path.exists() else "xb", buffering=0) as file:
            while written < limit:
                written += file.write(data[: limit - written])
            os.fsync(file)
    except OSError as error:
        return written, error
    return written, None


def keeps_files(target: Path) -> str:
    written, error = _write(target / KEPT, _TEXT, len(_TEXT))
    expect("a file can be written", error, true=error is None)
    read = (target / KEPT).read_bytes()
    expect(f"{_TEXT!r} is read back", read, true=read == _TEXT)
    return f"a file of {written} bytes was written, synchronised and read back"


def shared(target: Path) -> str:
    found = (target / KEPT).read_bytes()
    expect("the second target shows the same file", found, true=found == _TEXT)
    return "the second target shows the same file"


def data_survives(target: Path) -> str:
    found = (target / KEPT).read_bytes()
    expect(f"the file still holds {_TEXT!r}", found, true=found == _TEXT)
    return "the file is still there after unpublish, unstage, stage and publish"


def size_enforced(target: Path, size: int) -> str:
    """Prove that all files together can have most of `size` bytes, but no more than that."""
    before = _used_by_files(target)
    written, error = _write(target / f"fill-{size}", os.urandom(MIB), 2 * size)
    number = error.errno if error else None
    expect("writing past the size is ENOSPC or EDQUOT", error, true=number in _FULL)
    total = before + written
    expect(
        f"between {_LEAST_SHARE:.0%} and 100% of {show(size)} fit",
        show(total),
        true=_LEAST_SHARE * size < total <= size,
    )
    besides = f", {before // MIB} MiB of them from before" if before >= MIB else ""
    return (
        f"writing past the size was refused: {errno.errorcode[number or 0]} after "
        f"{total // MIB} MiB{besides}"
    )


def _used_by_files(target: Path) -> int:
    return sum(item.stat().st_size for item in target.iterdir() if item.is_file())


def read_only(target: Path) -> str:
    _, error = _write(target / "intruder", _TEXT, len(_TEXT))
    number = error.errno if error else None
    expect("writing is EROFS", error or "it was written", true=number == errno.EROFS)
    shared(target)
    return "the read-only target refuses a write, EROFS, and shows the file"


# Sizes


def statvfs_size(target: Path, size: int) -> str:
    facts = os.statvfs(target)
    total = facts.f_blocks * facts.f_frsize
    expected = f"statvfs shows {_LEAST_SHARE:.0%} to 100% of {show(size)}"
    expect(expected, show(total), true=_LEAST_SHARE * size < total <= size)
    return f"statvfs shows {show(total)} of {show(size)}; the rest is the filesystem's own"


def stats_agree(target: Path, usage: Usage, size: int | None) -> str:
    """Prove that NodeGetVolumeStats reports `size` bytes, or the size from statvfs(3) if None."""
    facts = os.statvfs(target)
    total = size or facts.f_blocks * facts.f_frsize
    expect(f"NodeGetVolumeStats says {total} bytes", usage.total, true=usage.total == total)
    used = f"{show(usage.used)} used of " if usage.used else ""
    return f"NodeGetVolumeStats agrees: {used}{show(usage.total)}"


def expanded(controller: int, node: int, wanted: int) -> str:
    """Prove that both expansion RPCs have returned the wanted capacity in bytes."""
    said = f"ControllerExpandVolume says {controller}, NodeExpandVolume {node}"
    expect(f"both say {wanted} bytes", said, true=controller == node == wanted)
    return f"both expansions say that it has {show(wanted)} now"


# Block devices


def _pattern(size: int) -> bytes:
    return f"the last block of {size} bytes ".encode().ljust(BLOCK, b"#")


def device_size(device: Path, size: int) -> str:
    expect("a block device", device, true=device.is_block_device())
    with device.open("rb") as file:
        found = file.seek(0, os.SEEK_END)
    expect(f"a device of {size} bytes", found, true=found == size)
    return f"the device has exactly {show(size)}"


def keeps_blocks(device: Path, size: int) -> str:
    """Prove that the last block can be written, but no block after it."""
    with device.open("r+b", buffering=0) as file:
        file.seek(size - BLOCK)
        file.write(_pattern(size))
        os.fsync(file)
        try:
            file.write(_pattern(size))
        except OSError as error:
            expect("a write past the end is ENOSPC", error, true=error.errno == errno.ENOSPC)
        else:
            raise Disproved(expected="no block past the end", found="one could be written")
    blocks_survive(device, size)
    return f"its last block keeps a pattern; a write past {size // MIB} MiB was refused: ENOSPC"


def blocks_survive(device: Path, size: int) -> str:
    with device.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from disk, not the cache
        file.seek(size - BLOCK)
        found = file.read(BLOCK)
    expected = f"the pattern in the last block of {show(size)}"
    expect(expected, found[:40], true=found == _pattern(size))
    return f"the pattern is still in the block that ends at {show(size)}"


def same_device(first: Path, other: Path) -> str:
    numbers = first.stat().st_rdev, other.stat().st_rdev
    expect("both targets are one device", numbers, true=numbers[0] == numbers[1])
    return "the second target is the same device"


def read_only_device(device: Path, size: int) -> str:
    """Prove that the device refuses a writer, either at open(2) or at write(2)."""
    _, error = _write(device, b"\0" * BLOCK, BLOCK)
    number = error.errno if error else None
    expect("writing is EROFS, EACCES or EPERM", error, true=number in _READ_ONLY)
    blocks_survive(device, size)
    return f"the read-only device refuses a write, {errno.errorcode[number or 0]}, and can be read"


# The end


def described(status: int, printed: str) -> str:
    expect("pycsi describe ends with status 0", f"{status}: {printed}", true=status == 0)
    return "disk and kernel tell all of the pools, beside the driver"


def nothing_wrong(status: int, printed: str) -> str:
    """Prove that the doctor finds nothing, unless about the machine, which may lack something."""
    codes = set(re.findall(r"^\w+: .+ \((\w+)\)$", printed, re.MULTILINE))
    ours = status == 1 and codes <= _OF_THE_MACHINE
    expect("pycsi doctor finds nothing wrong", printed, true=status == 0 or ours)
    return "nothing is wrong with the pools, and nothing is left over"


def ended(status: int) -> str:
    expect("the driver ends with status 0 on SIGTERM", status, true=status == 0)
    return "the driver ended on SIGTERM with status 0"


def nothing_left(pool: Path, folder: Path) -> str:
    """Prove that a pool is empty once all was deleted, with no mount, loop device or target left.

    `folder` is where the volumes were staged and published.
    """
    _expect_none("no mount", lambda: _mounts_below(folder))
    _expect_none("no loop device", lambda: _loops_on(pool))
    _expect_none("no target", lambda: sorted(item.name for item in folder.rglob("target-*")))
    for name in _FOLDERS:
        _expect_none(f"nothing in {name}/", partial(_entries, pool / name))
    return "nothing is left: no mount, no loop device, no target, no file in the pool"


def _expect_none(claim: str, look: Callable[[], list[str]]) -> None:
    # The driver empties its trash in the background, and the kernel frees a loop device after its
    # last user. Both may take a moment.
    deadline = time.monotonic() + PATIENCE
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    expect(claim, ", ".join(found), true=not found)


def _mounts_below(folder: Path) -> list[str]:
    return [item.target for item in kernel.mountinfo() if Path(item.target).is_relative_to(folder)]


def _loops_on(pool: Path) -> list[str]:
    files = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # freed since the listing
            files.append(entry.read_text().strip())
    return [file for file in files if file.startswith(f"{pool}/")]


def _entries(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())
