"""The mutable parameter trimInterval: how often a mounted thin image is trimmed."""

from pycsi.model.config import parse_duration
from pycsi.model.errors import InvalidArgument
from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import Access

_KEY = "trimInterval"
NEVER = "never"
"""The default value: the volume is not trimmed."""

_SHORTEST = 60.0


def seconds(value: str) -> float | None:
    """Return an interval in seconds, None for never.

    An invalid value, or less than a minute, raises `ValueError` with the possible values.
    """
    if value == NEVER:
        return None
    try:
        interval = parse_duration(value)
    except ValueError as error:
        raise ValueError(f"{error}, or {NEVER}") from None
    if interval < _SHORTEST:
        raise ValueError(f"it can be {NEVER}, or a time of 1m or more, such as 24h or 7d")
    return interval


def of(volume: Volume) -> float | None:
    """Return the volume's trim interval in seconds; None for never."""
    return seconds(volume.settings.get(_KEY, NEVER))


def check(type_: VolumeType, access: Access, *, thick: bool) -> None:
    """Raise `InvalidArgument` unless the volume is a thin image with a filesystem."""
    if type_ is VolumeType.DIRECTORY:
        reason = "what is deleted in a directory is free at once"
    elif access is Access.BLOCK:
        reason = "what a raw block volume does not use only its user knows, who can discard it"
    elif thick:
        reason = "a thick volume keeps its blocks"
    else:
        return
    raise InvalidArgument(
        f"parameter {_KEY} is for thin images with a filesystem: {reason}; leave it out"
    )
