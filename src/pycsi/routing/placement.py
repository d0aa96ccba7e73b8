"""Choosing the node of a new volume, where the request leaves that to the driver."""

import asyncio
from collections.abc import Sequence

import grpc

from pycsi.model import ids
from pycsi.model.errors import CsiError, NotFound
from pycsi.proto import csi_pb2 as csi
from pycsi.routing.link import Call, NodeError, NodeLink

_GET = "/csi.v1.Controller/ControllerGetVolume"
_CAPACITY = "/csi.v1.Controller/GetCapacity"

_MOST_TRIED = 8
"""Nodes that are tried before a volume is refused; only a race makes more than one refuse."""


async def create(call: Call, links: Sequence[NodeLink]) -> bytes:
    """Create a volume on one of the nodes: the one that has it, or else the one with most room.

    Every node is asked whether it has a volume of this name, so that a repeated request returns the
    volume that it made, wherever that is.
    """
    if len(links) > 1:
        found = await asyncio.gather(*(_has(call, link) for link in links))
        holders = [link for link, has in zip(links, found, strict=True) if has]
        links = holders or await _by_room(call, links)
    for link in links[:-1]:
        try:
            return await link.send(call)
        except NodeError as error:
            if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
    return await links[-1].send(call)


async def _has(call: Call, link: NodeLink) -> bool:
    volume_id = ids.object_id(call.request.name, link.segment)
    try:
        await link.send(call.asking(_GET, csi.ControllerGetVolumeRequest(volume_id=volume_id)))
    except NodeError as error:
        if error.code is NotFound.code:
            return False
        raise
    return True


async def _by_room(call: Call, links: Sequence[NodeLink]) -> list[NodeLink]:
    """Return the nodes that have room for the volume, the most first; at least one node."""
    request = csi.GetCapacityRequest(
        volume_capabilities=call.request.volume_capabilities, parameters=call.request.parameters
    )
    wanted = call.asking(_CAPACITY, request)
    sizes = await asyncio.gather(*(_largest(wanted, link) for link in links))
    least = max(1, call.request.capacity_range.required_bytes)
    ranked = sorted(zip(sizes, links, strict=True), key=lambda item: -item[0])
    fitting = [link for size, link in ranked if size >= least]
    return fitting[:_MOST_TRIED] or [ranked[0][1]]


async def _largest(call: Call, link: NodeLink) -> int:
    """Return the bytes of the largest volume that the node can make; 0 if it cannot tell."""
    try:
        answer = csi.GetCapacityResponse.FromString(await link.send(call))
    except CsiError:
        return 0  # CreateVolume will tell what is wrong with the request, or with the node
    return answer.maximum_volume_size.value


async def capacity(call: Call, links: Sequence[NodeLink]) -> bytes:
    """Return the capacity of all nodes together, and the sizes that a volume can have on one."""
    replies = await asyncio.gather(*(link.send(call) for link in links))
    answers = [csi.GetCapacityResponse.FromString(reply) for reply in replies]
    total = csi.GetCapacityResponse(
        available_capacity=sum(answer.available_capacity for answer in answers)
    )
    total.maximum_volume_size.value = max(answer.maximum_volume_size.value for answer in answers)
    total.minimum_volume_size.value = min(answer.minimum_volume_size.value for answer in answers)
    return total.SerializeToString()
