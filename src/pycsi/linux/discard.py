"""Whether a loop device passes discards on to its backing file.

Since Linux 6.9 this is a setting of the device number, and not of the file, so the next file that
is bound to the number inherits it. It cannot be undone either: refusing discards sets the
granularity to 0, of which no size is a multiple. Older kernels reset it for every file. Since Linux
5.19 a device that refuses discards also writes zeros instead of punching holes.
"""

import os

from pycsi.linux.descriptor import opened

_LONGEST = 32


def _read(number: int, attribute: str) -> int:
    with opened(f"/sys/block/loop{number}/queue/{attribute}") as fd:
        return int(os.read(fd, _LONGEST))


def is_refused(number: int) -> bool:
    """Tell whether discards are refused on a device that supports them; `OSError` if it is gone."""
    return not _read(number, "discard_max_bytes") and bool(_read(number, "discard_max_hw_bytes"))


def is_taken(number: int) -> bool:
    """Tell whether a device accepts discards; `OSError` if it is gone."""
    return bool(_read(number, "discard_max_bytes"))


def refuse(number: int) -> None:
    """Refuse discards on a device for as long as it exists; `OSError` if /sys is read-only."""
    with opened(f"/sys/block/loop{number}/queue/discard_max_bytes", os.O_WRONLY) as fd:
        os.write(fd, b"0")
