"""The mutable parameters that limit I/O: how much a pod reads and writes per second."""

import re
from collections.abc import Mapping

from pycsi.linux.cgroup import IoLimits
from pycsi.model.errors import InvalidArgument
from pycsi.model.records import VolumeType
from pycsi.model.size import MIB, parse_size

NONE = "none"
"""The default value: no limit."""

_SLOWEST = MIB
"""The least bytes per second: the kernel's requests have up to a few MiB, and wait as a whole."""

_FEWEST = 10
_MOST = 2**32 - 2
"""The least and the most requests per second; 2**32 - 1 is the kernel's word for no limit."""

_NUMBER = re.compile(r"\d{1,10}", re.ASCII)


def bandwidth(value: str) -> int | None:
    """Return bytes per second, None for no limit.

    An invalid value, or less than 1 MiB, raises `ValueError` with the possible values.
    """
    if value == NONE:
        return None
    try:
        found = parse_size(value)
    except ValueError as error:
        raise ValueError(f"{error}; it is the bytes per second, or {NONE}") from None
    if found < _SLOWEST:
        raise ValueError(
            f"it can be {NONE}, or bytes per second such as 50Mi, no less than 1Mi: a single "
            "request of the kernel would wait for seconds"
        )
    return found


def requests(value: str) -> int | None:
    """Return requests per second, None for no limit; `ValueError` with the possible values."""
    if value == NONE:
        return None
    if not _NUMBER.fullmatch(value) or not _FEWEST <= int(value) <= _MOST:
        raise ValueError(f"it can be {NONE}, or a whole number from {_FEWEST} to {_MOST}")
    return int(value)


READERS = {
    "readBandwidth": bandwidth,
    "writeBandwidth": bandwidth,
    "readIops": requests,
    "writeIops": requests,
}
"""The parameters, in the order of the kernel's limits, with what reads their values."""

DEFAULTS: Mapping[str, str] = dict.fromkeys(READERS, NONE)


def are_wanted(settings: Mapping[str, str]) -> bool:
    """Tell whether settings limit anything; those of an older version's volumes lack the keys."""
    return any(settings.get(key, NONE) != NONE for key in READERS)


def of(settings: Mapping[str, str]) -> IoLimits:
    """Return the limits in a volume's settings."""
    rbps, wbps, riops, wiops = (read(settings.get(key, NONE)) for key, read in READERS.items())
    return IoLimits(rbps=rbps, wbps=wbps, riops=riops, wiops=wiops)


def shown(settings: Mapping[str, str]) -> str | None:
    """Return the limits in a volume's settings in a few words; None if there are none."""
    given = [f"{key}={settings[key]}" for key in READERS if settings.get(key, NONE) != NONE]
    return " ".join(given) or None


def check(type_: VolumeType) -> None:
    """Raise `InvalidArgument` if a volume of this type cannot be limited."""
    if type_ is VolumeType.DIRECTORY:
        raise InvalidArgument(
            f"parameters {', '.join(READERS)} are for images and raw block volumes: a directory "
            "has no device of its own, by which the kernel could tell its I/O from that of the "
            f"pool; use type: image, or leave them out, or say {NONE}"
        )
