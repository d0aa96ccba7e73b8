"""Choosing the node of a new volume, where the request leaves that to the driver."""

import asyncio
import hashlib
from collections.abc import Iterable

from pycsi.model import ids
from pycsi.model.errors import Aborted, CsiError, NotFound, ResourceExhausted, Unavailable
from pycsi.proto import csi_pb2 as csi
from pycsi.routing.link import Call, Forward, NodeError

_GET = "/csi.v1.Controller/ControllerGetVolume"

_PATIENCE = 5.0
"""Seconds for a node to say whether it has a volume."""


async def create(call: Call, segments: Iterable[str], forward: Forward, make: Forward) -> bytes:
    """Create a volume on one of the nodes: on the one that has it, or else on one with room.

    `make` sends the call to a node, and `forward` what is to be asked before.

    The volume's name orders the nodes, so a repeated request begins with the same node; one that is
    full is passed over. A node that does not answer may have the volume if its turn comes, and then
    it is `Unavailable`; later in the order it keeps nobody waiting for long.
    """
    ranked = sorted(segments, key=lambda segment: _rank(call.request.name, segment))
    if len(ranked) == 1:
        return await make(call, ranked[0])
    looks = await asyncio.gather(*(_look(call, segment, forward) for segment in ranked))
    if True in looks:
        return await make(call, ranked[looks.index(True)])
    full: NodeError | None = None
    for segment, found in zip(ranked, looks, strict=True):
        if isinstance(found, CsiError):
            raise Unavailable(f"node {segment} may have volume {call.request.name!r}: {found}")
        try:
            return await make(call, segment)
        except NodeError as error:
            if error.code is not ResourceExhausted.code:
                raise
            full = full or error
    raise full or Unavailable("no node may have the volume")


def _rank(name: str, segment: str) -> bytes:
    """Return the node's place in the order for a name (rendezvous hashing).

    The order of the others stays the same if a node comes or goes.
    """
    return hashlib.sha256(f"{name}\0{segment}".encode()).digest()


async def _look(call: Call, segment: str, forward: Forward) -> bool | CsiError:
    """Tell whether a node has the volume, or is making it; return the error if it cannot say."""
    volume_id = ids.id_at(call.request.name, segment)
    asked = call.asking(_GET, csi.ControllerGetVolumeRequest(volume_id=volume_id))
    try:
        async with asyncio.timeout(_PATIENCE):
            await forward(asked, segment)
    except TimeoutError:
        return Unavailable(f"no answer in {_PATIENCE:g} s")
    except CsiError as error:
        if error.code is Aborted.code:
            return True
        return False if error.code is NotFound.code else error
    return True


async def capacity(call: Call, segments: Iterable[str], forward: Forward) -> bytes:
    """Return the capacity of all nodes together, and the sizes that a volume can have on one."""
    replies = await asyncio.gather(*(forward(call, segment) for segment in segments))
    answers = [csi.GetCapacityResponse.FromString(reply) for reply in replies]
    total = csi.GetCapacityResponse(
        available_capacity=sum(answer.available_capacity for answer in answers)
    )
    total.maximum_volume_size.value = max(answer.maximum_volume_size.value for answer in answers)
    total.minimum_volume_size.value = min(answer.minimum_volume_size.value for answer in answers)
    return total.SerializeToString()
