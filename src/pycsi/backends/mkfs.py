"""Finding mkfs options that make filesystems which this node's kernel can mount.

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

from pycsi.linux import (
    filesystem,
    losetup,
    mount,
    program,
)
from pycsi.linux.descriptor import opened

log = structlog.get_logger()

_RETREATS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ext4": (("-O", "^orphan_file"), ("-O", "^metadata_csum_seed")),
    "xfs": (("-n", "parent=0"), ("-i", "exchange=0"), ("-i", "nrext64=0")),
    "btrfs": (("-O", "^block-group-tree"),),
}
"""The features to switch off, one after another, if the kernel refuses mkfs's defaults.

The newest is first: a kernel that lacks a feature also lacks those before it. Linux has orphan_file
since 5.15, metadata_csum_seed since 4.4; parent and exchange since 6.10, nrext64 since 5.19;
block-group-tree since 6.1.
"""

REFUSALS = frozenset(
    {errno.EINVAL, errno.EUCLEAN, errno.EBADMSG, errno.ENOSYS, errno.EFBIG, errno.EOPNOTSUPP}
)
"""The errors of mount(2) for unknown features or sizes; other errors may be temporary."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The mkfs options, by name, that this kernel needs; or why it mounts none (`refusal`)."""

    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refusal: str | None = None


_Version = tuple[str, int, int] | None

_known: dict[str, tuple[_Version, Fit]] = {}
_trying = {kind: threading.Lock() for kind in filesystem.KINDS}


def fit(kind: str, folder: Path | str) -> Fit:
    """Return the options for filesystems of `kind`, found by a trial in the directory `folder`.

    The result is remembered until another version of mkfs is installed. If the trial fails for want
    of space, loop devices or privileges, the result is an empty `Fit`, which is not remembered.
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
                return Fit(refusal=f"this kernel has no {kind}; load its module")
        try:
            found = _find(kind, Path(folder))
        except (OSError, program.ProgramError) as error:
            log.info("not tried what mkfs makes", filesystem=kind, error=str(error))
            return Fit()
        if found.options or found.refusal:
            log.warning(
                "the kernel does not mount what mkfs makes of itself",
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
    return None if kind is None or words else fit(kind, folder).refusal


def _version(name: str) -> _Version:
    """Identify the installed version of a program by its file; None if it is missing."""
    path = program.find(name)
    if path is None:
        return None
    status = Path(path).stat()
    return path, status.st_ino, status.st_mtime_ns


def _find(kind: str, folder: Path) -> Fit:
    first = refusal = _try(kind, folder, {})
    options: dict[str, str] = {}
    for option, value in _RETREATS[kind]:
        if refusal is None:
            break
        more = {**options, option: ",".join(filter(None, (options.get(option), value)))}
        with contextlib.suppress(program.ProgramError):  # a mkfs without the feature
            refusal = _try(kind, folder, more)
            options = more
    return Fit(options=options) if refusal is None else Fit(refusal=first)


def _try(kind: str, folder: Path, options: Mapping[str, str]) -> str | None:
    """Make a filesystem and mount it for trial; return why the kernel refuses, or None."""
    with _scratch(folder) as image:
        with opened(image, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            os.ftruncate(fd, filesystem.KINDS[kind].minimum)
        filesystem.make(kind, image, merged(options, ()))
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
