"""The spec of a new volume, and its size: chosen from the request and the pool's abilities."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable

from pycsi.linux import mkfs
from pycsi.model import encryption, iolimits, mkfsoptions, mountflags, rootdirectory, triminterval
from pycsi.model.errors import FailedPrecondition, InvalidArgument, OutOfRange
from pycsi.model.parameters import DEFAULT_FILESYSTEM, FILESYSTEM, Parameters
from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import Access, Capability, CapacityRange, RecordedRequest
from pycsi.model.size import BLOCK, DEFAULT_SIZE, LARGEST, MIB, round_down, round_up, show

_SMALLEST = MIB
"""The smallest size in bytes of a directory or a raw block volume."""

_LARGEST_EXT4 = 2**60
_NARROW = re.compile(r"\^64bit\b")
_BLOCK_SIZE = re.compile(r"(?:^| )-b ?(\d+)\b")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpec:
    """How a new volume is to be stored.

    `reason` says why its type was chosen. `encryption` is that of an encrypted image, or None.
    `minimum` is the smallest size in bytes that it can have.
    """

    type: VolumeType
    reason: str
    access: Access
    filesystem: str | None
    enforced: bool
    thick: bool
    mkfs_options: tuple[str, ...]
    encryption: str | None = None
    minimum: int = _SMALLEST


def choose(
    given: Parameters,
    capabilities: Collection[Capability],
    *,
    limiter: str | None,
    directories: Collection[str],
    limit_fault: Callable[[], str | None] = lambda: None,
) -> VolumeSpec:
    """Return the spec of the volume that a request asks for.

    `limiter` names the pool's way to limit directories, None if it has none. `limit_fault` returns
    why that does not work at present, or None; it is called only if needed. `directories` are the
    filesystems that a directory may be asked for: the pool's own, which it uses, and those that its
    source was asked for. Without capabilities (GetCapacity) the volume is a mounted one. A request
    that no volume can satisfy raises `InvalidArgument`; one that this pool or node cannot satisfy
    at present raises `FailedPrecondition`.
    """
    access = _only({item.access for item in capabilities}, "access type") or Access.MOUNT
    kind = _only({item.filesystem for item in capabilities} - {None}, "fs_type")
    kind = kind or given.filesystem
    fits = kind is None or kind in directories
    if kind not in mkfs.KINDS and not fits:
        raise InvalidArgument(f"fs_type is {kind!r}; it can be {', '.join(mkfs.KINDS)}")
    if access is Access.BLOCK:
        spec = _raw_block(given)
    else:
        type_, reason = _mounted_type(given, limiter, limit_fault, None if fits else kind)
        if type_ is VolumeType.IMAGE:
            spec = _image(given, reason, kind or DEFAULT_FILESYSTEM)
        elif fits:
            spec = _directory(given, reason, limiter, limit_fault)
        else:
            raise InvalidArgument(
                f"fs_type is {kind!r}, and a directory has the pool's filesystem, "
                f"{' or '.join(sorted(directories))}; leave the fs_type out, or use type: image"
            )
    for item in capabilities:
        if item.mount_flags:
            mountflags.check(item.mount_flags, spec.type, spec.filesystem, thick=spec.thick)
    if given.trims:
        triminterval.check(spec.type, spec.access, thick=spec.thick)
    if given.limits_io:
        iolimits.check(spec.type)
    if encrypted := given.encryption not in {None, encryption.NONE}:
        encryption.check(spec.type)
    return dataclasses.replace(spec, encryption=given.encryption if encrypted else None)


def inherit(source: Volume, given: Parameters) -> Parameters:
    """Return the parameters `given` with those of `source` that a copy takes, where they give none.

    `source` is the volume that is cloned, or whose snapshot is restored.
    """
    return dataclasses.replace(
        given,
        type=given.type or source.type,
        filesystem=given.filesystem or source.filesystem,
        encryption=given.encryption or source.encryption,
    )


def requested_filesystems(request: RecordedRequest) -> set[str]:
    """Return the filesystems that a request names.

    Earlier versions ignored them for directories, so a directory with such a request stays usable.
    """
    named = {item.filesystem for item in request.capabilities}
    return {kind for kind in (*named, request.parameters.get(FILESYSTEM)) if kind}


def spec_from_source(source: Volume, spec: VolumeSpec) -> VolumeSpec:
    """Return `spec` with what a volume that is filled from `source` takes from it: see `inherit`.

    `InvalidArgument` if a volume of this spec cannot be filled from it.
    """
    if spec.type is not source.type:
        raise InvalidArgument(
            f"the source is a volume of type {source.type}, this one would be of type {spec.type}; "
            "leave the parameter type out, or copy the files from one volume to the other"
        )
    if spec.access is Access.MOUNT and source.access is Access.BLOCK:
        raise InvalidArgument(
            "the source is a raw block volume, on which anything may be: it is not mounted as a "
            "filesystem; ask for a block volume"
        )
    if spec.filesystem and spec.filesystem != source.filesystem:
        raise InvalidArgument(
            f"the source has {source.filesystem}, not {spec.filesystem}; leave the fs_type out"
        )
    if spec.encryption != source.encryption:
        raise InvalidArgument(
            f"the source has encryption: {source.encryption or encryption.NONE}, not "
            f"{spec.encryption or encryption.NONE}, and a copy has the key of its source; leave "
            "the parameter encryption out, or copy the files from one volume to the other"
        )
    return dataclasses.replace(spec, reason="as its source", mkfs_options=source.mkfs_options)


def _only(values: set[str | None] | set[Access], what: str) -> "str | None":
    if len(values) > 1:
        raise InvalidArgument(f"the capabilities name more than one {what}; a volume has one")
    return next(iter(values), None)


def _mounted_type(
    given: Parameters,
    limiter: str | None,
    limit_fault: Callable[[], str | None],
    other: str | None,
) -> tuple[VolumeType, str]:
    """Return the type and the reason; `other` is a wanted filesystem that directories lack."""
    if given.type:
        return given.type, "asked for"
    if given.quota == "none":
        return VolumeType.DIRECTORY, "quota: none is for directories"
    encrypted = given.encryption not in {None, encryption.NONE}
    more = given.fsck or given.trims or given.limits_io or encrypted
    if given.allocation or given.mkfs_options or more:
        keys = "allocation, mkfsOptions, encryption, fsck, trimInterval and limits on I/O"
        return VolumeType.IMAGE, f"{keys} are for images"
    if other:
        return VolumeType.IMAGE, f"a directory would not have {other}"
    fault = limit_fault() if limiter else None
    if limiter and not fault:
        return VolumeType.DIRECTORY, f"the pool limits directories by {limiter}"
    now = f" now: {fault}" if fault else ""
    return VolumeType.IMAGE, f"the pool cannot limit the size of a directory{now}"


def _raw_block(given: Parameters) -> VolumeSpec:
    if given.type is VolumeType.DIRECTORY:
        raise InvalidArgument("a directory cannot be a block device; use type: image, or none")
    if given.mkfs_options:
        raise InvalidArgument("a raw block volume is not formatted; leave mkfsOptions out")
    if given.fsck:
        raise InvalidArgument("a raw block volume is its user's to check; leave fsck out")
    if given.root:
        raise InvalidArgument(
            f"a raw block volume has no root directory; leave {', '.join(rootdirectory.KEYS)} out"
        )
    return VolumeSpec(
        type=VolumeType.IMAGE,
        reason="raw block needs an image",
        access=Access.BLOCK,
        filesystem=None,
        enforced=True,
        thick=_thick(given),
        mkfs_options=(),
    )


def _directory(
    given: Parameters, reason: str, limiter: str | None, limit_fault: Callable[[], str | None]
) -> VolumeSpec:
    for key, value in (("allocation", given.allocation), ("mkfsOptions", given.mkfs_options)):
        if value:
            raise InvalidArgument(f"parameter {key} is for type: image, not for a directory")
    if given.fsck:
        raise InvalidArgument(
            "parameter fsck is for type: image: a directory has no filesystem of its own to check, "
            "and the pool's is in use; leave fsck out"
        )
    if limiter is None and given.quota != "none":
        raise InvalidArgument(
            "this pool's filesystem cannot limit the size of a directory: mount it with prjquota "
            "(XFS, ext4) or use btrfs; or use type: image; or accept that with quota: none"
        )
    # If the type was left open, `_mounted_type` has checked this already.
    if given.type and given.quota != "none" and (fault := limit_fault()):
        raise FailedPrecondition(
            f"this pool cannot limit the size of a directory now: {fault}; or use type: image; or "
            "accept that with quota: none"
        )
    return VolumeSpec(
        type=VolumeType.DIRECTORY,
        reason=reason,
        access=Access.MOUNT,
        filesystem=None,
        enforced=given.quota != "none",
        thick=False,
        mkfs_options=(),
    )


def _image(given: Parameters, reason: str, kind: str) -> VolumeSpec:
    if kind not in mkfs.KINDS:
        raise InvalidArgument(
            f"fs_type is {kind!r}; that of an image can be {', '.join(mkfs.KINDS)}"
        )
    thick = _thick(given)
    if given.mkfs_options:
        mkfsoptions.check(kind, given.mkfs_options)
    if missing := mkfs.missing_programs(kind):
        raise FailedPrecondition(f"{kind}: {', '.join(missing)} not installed on this node")
    return VolumeSpec(
        type=VolumeType.IMAGE,
        reason=reason,
        access=Access.MOUNT,
        filesystem=kind,
        enforced=True,
        thick=thick,
        mkfs_options=given.mkfs_options,
        minimum=mkfs.KINDS[kind].minimum,
    )


def _thick(given: Parameters) -> bool:
    if given.quota == "none":
        raise InvalidArgument("parameter quota: none is for a directory; an image has a size")
    return given.allocation == "thick"


def size_for(wanted: CapacityRange | None, minimum: int, source: int = 0) -> int:
    """Return the size in bytes for a capacity range; `OutOfRange` if no size fits.

    The size is the required one, or else the source's, or else the default within the limit. It is
    rounded up to whole blocks and to `minimum`, the smallest size in bytes of this spec. `source`
    are the bytes of the volume's source, 0 if it has none; no size below that fits.
    """
    wanted = wanted or CapacityRange()
    limit = LARGEST if wanted.limit is None else round_down(wanted.limit)
    size = source or min(DEFAULT_SIZE, limit)
    size = round_up(size if wanted.required is None else wanted.required)
    if source > min(size, limit):
        raise OutOfRange(
            f"the source has {source} bytes ({show(source)}), and a volume made from it has no "
            "less; ask for at least as much"
        )
    size = max(size, minimum)
    if size > limit:
        raise OutOfRange(
            f"no size fits: at least {show(size)} ({size} bytes: whole blocks of {BLOCK}, least "
            f"{show(minimum)}), at most {limit} bytes; raise limit_bytes or change required_bytes"
        )
    return size


def largest_image(kind: str | None, words: Iterable[str]) -> int:
    """Return the largest size in bytes of an image whose filesystem `kind` is made with `words`.

    `kind` is None for a raw block volume. ext4 has at most 1 EiB, or 2**32 - 1 blocks if its
    feature 64bit is switched off (ext4(5)).
    """
    if kind != "ext4":
        return LARGEST
    text = " ".join(words)
    if not _NARROW.search(text):
        return _LARGEST_EXT4
    block = _BLOCK_SIZE.search(text)
    return round_down((int(block[1]) if block else BLOCK) * (2**32 - 1))
