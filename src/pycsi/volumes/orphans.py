"""Orphans: inline volumes whose pod is gone, and which no call will ever delete.

An orchestrator unpublishes an inline volume when its pod ends, which deletes the volume. But if the
node was down when the pod ended, nothing is mounted afterwards, and the kubelet removes the pod's
directory without calling the driver.
"""

import contextlib
import os
import re
from pathlib import PurePath

import structlog

from pycsi.backends import Backend
from pycsi.linux.descriptor import exists
from pycsi.model.errors import CsiError
from pycsi.pool.pool import Pool
from pycsi.volumes.lifecycle import delete
from pycsi.volumes.locks import Locks
from pycsi.volumes.notes import Notes

log = structlog.get_logger()

_KUBELETS = re.compile(r"(?P<pods>/.+/pods)/(?P<pod>[^/]+)/volumes/[^/]+/[^/]+/mount")
"""The path at which the kubelet has an inline volume mounted, below its root directory."""


def is_orphaned(backend: Backend) -> bool:
    """Tell whether the pod of an inline volume is provably gone.

    The proof: the pod directory of every target that the volume was ever published at is gone,
    while the directory of all pods exists and is not empty. An empty one may be the mount point of
    the kubelet's disk, still to be mounted.
    """
    if backend.volume.handle is None:
        return False
    recorded = backend.volume.targets
    try:
        if not all(map(_is_gone, recorded)):
            return False
        noted = Notes(backend.where).published.keys() - recorded
        return bool(recorded or noted) and all(map(_is_gone, noted))
    except OSError:
        return False


def _is_gone(target: str) -> bool:
    if match := _KUBELETS.fullmatch(target):
        pods, pod = match["pods"], f"{match['pods']}/{match['pod']}"
    else:
        place = PurePath(target).parent
        pods, pod = os.fspath(place.parent), os.fspath(place)
    return not exists(pod) and exists(pods) and bool(os.listdir(pods))


def sweep(pool: Pool, locks: Locks) -> None:
    """Delete the orphaned inline volumes of a pool that are not in use or held by an operation."""
    for volume in pool.volumes:
        if volume.handle is not None and is_orphaned(pool.backend(volume)):
            with contextlib.suppress(CsiError, OSError), locks.hold(volume.id):
                _delete(pool, volume.id)


def _delete(pool: Pool, volume_id: str) -> None:
    volume = pool.volumes.get(volume_id)
    if volume and is_orphaned(pool.backend(volume)):  # checked again, now under the lock
        delete(pool, volume)
        log.warning(
            "deleted an inline volume whose pod is gone",
            volume=volume.id,
            pod=volume.name,
            targets=volume.targets,
        )
