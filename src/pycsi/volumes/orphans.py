"""Inline volumes whose pod is gone, so that nobody will ever ask for them again.

An orchestrator unpublishes an inline volume when its pod ends, and that deletes it. Where the node
went down meanwhile nothing is mounted afterwards, and the kubelet removes the pod's directory
without a word to the driver.
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
"""Where the kubelet has an inline volume mounted, below its root directory."""


def is_orphaned(backend: Backend) -> bool:
    """Tell whether it is proved that the pod of an inline volume is gone.

    Every target that the volume was ever published at has gone, with the directory of its pod,
    while the directory that holds those is there and has others: an empty one may be where the
    kubelet's disk is still to be mounted.
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
    """Delete the orphaned inline volumes of a pool which nobody works on or uses."""
    for volume in pool.volumes:
        if volume.handle is not None and is_orphaned(pool.backend(volume)):
            with contextlib.suppress(CsiError, OSError), locks.hold(volume.id):
                _delete(pool, volume.id)


def _delete(pool: Pool, volume_id: str) -> None:
    volume = pool.volumes.get(volume_id)
    if volume and is_orphaned(pool.backend(volume)):  # still, now that nobody else works on it
        delete(pool, volume)
        log.warning(
            "deleted an inline volume whose pod is gone",
            volume=volume.id,
            pod=volume.name,
            targets=volume.targets,
        )
