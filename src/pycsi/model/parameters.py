"""The parameters of StorageClasses, VolumeAttributesClasses and VolumeSnapshotClasses."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from pycsi.model import (
    mkfsoptions,
    rootdirectory,
    triminterval,
)
from pycsi.model.errors import InvalidArgument
from pycsi.model.records import VolumeType
from pycsi.model.rootdirectory import AS_MADE, RootDirectory

ORCHESTRATOR = "csi.storage.k8s.io/"
"""The prefix of keys that the orchestrator adds. They only describe, with one exception."""

FILESYSTEM = "csi.storage.k8s.io/fstype"
"""The exception: the filesystem to make if the capability names none."""

DEFAULT_FILESYSTEM = "ext4"
Check = Callable[[str], object]
"""A function that raises `ValueError`, with the possible values, for an invalid parameter value."""


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
"""The mutable parameters, with the checks of their values."""

DEFAULTS: Mapping[str, str] = {"onDelete": "delete", "fsck": "false", "trimInterval": "never"}
"""The defaults of the mutable parameters."""

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
    """The checked parameters of a StorageClass; None for those that it does not set."""

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
    """Return the parameters without those that the orchestrator adds as a description."""
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
    """Return all mutable parameters of a new volume: `mutable` over `raw` over the defaults.

    An unknown key or an invalid value in `mutable` raises `InvalidArgument`.
    """
    check_mutable(mutable)
    given = {key: value for key, value in raw.items() if key in MUTABLE}
    return {**DEFAULTS, **given, **mutable}


def wants_check(now: Mapping[str, str]) -> bool:
    """Tell whether the filesystem is to be checked when the volume is staged.

    The settings of a volume from an older version may lack the key, which means no.
    """
    return now.get("fsck") == "true"


def check_mutable(mutable: Mapping[str, str]) -> None:
    """Raise `InvalidArgument` if a mutable parameter is unknown or has an invalid value."""
    _check(mutable, MUTABLE, MUTABLE)


def point_in_time(raw: Mapping[str, str]) -> bool:
    """Tell whether the parameters of a VolumeSnapshotClass demand a point-in-time snapshot.

    They do unless `consistency` is `files`. An unknown key or an invalid value raises
    `InvalidArgument`.
    """
    own = deciding(raw)
    _check(own, _SNAPSHOT_CHECKS, _SNAPSHOT_CHECKS)
    return own.get("consistency") != "files"


def parse(
    raw: Mapping[str, str],
    keys: Iterable[str] = _KEYS,
    *,
    mutable: Mapping[str, str] | None = None,
) -> Parameters:
    """Return the checked parameters of a StorageClass.

    A key that is not in `keys` and an invalid value raise `InvalidArgument`. `mutable` are the
    mutable parameters that the request gives separately; they take precedence over `raw`.
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
