"""The parameters of StorageClasses, VolumeAttributesClasses and VolumeSnapshotClasses."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pycsi.model import encryption, iolimits, mkfsoptions, rootdirectory, triminterval
from pycsi.model.errors import InvalidArgument
from pycsi.model.records import VolumeType
from pycsi.model.rootdirectory import RootDirectory

ORCHESTRATOR = "csi.storage.k8s.io/"
"""The prefix of keys that the orchestrator adds. They only describe, with one exception."""

CLAIM_NAME = "csi.storage.k8s.io/pvc/name"
CLAIM_NAMESPACE = "csi.storage.k8s.io/pvc/namespace"

FILESYSTEM = "csi.storage.k8s.io/fstype"
"""The exception: the filesystem to make if the capability names none."""

RESTORE_ANYWHERE = "restoreAnywhere"
"""The key that lets a volume be on another node than the source that it is filled from."""

DEFAULT_FILESYSTEM = "ext4"
Reader = Callable[[str], Any]
"""A function that returns a parameter's value as the driver uses it.

For an invalid one it raises `ValueError`, with the possible values.
"""


def _one_of(*choices: str) -> Reader:
    def read(value: str) -> str:
        if value not in choices:
            raise ValueError(f"it can be {' or '.join(choices)}")
        return value

    return read


_MUTABLE: Mapping[str, Reader] = {
    "onDelete": _one_of("delete", "retain"),
    "fsck": _one_of("true", "false"),
    "trimInterval": triminterval.seconds,
    **iolimits.READERS,
}
_DEFAULTS: Mapping[str, str] = {
    "onDelete": "delete",
    "fsck": "false",
    "trimInterval": "never",
    **iolimits.DEFAULTS,
}
"""The defaults of the mutable parameters."""

_READERS: Mapping[str, Reader] = {
    "type": _one_of("directory", "image"),
    "quota": _one_of("required", "none"),
    "allocation": _one_of("thin", "thick"),
    "encryption": _one_of(encryption.NONE, encryption.LUKS2),
    "mkfsOptions": mkfsoptions.split,
    "uid": rootdirectory.read_id,
    "gid": rootdirectory.read_id,
    "mode": rootdirectory.read_mode,
    "lostAndFound": _one_of("true", "false"),
    RESTORE_ANYWHERE: _one_of("true", "false"),
    **_MUTABLE,
}
_SNAPSHOT_READERS: Mapping[str, Reader] = {
    "consistency": _one_of("point-in-time", "files"),
    # A field of the class. Some clients repeat it here, as Kubernetes' external storage suite does
    # for groups; it decides nothing.
    "deletionPolicy": _one_of("Delete", "Retain"),
}
_KEYS = (
    *("pool", "type", "quota", "allocation", "mkfsOptions", "encryption"),
    *rootdirectory.KEYS,
    RESTORE_ANYWHERE,
    *_MUTABLE,
)

LASTING = frozenset(_KEYS) - {"pool", RESTORE_ANYWHERE}
"""The parameters that a volume keeps when it is made anew elsewhere, as by an import."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The checked parameters of a StorageClass; None for those that it does not set.

    `root` is None unless a parameter for the root directory is set. `settings` are all mutable
    parameters of the new volume. `fsck`, `trims` and `limits_io` tell what follows from them: the
    filesystem is to be checked, and trimmed, and the I/O limited.
    """

    pool: str | None
    type: VolumeType | None
    filesystem: str | None
    quota: str | None
    allocation: str | None
    mkfs_options: tuple[str, ...]
    encryption: str | None
    root: RootDirectory | None
    settings: Mapping[str, str]
    fsck: bool
    trims: bool
    limits_io: bool


def without_orchestrator_keys(raw: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters without those that the orchestrator adds as a description.

    The exception `FILESYSTEM` stays.
    """
    return {
        key: value
        for key, value in raw.items()
        if key == FILESYSTEM or not key.startswith(ORCHESTRATOR)
    }


def _read(
    given: Mapping[str, str], keys: Collection[str], readers: Mapping[str, Reader]
) -> dict[str, Any]:
    """Return the values of parameters, each as its reader returns it, or else as it is.

    A key that is not in `keys` and an invalid value raise `InvalidArgument`.
    """
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key not in keys:
            raise InvalidArgument(f"unknown parameter {key!r}; there are {', '.join(keys)}")
        try:
            values[key] = readers[key](text) if key in readers else text
        except ValueError as why:
            raise InvalidArgument(f"parameter {key} is {text!r}; {why}") from None
    return values


def settings(raw: Mapping[str, str], mutable: Mapping[str, str]) -> dict[str, str]:
    """Return all mutable parameters of a new volume: `mutable` over `raw` over the defaults.

    An unknown key or an invalid value in `mutable` raises `InvalidArgument`.
    """
    if mutable:
        check_mutable(mutable)
    given = {key: value for key, value in raw.items() if key in _MUTABLE}
    return {**_DEFAULTS, **given, **mutable}


def wants_check(now: Mapping[str, str]) -> bool:
    """Tell whether the filesystem is to be checked when the volume is staged.

    The settings of a volume from an older version may lack the key, which means no.
    """
    return now.get("fsck") == "true"


def check_mutable(mutable: Mapping[str, str]) -> None:
    """Raise `InvalidArgument` if a mutable parameter is unknown or has an invalid value."""
    _read(mutable, _MUTABLE, _MUTABLE)


def restores_anywhere(raw: Mapping[str, str]) -> bool:
    """Tell whether a volume may be on another node than the source that it is filled from."""
    return raw.get(RESTORE_ANYWHERE) == "true"


def point_in_time(raw: Mapping[str, str]) -> bool:
    """Tell whether the parameters of a VolumeSnapshotClass demand a point-in-time snapshot.

    They do unless `consistency` is `files`. An unknown key or an invalid value raises
    `InvalidArgument`.
    """
    given = _read(without_orchestrator_keys(raw), _SNAPSHOT_READERS, _SNAPSHOT_READERS)
    return given.get("consistency") != "files"


def parse(
    raw: Mapping[str, str],
    keys: Collection[str] = _KEYS,
    *,
    mutable: Mapping[str, str] | None = None,
) -> Parameters:
    """Return the checked parameters of a StorageClass.

    A key that is not in `keys` and an invalid value raise `InvalidArgument`. `mutable` are the
    mutable parameters that the request gives separately; they take precedence over `raw`.
    """
    own = without_orchestrator_keys(raw)
    filesystem = own.pop(FILESYSTEM, None)
    given = _read(own, keys, _READERS)
    now = settings(own, mutable or {})
    root = None
    if not given.keys().isdisjoint(rootdirectory.KEYS):
        root = RootDirectory(
            uid=given.get("uid"),
            gid=given.get("gid"),
            mode=given.get("mode"),
            lost_and_found=given.get("lostAndFound") != "false",
        )
    return Parameters(
        pool=given.get("pool"),
        type=VolumeType(own["type"]) if "type" in own else None,
        filesystem=filesystem,
        quota=given.get("quota"),
        allocation=given.get("allocation"),
        mkfs_options=given.get("mkfsOptions", ()),
        encryption=given.get("encryption"),
        root=root,
        settings=now,
        fsck=now["fsck"] == "true",
        trims=now["trimInterval"] != triminterval.NEVER,
        limits_io=iolimits.are_wanted(now),
    )
