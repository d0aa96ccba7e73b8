"""The StorageClass parameters, and the choice of what a volume is made of."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from pycsi.linux import filesystem
from pycsi.model import (
    mkfsoptions,
    mountflags,
    rootdirectory,
    triminterval,
)
from pycsi.model.errors import FailedPrecondition, InvalidArgument, OutOfRange
from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import (
    Access,
    Capability,
    CapacityRange,
    Request,
)
from pycsi.model.rootdirectory import AS_MADE, RootDirectory
from pycsi.model.size import (
    BLOCK,
    DEFAULT_SIZE,
    LARGEST,
    MIB,
    round_down,
    round_up,
    show,
)

ORCHESTRATOR = "csi.storage.k8s.io/"
"""The prefix of keys that the orchestrator adds; they describe, they do not decide."""

FILESYSTEM = "csi.storage.k8s.io/fstype"
"""The one such key that decides: the filesystem, where the capability names none."""

DEFAULT_FILESYSTEM = "ext4"
SMALLEST = MIB
"""The least size in bytes of a volume without a filesystem of its own."""

Check = Callable[[str], object]
"""What raises `ValueError` for an impossible value of a parameter, and says what it can be."""


def _one_of(*choices: str) -> Check:
    def check(value: str) -> None:
        if value not in choices:
            raise ValueError(f"it can be {' or '.join(choices)}")

    return check


MUTABLE: Mapping[str, Check] = {
    "onDelete": _one_of("delete", "retain"),
    "fsck": _one_of("true", "false"),
    "trimInterval": triminterval.seconds,
}
"""The parameters that can be modified, with what checks them."""

DEFAULTS: Mapping[str, str] = {"onDelete": "delete", "fsck": "false", "trimInterval": "never"}
"""What these are where nobody says."""

_KEYS = ("pool", "type", "quota", "allocation", "mkfsOptions", *rootdirectory.KEYS, *MUTABLE)
_CHECKS: Mapping[str, Check] = {
    "type": _one_of("directory", "image"),
    "quota": _one_of("required", "none"),
    "allocation": _one_of("thin", "thick"),
    **MUTABLE,
}
_SNAPSHOT_CHECKS: Mapping[str, Check] = {"consistency": _one_of("point-in-time", "files")}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Checked parameters; None where the StorageClass does not say."""

    pool: str | None = None
    type: VolumeType | None = None
    filesystem: str | None = None
    quota: str | None = None
    allocation: str | None = None
    mkfs_options: tuple[str, ...] = ()
    fsck: bool = False
    root: RootDirectory = AS_MADE
    trims: bool = False


def deciding(raw: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters without those that only describe."""
    return {
        key: value
        for key, value in raw.items()
        if key == FILESYSTEM or not key.startswith(ORCHESTRATOR)
    }


def _check(given: Mapping[str, str], keys: Iterable[str], checks: Mapping[str, Check]) -> None:
    allowed = tuple(keys)
    for key, value in given.items():
        if key not in allowed:
            raise InvalidArgument(f"unknown parameter {key!r}; there are {', '.join(allowed)}")
        if key in checks:
            try:
                checks[key](value)
            except ValueError as why:
                raise InvalidArgument(f"parameter {key} is {value!r}; {why}") from None


def settings(raw: Mapping[str, str], mutable: Mapping[str, str]) -> dict[str, str]:
    """Return what a new volume's mutable parameters are; those in `mutable` win."""
    check_mutable(mutable)
    given = {key: value for key, value in raw.items() if key in MUTABLE}
    return {**DEFAULTS, **given, **mutable}


def wants_check(now: Mapping[str, str]) -> bool:
    """Tell whether the filesystem is checked at staging; older volumes do not say."""
    return now.get("fsck") == "true"


def check_mutable(mutable: Mapping[str, str]) -> None:
    """Refuse mutable parameters if any of them is unknown or has an impossible value."""
    _check(mutable, MUTABLE, MUTABLE)


def steady(raw: Mapping[str, str]) -> bool:
    """Check a VolumeSnapshotClass's parameters; tell whether files must be of one moment."""
    own = deciding(raw)
    _check(own, _SNAPSHOT_CHECKS, _SNAPSHOT_CHECKS)
    return own.get("consistency") != "files"


def parse(
    raw: Mapping[str, str],
    keys: Iterable[str] = _KEYS,
    *,
    mutable: Mapping[str, str] | None = None,
) -> Parameters:
    """Check parameters; an unknown key, or one that is not in `keys`, is refused.

    `mutable` are the mutable ones that were given apart from the others, and win over them.
    """
    own = deciding(raw)
    _check({key: own[key] for key in own.keys() - {FILESYSTEM}}, keys, _CHECKS)
    now = settings(own, mutable or {})
    return Parameters(
        pool=own.get("pool"),
        type=VolumeType(own["type"]) if "type" in own else None,
        filesystem=own.get(FILESYSTEM),
        quota=own.get("quota"),
        allocation=own.get("allocation"),
        mkfs_options=mkfsoptions.split(own.get("mkfsOptions", "")),
        fsck=wants_check(now),
        root=RootDirectory.parse(own),
        trims=now["trimInterval"] != triminterval.NEVER,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Make:
    """What a volume shall be made of, and why."""

    type: VolumeType
    reason: str
    access: Access
    filesystem: str | None
    enforced: bool
    thick: bool
    mkfs_options: tuple[str, ...]

    @property
    def minimum(self) -> int:
        """The least size in bytes."""
        return filesystem.KINDS[self.filesystem].minimum if self.filesystem else SMALLEST


def choose(
    wanted: Parameters,
    capabilities: Iterable[Capability],
    *,
    limiter: str | None,
    pool_filesystem: str,
    unlimited: Callable[[], str | None] = lambda: None,
    source: Volume | None = None,
) -> Make:
    """Choose what to make of a request; `limiter` says how the pool limits directories, if it can.

    `unlimited` is asked where that matters, and tells why it cannot now, though it could before.
    `pool_filesystem` is the filesystem that the pool lies on, which a directory has therefore. Without
    capabilities (GetCapacity) a mounted volume is meant. What is not asked for is as in `source`,
    the volume that is cloned or whose snapshot is restored.
    """
    capabilities = tuple(capabilities)
    if source is None:
        return _choose(wanted, capabilities, limiter, unlimited, {pool_filesystem})
    like_source = dataclasses.replace(
        wanted,
        type=wanted.type or source.type,
        filesystem=wanted.filesystem or source.filesystem,
    )
    filesystems = {pool_filesystem, *asked_for(source.request)}
    make = _choose(like_source, capabilities, limiter, unlimited, filesystems)
    _check_source(make, source)
    return dataclasses.replace(make, reason="as its source", mkfs_options=source.mkfs_options)


def asked_for(request: Request) -> set[str]:
    """Return the filesystems that a request names.

    Of a directory they were ignored once, so one that has such a request is used with it still.
    """
    named = {item.filesystem for item in request.capabilities}
    return {kind for kind in (*named, request.parameters.get(FILESYSTEM)) if kind}


def _check_source(make: Make, source: Volume) -> None:
    """Refuse to make something of a source that it cannot be made of."""
    if make.type is not source.type:
        raise InvalidArgument(
            f"the source is a volume of type {source.type}, this one would be of type {make.type}; "
            "leave the parameter type out, or copy the files from one volume to the other"
        )
    if make.access is Access.MOUNT and source.access is Access.BLOCK:
        raise InvalidArgument(
            "the source is a raw block volume, on which anything may be: it is not mounted as a "
            "filesystem; ask for a block volume"
        )
    if make.filesystem and make.filesystem != source.filesystem:
        raise InvalidArgument(
            f"the source has {source.filesystem}, not {make.filesystem}; leave the fs_type out"
        )


def _choose(
    wanted: Parameters,
    capabilities: tuple[Capability, ...],
    limiter: str | None,
    unlimited: Callable[[], str | None],
    directories: set[str],
) -> Make:
    """Choose; `directories` are the filesystems that a directory may be asked for."""
    access = _one({item.access for item in capabilities}, "access type") or Access.MOUNT
    kind = _one({item.filesystem for item in capabilities} - {None}, "fs_type")
    kind = kind or wanted.filesystem
    fits = kind is None or kind in directories
    if kind not in filesystem.KINDS and not fits:
        raise InvalidArgument(f"fs_type is {kind!r}; it can be {', '.join(filesystem.KINDS)}")
    if access is Access.BLOCK:
        make = _raw_block(wanted)
    else:
        type_, reason = _mounted_type(wanted, limiter, unlimited, None if fits else kind)
        if type_ is VolumeType.IMAGE:
            make = _image(wanted, reason, kind or DEFAULT_FILESYSTEM)
        elif fits:
            make = _directory(wanted, reason, limiter, unlimited)
        else:
            raise InvalidArgument(
                f"fs_type is {kind!r}, and a directory has the pool's filesystem, "
                f"{' or '.join(sorted(directories))}; leave the fs_type out, or use type: image"
            )
    for item in capabilities:
        mountflags.check(item, make.type, thick=make.thick)
    if wanted.trims:
        triminterval.check(make.type, make.access, thick=make.thick)
    return make


def _one(values: set[str | None] | set[Access], what: str) -> "str | None":
    if len(values) > 1:
        raise InvalidArgument(f"the capabilities name more than one {what}; a volume has one")
    return next(iter(values), None)


def _mounted_type(
    wanted: Parameters,
    limiter: str | None,
    unlimited: Callable[[], str | None],
    other: str | None,
) -> tuple[VolumeType, str]:
    """Choose the type; `other` is a filesystem that is wanted and that no directory has."""
    if wanted.type:
        return wanted.type, "asked for"
    if wanted.quota == "none":
        return VolumeType.DIRECTORY, "quota: none is for directories"
    if wanted.allocation or wanted.mkfs_options or wanted.fsck or wanted.trims:
        return VolumeType.IMAGE, "allocation, mkfsOptions, fsck and trimInterval are for images"
    if other:
        return VolumeType.IMAGE, f"a directory would not have {other}"
    fault = unlimited() if limiter else None
    if limiter and not fault:
        return VolumeType.DIRECTORY, f"the pool limits directories by {limiter}"
    now = f" now: {fault}" if fault else ""
    return VolumeType.IMAGE, f"the pool cannot limit the size of a directory{now}"


def _raw_block(wanted: Parameters) -> Make:
    if wanted.type is VolumeType.DIRECTORY:
        raise InvalidArgument("a directory cannot be a block device; use type: image, or none")
    if wanted.mkfs_options:
        raise InvalidArgument("a raw block volume is not formatted; leave mkfsOptions out")
    if wanted.fsck:
        raise InvalidArgument("a raw block volume is its user's to check; leave fsck out")
    if wanted.root != AS_MADE:
        raise InvalidArgument(
            f"a raw block volume has no root directory; leave {', '.join(rootdirectory.KEYS)} out"
        )
    return Make(
        type=VolumeType.IMAGE,
        reason="raw block needs an image",
        access=Access.BLOCK,
        filesystem=None,
        enforced=True,
        thick=_thick(wanted),
        mkfs_options=(),
    )


def _directory(
    wanted: Parameters, reason: str, limiter: str | None, unlimited: Callable[[], str | None]
) -> Make:
    for key, value in (("allocation", wanted.allocation), ("mkfsOptions", wanted.mkfs_options)):
        if value:
            raise InvalidArgument(f"parameter {key} is for type: image, not for a directory")
    if wanted.fsck:
        raise InvalidArgument(
            "parameter fsck is for type: image: a directory has no filesystem of its own to check, "
            "and the pool's is in use; leave fsck out"
        )
    if limiter is None and wanted.quota != "none":
        raise InvalidArgument(
            "this pool's filesystem cannot limit the size of a directory: mount it with prjquota "
            "(XFS, ext4) or use btrfs; or use type: image; or accept that with quota: none"
        )
    # Where the type was left open this was asked before.
    if wanted.type and wanted.quota != "none" and (fault := unlimited()):
        raise FailedPrecondition(
            f"this pool cannot limit the size of a directory now: {fault}; or use type: image; or "
            "accept that with quota: none"
        )
    return Make(
        type=VolumeType.DIRECTORY,
        reason=reason,
        access=Access.MOUNT,
        filesystem=None,
        enforced=wanted.quota != "none",
        thick=False,
        mkfs_options=(),
    )


def _image(wanted: Parameters, reason: str, kind: str) -> Make:
    if kind not in filesystem.KINDS:
        raise InvalidArgument(
            f"fs_type is {kind!r}; that of an image can be {', '.join(filesystem.KINDS)}"
        )
    thick = _thick(wanted)
    mkfsoptions.check(kind, wanted.mkfs_options)
    if missing := filesystem.missing_programs(kind):
        raise FailedPrecondition(f"{kind}: {', '.join(missing)} not installed on this node")
    return Make(
        type=VolumeType.IMAGE,
        reason=reason,
        access=Access.MOUNT,
        filesystem=kind,
        enforced=True,
        thick=thick,
        mkfs_options=wanted.mkfs_options,
    )


def _thick(wanted: Parameters) -> bool:
    if wanted.quota == "none":
        raise InvalidArgument("parameter quota: none is for a directory; an image has a size")
    return wanted.allocation == "thick"


def size_from(wanted: CapacityRange | None, source: int, minimum: int) -> int:
    """Return the size for a volume that is made from a source of `source` bytes: no less."""
    wanted = wanted or CapacityRange()
    limit = LARGEST if wanted.limit is None else wanted.limit
    if source > limit or (wanted.required is not None and source > round_up(wanted.required)):
        raise OutOfRange(
            f"the source has {source} bytes ({show(source)}), and a volume made from it has no "
            "less; ask for at least as much"
        )
    return size_for(CapacityRange(required=wanted.required or source, limit=wanted.limit), minimum)


def size_for(wanted: CapacityRange | None, minimum: int) -> int:
    """Return the size in bytes for a capacity range, or `OutOfRange` where none fits.

    That is the required size, or the default within the limit, rounded up to whole blocks and to
    the least that the volume can be made of.
    """
    wanted = wanted or CapacityRange()
    limit = LARGEST if wanted.limit is None else round_down(wanted.limit)
    size = wanted.required if wanted.required is not None else min(DEFAULT_SIZE, limit)
    size = max(round_up(size), minimum)
    if size > limit:
        raise OutOfRange(
            f"no size fits: at least {show(size)} ({size} bytes: whole blocks of {BLOCK}, least "
            f"{show(minimum)}), at most {limit} bytes; raise limit_bytes or change required_bytes"
        )
    return size
