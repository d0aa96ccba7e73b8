"""Holding the pods that use a volume to its I/O limits.

The kernel limits what the processes of a cgroup read from and write to a block device, also what
they write to its filesystem's page cache. An image is the only user of its loop device, so limits
on that device, in the cgroup of each pod, are limits on the volume. Nothing is remembered: which
pods use a volume is read from its mounts, and what limits them from their cgroups.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pycsi.backends import Backend
from pycsi.backends.pods import PodCgroups, pod_at
from pycsi.linux import cgroup
from pycsi.linux.cgroup import UNLIMITED, IoLimits
from pycsi.model import iolimits
from pycsi.model.errors import FailedPrecondition

_PATIENCE = 2.0
"""Seconds to wait for a pod's cgroup: the kubelet makes it before it waits for the volumes."""

_STEP = 0.02

_GONE = frozenset({errno.ENOENT, errno.ENODEV})
"""The errors where a pod has ended, its cgroup has no `io.max` any more, or a device is gone."""


class Throttle:
    """Sets the I/O limits of volumes in the cgroups of pods, which lie below `root`.

    Without `root` it sets none, and refuses volumes that have limits.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._cgroups = PodCgroups(root) if root else None

    def fault(self) -> str | None:
        """Return why nothing can be limited on this node now, and what to do; None if it can."""
        if self._cgroups is None:
            return "the driver runs without --cgroup-root"
        return self._cgroups.fault()

    def refuse(self) -> None:
        """Raise `FailedPrecondition` if nothing can be limited on this node now."""
        if fault := self.fault():
            raise FailedPrecondition(
                f"this node cannot limit I/O: {fault}; leave {', '.join(iolimits.READERS)} out, "
                "say none, or set --cgroup-root to the kubelet's cgroup root"
            )

    def require(self, backend: Backend, target: str) -> None:
        """Raise `FailedPrecondition` if whoever uses the volume at `target` could not be limited.

        A pod's cgroup that is still to be made is waited for a moment.
        """
        if not iolimits.are_wanted(backend.volume.settings):
            return
        self.refuse()
        what = f"volume {backend.volume.id} has limits on I/O"
        pod = pod_at(target)
        if pod is None:
            raise FailedPrecondition(
                f"{what}, to which only pods can be held, and {target} is no pod's as the kubelet "
                "has them; publish it for a pod, or modify it to have no limits"
            )
        deadline = time.monotonic() + _PATIENCE
        while fault := self._fault_of(pod):
            if time.monotonic() > deadline:
                raise FailedPrecondition(f"{what}, to which pod {pod} cannot be held: {fault}")
            time.sleep(_STEP)

    def _fault_of(self, pod: str) -> str | None:
        """Return why nothing can be limited for a pod, or None."""
        found = self._cgroups.of(pod) if self._cgroups else None
        if found is None:
            return "it has no cgroup below --cgroup-root; try again"
        if not cgroup.can_limit(found):
            return f"{found} has no io.max to write to; let the cgroups above it pass on io"
        return None

    def _held(self, backend: Backend) -> Iterator[tuple[str, str, int]]:
        """Yield the uid and the cgroup of each pod that uses a volume, with each of its devices."""
        if self._cgroups is None:
            return
        pods = dict.fromkeys(filter(None, (pod_at(item.target) for item in backend.mounts())))
        devices = backend.block_devices() if pods else []
        for pod in pods:
            if found := self._cgroups.of(pod):  # without a cgroup, nothing of it runs
                for device in devices:
                    yield pod, found, device

    def ensure(self, backend: Backend) -> None:
        """Set the volume's limits, which may be none, for each pod that uses it.

        `OSError` if the kernel does not take them.
        """
        wanted = iolimits.of(backend.volume.settings)
        for _, found, device in self._held(backend):
            _set(found, device, wanted)

    @contextlib.contextmanager
    def lifted(self, backend: Backend, target: str) -> Iterator[None]:
        """Free the pod at `target` from the volume's limits, while the `with` block unmounts it.

        Its device's number may be another volume's soon. If the block fails, the limits are set
        again. Those of a pod that uses the volume elsewhere too are left.
        """
        pod = pod_at(target)
        mounted = {item.target for item in backend.mounts()} if pod and self._cgroups else set()
        if target in mounted and all(pod_at(other) != pod for other in mounted - {target}):
            for uid, found, device in self._held(backend):
                if uid == pod:
                    with contextlib.suppress(OSError):  # unmounting is worth more
                        _set(found, device, UNLIMITED)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                self.ensure(backend)
            raise

    @contextlib.contextmanager
    def suspended(self, backend: Backend) -> Iterator[None]:
        """Lift the limits for the `with` block, which waits for what the pods have written.

        A driver that is killed meanwhile sets them again when it starts.
        """
        if not iolimits.are_wanted(backend.volume.settings):
            yield
            return
        for _, found, device in self._held(backend):
            with contextlib.suppress(OSError):  # it takes longer then
                _set(found, device, UNLIMITED)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the volume's condition tells that they are missing
                self.ensure(backend)

    def lacking(self, backend: Backend) -> Iterator[str]:
        """Yield why the volume's limits are not in force, of each pod for which they are not."""
        wanted = iolimits.of(backend.volume.settings)
        if not wanted:
            return
        if fault := self.fault():
            if any(pod_at(item.target) for item in backend.mounts()):
                yield f"its I/O may be unlimited: {fault}"
            return
        for pod, found, device in self._held(backend):
            try:
                in_force = cgroup.io_limits(found, device) == wanted
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                in_force = not os.path.isdir(found)
            if not in_force:
                yield f"its I/O limits are not in force for pod {pod}"


def throttle_at(root: Path | None) -> Throttle | None:
    """Return what looks at the limits in the cgroups of pods below `root`, if that is given."""
    return Throttle(root) if root else None


def _set(path: str, device: int, wanted: IoLimits) -> None:
    try:
        if cgroup.io_limits(path, device) != wanted:
            cgroup.set_io_limits(path, device, wanted)
    except OSError as error:
        if error.errno not in _GONE:
            raise
