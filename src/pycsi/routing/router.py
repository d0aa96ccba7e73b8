"""Which node an RPC is for, and forwarding it there."""

import contextlib
import dataclasses
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)

from pycsi.model import ids, parameters, trace
from pycsi.model.errors import Aborted, CsiError, Unavailable
from pycsi.model.observer import Observer
from pycsi.proto import csi_pb2 as csi
from pycsi.routing import lists, placement
from pycsi.routing.exchange import Exchange
from pycsi.routing.groups import GroupRouter
from pycsi.routing.link import Call, NodeLink
from pycsi.routing.moving import Moving
from pycsi.routing.nodes import Nodes

_BY_FIELD = {
    "DeleteVolume": "volume_id",
    "ControllerExpandVolume": "volume_id",
    "ControllerModifyVolume": "volume_id",
    "ValidateVolumeCapabilities": "volume_id",
    "ControllerGetVolume": "volume_id",
    "ControllerGetVolumeHealth": "volume_id",
    "ControllerPublishVolume": "volume_id",
    "ControllerUnpublishVolume": "volume_id",
    "CreateSnapshot": "source_volume_id",
    "DeleteSnapshot": "snapshot_id",
    "GetSnapshot": "snapshot_id",
    "GetMetadataAllocated": "snapshot_id",
    "GetMetadataDelta": "target_snapshot_id",
}
"""The field of each request whose id names the node that the RPC is for."""

_LISTS = {
    "ListVolumes": csi.ListVolumesResponse,
    "ListSnapshots": csi.ListSnapshotsResponse,
    "ControllerListVolumeHealth": csi.ControllerListVolumeHealthResponse,
}


class Router:
    """Forwards RPCs to the nodes that they are for; it keeps nothing but its connections.

    A request that names no node is for any: what is wrong with it, each of them tells alike. Each
    RPC that is sent to a node is told to the `observer`, but for the parts of group snapshots.
    """

    def __init__(self, nodes: Nodes, topology_key: str, observer: Observer) -> None:
        self._nodes = nodes
        self._observer = observer
        self._topology_key = topology_key
        self._creating: set[str] = set()
        self.groups = GroupRouter(nodes, self._forward)
        self.exchange = Exchange(nodes, self._observed)
        self._moving = Moving(nodes, self.exchange, self._forward)
        self._answers: Mapping[str, Callable[[Call], Awaitable[bytes]]] = {
            "CreateVolume": self._create_volume,
            "GetCapacity": self._capacity,
            "CreateVolumeGroupSnapshot": self.groups.create,
            "DeleteVolumeGroupSnapshot": self.groups.delete,
            "GetVolumeGroupSnapshot": self.groups.get,
            "CancelMove": self._moving.cancel,
        }

    async def answer(self, name: str, call: Call) -> bytes:
        """Return the encoded reply to the unary RPC `name`."""
        if answer := self._answers.get(name):
            return await answer(call)
        match name:
            case "ListSnapshots" if filtered := call.request.snapshot_id or (
                call.request.source_volume_id
            ):
                return await self._forward(call, ids.node_of(filtered))
            case "ListVolumes" | "ListSnapshots" | "ControllerListVolumeHealth":
                segments = await self._nodes.every()
                return await lists.merged(call, segments, _LISTS[name], self._forward)
        return await self._forward(call, self._node(name, call))

    async def stream(self, name: str, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the encoded replies to the RPC `name`, which answers with a stream."""
        if name == "Move":
            async with contextlib.aclosing(self._moving.move(call)) as news:
                async for item in news:
                    yield item
            return
        link = await self._link(self._node(name, call))
        try:
            with self._observed(link, call) as sent:
                async with contextlib.aclosing(link.stream(sent)) as replies:
                    async for reply in replies:
                        yield reply
        except Unavailable:
            # The caller goes on with a new stream, from where this one has ended.
            await self._nodes.successor(link)
            raise

    def _node(self, name: str, call: Call) -> str | None:
        return ids.node_of(getattr(call.request, _BY_FIELD[name]))

    async def _link(self, segment: str | None) -> NodeLink:
        return await (self._nodes.any() if segment is None else self._nodes.get(segment))

    async def _forward(self, call: Call, segment: str | None) -> bytes:
        """Forward an RPC to a node, or to any.

        If the node does not answer, look whether it has another address now, and send it there:
        every RPC can be repeated.
        """
        link = await self._link(segment)
        try:
            return await self._sent(link, call)
        except Unavailable:
            if successor := await self._nodes.successor(link):
                return await self._sent(successor, call)
            raise

    async def _sent(self, link: NodeLink, call: Call) -> bytes:
        with self._observed(link, call) as sent:
            return await link.send(sent)

    @contextlib.contextmanager
    def _observed(self, link: NodeLink, call: Call) -> Iterator[Call]:
        """Have the RPC in the `with` block counted and traced; it is to be sent as it is yielded.

        Then the node's trace is a part of the caller's.
        """
        begin, code, failure = time.perf_counter(), "CANCELLED", None
        self._observer.began(link.segment)
        sending = trace.current().sending(call.path, link.segment, call.metadata)
        try:
            yield dataclasses.replace(call, metadata=sending.metadata)
            code = "OK"
        except BaseException as error:
            failure = error
            if isinstance(error, CsiError):
                code = error.code.name
            raise
        finally:
            sending.ended(failure)
            self._observer.ended(link.segment, code, time.perf_counter() - begin)

    # Volumes

    async def _create_volume(self, call: Call) -> bytes:
        source = _source(call.request.volume_content_source)
        requirement = call.request.accessibility_requirements
        origin = ids.node_of(source)
        if source and not (origin and parameters.restores_anywhere(call.request.parameters)):
            # Only there is the data. The node refuses what `requisite` does not allow; `preferred`
            # is a wish, and the volume's topology brings the pod to the data.
            return await self._forward(call, origin)

        async def make(call: Call, segment: str | None) -> bytes:
            if origin and segment and segment != origin:
                return await self.exchange.create(call, origin, segment)
            return await self._forward(call, segment)

        if requirement.preferred and requirement.preferred[0].segments:
            return await make(call, self._named(requirement.preferred[0].segments))
        with self._sole(call.request.name):
            segments = await self._candidates(requirement.requisite, origin)
            return await placement.create(call, segments, self._forward, make)

    async def _candidates(
        self, requisite: Sequence[csi.Topology], origin: str | None
    ) -> Collection[str]:
        """Return the segments of the nodes that a new volume may be on; at least one.

        It is that of its source's node, `origin`, if that may be.
        """
        if not requisite or not all(topology.segments for topology in requisite):
            return [origin] if origin else await self._nodes.known()
        named = {self._named(topology.segments) for topology in requisite} - {None}
        if origin and origin in named:
            return [origin]
        # Where none of them is a node of this driver, any node tells so.
        return {item for item in named if item} or {(await self._nodes.any()).segment}

    def _named(self, segments: Mapping[str, str]) -> str | None:
        """Return the topology segment that names a node; None if there is none, or more than that.

        The case of keys is ignored (CSI specification, "Topology").
        """
        if len(segments) != 1:
            return None
        ((key, value),) = segments.items()
        return value if key.lower() == self._topology_key.lower() else None

    @contextlib.contextmanager
    def _sole(self, name: str) -> Iterator[None]:
        """Keep a name from being placed twice at once, on two nodes; `Aborted` if it would be."""
        if name in self._creating:
            raise Aborted(f"volume {name} is being created; try again")
        self._creating.add(name)
        try:
            yield
        finally:
            self._creating.remove(name)

    async def _capacity(self, call: Call) -> bytes:
        segments = call.request.accessible_topology.segments
        if segments:
            return await self._forward(call, self._named(segments))
        return await placement.capacity(call, await self._nodes.every(), self._forward)


def _source(content: csi.VolumeContentSource) -> str:
    """Return the id of the snapshot or volume that a new volume is filled from, or ""."""
    return content.snapshot.snapshot_id or content.volume.volume_id
