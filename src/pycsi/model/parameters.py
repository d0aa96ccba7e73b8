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
"""The prefix of keys that the orchestrator adds; they describe, they do not decide."""

FILESYSTEM = "csi.storage.k8s.io/fstype"
"""The one such key that decides: the filesystem, where the capability names none."""

DEFAULT_FILESYSTEM = "ext4"
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


def point_in_time(raw: Mapping[str, str]) -> bool:
    """Check a VolumeSnapshotClass's parameters; tell whether all files must be of one moment."""
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
