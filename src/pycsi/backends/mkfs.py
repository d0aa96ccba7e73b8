"""Whether this kernel mounts what this node's mkfs makes, and which options it takes that it does.

A newer mkfs may switch features on that an older kernel does not know: xfsprogs 6.5 does so with
nrext64, which is in Linux since 5.19. A node's programs are often newer than its kernel, for they
come with the container's image. So the first filesystem of a kind is tried, once.
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
    loop,
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
"""What to leave out where the kernel refuses the defaults, the newest feature first.

A kernel without one has none of those before it. They are in Linux since: orphan_file 5.15,
metadata_csum_seed 4.4; parent and exchange 6.10, nrext64 5.19; block-group-tree 6.1.
"""

REFUSALS = frozenset(
    {errno.EINVAL, errno.EUCLEAN, errno.EBADMSG, errno.ENOSYS, errno.EFBIG, errno.EOPNOTSUPP}
)
"""What the kernel says to a filesystem that it does not know; any other error may pass."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The mkfs options, with their values, that the kernel wants; or its `refusal`, for people."""

    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refusal: str | None = None


_Version = tuple[str, int, int] | None

_known: dict[str, tuple[_Version, Fit]] = {}
_trying = {kind: threading.Lock() for kind in filesystem.KINDS}


def fit(kind: str, folder: Path | str) -> Fit:
    """Return how to make a filesystem of `kind`; it is tried in `folder` where that is not known.

    What could not be found out just now, for want of room, devices or privileges, is neither
    remembered nor refused.
    """
    version = _version(f"mkfs.{kind}")
    with _trying[kind]:  # who comes second waits for what the first one finds out
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
    """Return why the kernel mounts no filesystem of `kind` that is made with the options `words`.

    What options of a class's own make is seen when a volume is made.
    """
    return None if kind is None or words else fit(kind, folder).refusal


def _version(name: str) -> _Version:
    """Return what changes when another version of a program is installed."""
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
    """Make a filesystem and mount it, writable, where nobody sees it; return why it cannot be."""
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
            os.truncate(image, 0)  # XFS frees the blocks of what is unlinked a moment later
        shutil.rmtree(place, ignore_errors=True)


def _mount_once(kind: str, image: Path) -> None:
    """Mount the filesystem in a file, writable, where nobody sees it, and let go again."""
    found = filesystem.identify(image)
    sector = found.sector if found else loop.SMALLEST_SECTOR
    with (
        loop.attach(image, sector=sector, autoclear=True, name="mkfs") as device,
        mount.detached(kind, device.path),
    ):
        pass


def merged(base: Mapping[str, str], words: Iterable[str]) -> list[str]:
    """Return the mkfs options `words`, with those of `base` that they do not decide otherwise.

    Of an option's values the words' come last: with all three programs the last one counts, or
    only one is allowed.
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
