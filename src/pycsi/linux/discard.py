"""Whether a loop device passes discards on to its file.

From Linux 6.9 on that belongs to the device's number and not to its file, so whoever is given the
number next has it too; and what was refused cannot be allowed again, for then the granularity is 0,
of which no size is a multiple. (Older kernels set it anew for every file.) Where discards are
refused the kernel also writes zeros in place of punching holes, from Linux 5.19 on.
"""

import os

from pycsi.linux.descriptor import opened

_LONGEST = 32


def _read(number: int, attribute: str) -> int:
    with opened(f"/sys/block/loop{number}/queue/{attribute}") as fd:
        return int(os.read(fd, _LONGEST))


def is_refused(number: int) -> bool:
    """Tell whether a device refuses discards that it could carry out; `OSError` if it is gone."""
    return not _read(number, "discard_max_bytes") and bool(_read(number, "discard_max_hw_bytes"))


def is_taken(number: int) -> bool:
    """Tell whether a device takes discards; `OSError` if it is gone."""
    return bool(_read(number, "discard_max_bytes"))


def refuse(number: int) -> None:
    """Refuse discards on a device for as long as it exists; `OSError` where /sys is read-only."""
    with opened(f"/sys/block/loop{number}/queue/discard_max_bytes", os.O_WRONLY) as fd:
        os.write(fd, b"0")
