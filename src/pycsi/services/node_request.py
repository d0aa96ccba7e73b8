"""What the Node service's requests have beyond those of other services: paths, and arguments."""

import hashlib
import json
import os
from collections.abc import Collection

from pycsi.model import parameters
from pycsi.model.errors import FailedPrecondition, InvalidArgument
from pycsi.model.request import Capability, Mode
from pycsi.proto import csi_pb2 as csi
from pycsi.services import request as read
from pycsi.volumes.pools import Pools
from pycsi.volumes.staging import resolved

_ENCODER = json.JSONEncoder(sort_keys=True)


def path(pools: Pools, text: str, field: str) -> str:
    """Return a path to mount at, which must not lie in a pool."""
    there = resolved(text, field)
    for name, pool in pools.places():
        inside, place = f"{there}/", f"{pool}/"
        if inside.startswith(place) or place.startswith(inside):
            raise InvalidArgument(
                f"{field} {text!r} lies in pool {name}, or the pool in it; use another"
            )
    return there


def capability(message: csi.VolumeCapability, served: Collection[Mode]) -> Capability:
    """Read a capability; one that no volume here can have is FAILED_PRECONDITION on the node.

    `served` are the access modes that can be had.
    """
    try:
        return read.capability(message, served)
    except read.UnsupportedCapability as error:
        raise FailedPrecondition(str(error)) from None


def arguments(request: csi.NodeStageVolumeRequest | csi.NodePublishVolumeRequest) -> str:
    """Digest what a repeated call must repeat: all but secrets and the orchestrator's own keys."""
    wanted = request.volume_capability
    published, context = request.publish_context, request.volume_context
    data: dict[str, object] = {
        "access": wanted.WhichOneof("access_type"),
        "mode": wanted.access_mode.mode,
        "filesystem": wanted.mount.fs_type,
        "flags": list(wanted.mount.mount_flags),
        "publish_context": {key: published[key] for key in published},
        "volume_context": {
            key: context[key] for key in context if not key.startswith(parameters.ORCHESTRATOR)
        },
    }
    if isinstance(request, csi.NodePublishVolumeRequest):
        data |= {
            "readonly": request.readonly,
            "staged": os.path.normpath(request.staging_target_path),
        }
    return hashlib.sha256(_ENCODER.encode(data).encode()).hexdigest()
