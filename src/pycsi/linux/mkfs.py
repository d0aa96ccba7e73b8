"""Making filesystems in image files, by mkfs: ext4, XFS and btrfs that this kernel can mount.

A newer mkfs may switch on features that an older kernel does not know: xfsprogs 6.5 does so with
nrext64, which Linux has since 5.19. A node's programs are often newer than its kernel, because they
come with the container image. So the driver makes and mounts a filesystem of each kind for trial.
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from pycsi.linux import btrfsprogs, filesystem, losetup, mount, program
from pycsi.linux.descriptor import opened

log = structlog.get_logger()

MIB = 1024 * 1024

_SECTOR = 4096


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The properties of one kind of filesystem.

    `programs` are those that it needs, `make` the arguments that mkfs always gets, and
    `keep_blocks` those that keep mkfs from discarding the file's blocks. `options` are the mkfs
    options that users may give; those that take a value map to True. `minimum` is the smallest size
    in bytes.
    """

    programs: tuple[str, ...]
    make: tuple[str, ...]
    keep_blocks: tuple[str, ...]
    options: dict[str, bool]
    minimum: int


KINDS = {
    "ext4": Kind(
        programs=("mkfs.ext4", "e2fsck", "resize2fs", "e2undo"),
        # -m 0: blocks reserved for root are of no use in a volume.
        # -b 4096: smaller blocks do not work on a disk with sectors of 4 KiB.
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
        minimum=256 * MIB,  # the kernel refuses to resize a btrfs to less
    ),
}

_FALLBACKS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ext4": (("-O", "^orphan_file"), ("-O", "^metadata_csum_seed")),
    "xfs": (("-n", "parent=0"), ("-i", "exchange=0"), ("-i", "nrext64=0")),
    "btrfs": (("-O", "^block-group-tree"),),
}
"""The features to switch off, one after another, if the kernel refuses mkfs's defaults.

The newest is first: a kernel that lacks a feature also lacks those before it. Linux has orphan_file
since 5.15, metadata_csum_seed since 4.4; parent and exchange since 6.10, nrext64 since 5.19;
block-group-tree since 6.1.
"""

PACKAGES: Mapping[str, str] = {"btrfs": "btrfs-progs", "ext4": "e2fsprogs", "xfs": "xfsprogs"}
"""The package with each filesystem's programs; distributions agree on the names."""

REFUSALS = frozenset(
    {errno.EINVAL, errno.EUCLEAN, errno.EBADMSG, errno.ENOSYS, errno.EFBIG, errno.EOPNOTSUPP}
)
"""The errors of mount(2) for unknown features or sizes; other errors may be temporary."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelSupport:
    """Whether this kernel mounts filesystems of a kind, as the installed mkfs makes them.

    `options` are the mkfs options, by name, that it needs for that. `refusal` is why it mounts
    none; None if it does.
    """

    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refusal: str | None = None


_Version = tuple[str, int, int] | None

_known: dict[str, tuple[_Version, KernelSupport]] = {}
_trying = {kind: threading.Lock() for kind in KINDS}


def missing_programs(kind: str) -> list[str]:
    """Return the names of the programs that `kind` needs but that are not installed."""
    return [name for name in KINDS[kind].programs if program.find(name) is None]


def kernel_support(kind: str, folder: Path | str) -> KernelSupport:
    """Return how the kernel supports `kind`, found by a trial in the directory `folder`.

    The result is remembered until another version of mkfs is installed. If the trial fails for want
    of space, loop devices or privileges, the result is an empty one, which is not remembered.
    """
    version = _version(f"mkfs.{kind}")
    with _trying[kind]:  # other threads wait for the result of the first one
        known = _known.get(kind)
        if known and known[0] == version:
            return known[1]
        try:
            mount.require(kind)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return KernelSupport(refusal=f"this kernel has no {kind}; load its module")
        try:
            found = _try_fallbacks(kind, Path(folder))
        except (OSError, program.ProgramError) as error:
            log.info(
                "cannot try whether the kernel mounts what mkfs makes",
                filesystem=kind,
                error=str(error),
            )
            return KernelSupport()
        if found.options or found.refusal:
            log.warning(
                "the kernel does not mount what mkfs makes by default",
                filesystem=kind,
                options=" ".join(map(" ".join, found.options.items())),
                refusal=found.refusal,
            )
        _known[kind] = version, found
        return found


def refusal(kind: str | None, words: Sequence[str], folder: Path) -> str | None:
    """Return why the kernel cannot mount a filesystem of `kind`; None if it can, or is not known.

    With mkfs options of its own, `words`, a volume is tested only when it is created.
    """
    return None if kind is None or words else kernel_support(kind, folder).refusal


def _version(name: str) -> _Version:
    """Identify the installed version of a program by its file; None if it is missing."""
    path = program.find(name)
    if path is None:
        return None
    status = Path(path).stat()
    return path, status.st_ino, status.st_mtime_ns


def _try_fallbacks(kind: str, folder: Path) -> KernelSupport:
    first = refusal = _try(kind, folder, {})
    options: dict[str, str] = {}
    for option, value in _FALLBACKS[kind]:
        if refusal is None:
            break
        more = {**options, option: ",".join(filter(None, (options.get(option), value)))}
        with contextlib.suppress(program.ProgramError):  # a mkfs without the feature
            refusal = _try(kind, folder, more)
            options = more
    return KernelSupport(options=options) if refusal is None else KernelSupport(refusal=first)


def _try(kind: str, folder: Path, options: Mapping[str, str]) -> str | None:
    """Make a filesystem and mount it for trial; return why the kernel refuses, or None."""
    with _scratch(folder) as image:
        with opened(image, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            os.ftruncate(fd, KINDS[kind].minimum)
        make(kind, image, base=options)
        try:
            _mount_once(kind, image)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return error.strerror
    return None


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    place = folder / f"mkfs.{os.urandom(4).hex()}"
    image = place / "disk.img"
    place.mkdir(mode=0o700)
    try:
        yield image
    finally:
        with contextlib.suppress(OSError):
            os.truncate(image, 0)  # frees the blocks now; XFS does so a moment after unlink(2)
        shutil.rmtree(place, ignore_errors=True)


def make(
    kind: str,
    image: Path,
    options: Sequence[str] = (),
    *,
    base: Mapping[str, str] | None = None,
    keep_blocks: bool = False,
) -> None:
    """Make a filesystem that fills the file `image`, with the mkfs `options` merged over `base`.

    With `keep_blocks`, mkfs does not discard the blocks that are allocated to the file.
    """
    facts = KINDS[kind]
    words = merged(base, options) if base else options
    kept = facts.keep_blocks if keep_blocks else ()
    # A file that shares blocks takes direct I/O in whole blocks only.
    sectors = ("-s", f"size={_SECTOR}") if kind == "xfs" and "-s" not in words else ()
    execute = btrfsprogs.run if kind == "btrfs" else program.run
    execute(f"mkfs.{kind}", *facts.make, *sectors, *kept, *words, image)


def _mount_once(kind: str, image: Path) -> None:
    """Mount the filesystem in a file writable, detached from any path, and unmount it again."""
    found = filesystem.identify(image)
    sector = found.sector if found else losetup.SMALLEST_SECTOR
    with (
        losetup.attach(image, sector=sector, autoclear=True, name="mkfs") as device,
        mount.detached(kind, device.path),
    ):
        pass


def merged(base: Mapping[str, str], words: Iterable[str]) -> list[str]:
    """Return the mkfs options `words`, with those values of `base` that they do not contradict.

    Values of the same option are joined, those of `words` last: in all three mkfs programs the last
    value takes effect, or an option may be given only once.
    """
    result = list(words)
    for option, value in base.items():
        places = [at for at, word in enumerate(result) if word.startswith(option)]
        given = [result[at][2:] or result[at + 1] for at in places]
        decided = {_feature(item) for text in given for item in text.split(",")}
        kept = [item for item in value.split(",") if _feature(item) not in decided]
        if places:
            result[places[-1] : places[-1] + (1 if result[places[-1]][2:] else 2)] = [
                option,
                ",".join([*kept, given[-1]]),
            ]
        else:
            result = [option, value, *result]
    return result


def _feature(item: str) -> str:
    return item.lstrip("^").partition("=")[0]
