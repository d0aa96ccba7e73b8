"""Control groups of version 2 (cgroups(7)), and the limits on I/O in their file `io.max`.

The file's form is that of the kernel's Documentation/admin-guide/cgroup-v2.rst: a line for each
block device that has a limit, such as `7:0 rbps=1048576 wbps=max riops=max wiops=100`. A limit
holds for a cgroup with all that is below it.
"""

import dataclasses
import os

from pycsi.linux.descriptor import opened, read_file

_NO_LIMIT = b"max"
_LIMITS = "io.max"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IoLimits:
    """Limits on the I/O with one block device, by the kernel's names; None is no limit.

    `rbps` and `wbps` are bytes read and written per second, `riops` and `wiops` are requests.
    """

    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None

    def __bool__(self) -> bool:
        """Tell whether anything is limited."""
        return self != UNLIMITED


UNLIMITED = IoLimits()

_NAMES = tuple(field.name for field in dataclasses.fields(IoLimits))


def is_cgroup(path: str) -> bool:
    """Tell whether a directory is a cgroup of version 2."""
    return os.path.exists(f"{path}/cgroup.controllers")


def can_limit(path: str) -> bool:
    """Tell whether I/O can be limited in the cgroup `path`.

    It cannot if the kernel has no such limits, or the cgroup above does not pass on the controller
    `io` (cgroup.subtree_control).
    """
    return os.access(f"{path}/{_LIMITS}", os.W_OK)


def io_limits(path: str, device: int) -> IoLimits:
    """Return the limits that the cgroup `path` has for a block device, by its device number."""
    key = b"%d:%d" % (os.major(device), os.minor(device))
    for line in read_file(f"{path}/{_LIMITS}").splitlines():
        found, *words = line.split()
        if found == key:
            values = dict(word.split(b"=", 1) for word in words)
            return IoLimits(**{name: _parsed(values[name.encode()]) for name in _NAMES})
    return UNLIMITED


def _parsed(value: bytes) -> int | None:
    return None if value == _NO_LIMIT else int(value)


def set_io_limits(path: str, device: int, limits: IoLimits) -> None:
    """Set the limits that the cgroup `path` has for a block device, which hold at once.

    ENODEV if there is no such device, ENOENT if there is no such cgroup.
    """
    values = ((name, getattr(limits, name)) for name in _NAMES)
    words = " ".join(f"{name}={'max' if value is None else value}" for name, value in values)
    with opened(f"{path}/{_LIMITS}", os.O_WRONLY) as fd:
        os.write(fd, f"{os.major(device)}:{os.minor(device)} {words}".encode())
