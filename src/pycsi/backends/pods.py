"""The pods that use a volume, and their cgroups, as the kubelet names both."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pycsi.linux import cgroup

_UID = r"(?P<uid>[0-9A-Za-z-]{1,64})"
_PATHS = (
    # Of a mounted volume, and of its subPaths.
    re.compile(rf"/.+/pods/{_UID}/volume[^/]*/.+"),
    # Of a raw block volume: what the driver publishes, and what the kubelet binds to it.
    re.compile(rf"/.+/volumeDevices/publish/[^/]+/{_UID}"),
    re.compile(rf"/.+/volumeDevices/[^/]+/dev/{_UID}"),
)

_CLASSES = ("", "burstable", "besteffort")
"""The qualities of service of pods; those that are guaranteed theirs have no cgroup in between."""

_SLICE = ".slice"


def pod_at(path: str) -> str | None:
    """Return the uid of the pod to which the kubelet gives what is at `path`; None if to none."""
    found = next(filter(None, (pattern.fullmatch(path) for pattern in _PATHS)), None)
    return found["uid"] if found else None


class PodCgroups:
    """The cgroups of the pods below `root`, the cgroup in which the kubelet has made `kubepods`.

    The kubelet names them by one of two schemes, the one of cgroupfs and the one of systemd. In the
    latter a name repeats those of all cgroups above it (systemd.slice(5)).
    """

    def __init__(self, root: Path) -> None:
        self.root = os.fspath(root)
        above = root.name.removesuffix(_SLICE) if root.name.endswith(_SLICE) else ""
        self._above = f"{above}-" if above else ""

    def _kubepods(self) -> Iterator[str]:
        yield f"{self.root}/kubepods"
        yield f"{self.root}/{self._above}kubepods{_SLICE}"

    def fault(self) -> str | None:
        """Return why I/O cannot be limited in the cgroups of pods, or None if it can."""
        if not os.path.isdir(self.root):
            return f"there is no {self.root}; mount the host's cgroups there"
        if not cgroup.is_cgroup(self.root):
            return f"{self.root} is no cgroup of version 2, which limits need"
        found = [path for path in self._kubepods() if os.path.isdir(path)]
        if not found:
            return f"{' and '.join(self._kubepods())} are missing; is the kubelet's root another?"
        if not any(map(cgroup.can_limit, found)):
            return f"{found[0]} has no io.max to write: no io controller there, or it is read-only"
        return None

    def of(self, uid: str) -> str | None:
        """Return the path of a pod's cgroup; None if it does not exist."""
        return next(filter(os.path.isdir, self._candidates(uid)), None)

    def _candidates(self, uid: str) -> Iterator[str]:
        plain, sliced = self._kubepods()
        for name in _CLASSES:
            yield os.path.join(plain, name, f"pod{uid}")
            above = f"{self._above}kubepods"
            folder = sliced
            if name:
                above = f"{above}-{name}"
                folder = f"{sliced}/{above}{_SLICE}"
            yield f"{folder}/{above}-pod{uid.replace('-', '_')}{_SLICE}"
