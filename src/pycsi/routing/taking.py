"""Taking a group snapshot of volumes on several nodes, at one point in time.

This is the controller's part of the protocol in groups.proto.
"""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence

from pycsi.model import ids
from pycsi.proto import groups_pb2 as groups
from pycsi.routing.link import Call, NodeLink
from pycsi.routing.parts import Parts, PartStream
from pycsi.volumes.quiescing import refuse_unfreezable

_STEP = groups.TakePartRequest
_FREEZE = _STEP(freeze=_STEP.Freeze())
_PREPARE = _STEP(prepare=_STEP.Prepare())
_COMMIT = _STEP(commit=_STEP.Commit())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WantedGroup:
    """A group snapshot that was asked for, and its nodes in the order of their segments."""

    id: str
    name: str
    sources: Sequence[str]
    parameters: Mapping[str, str]
    nodes: Sequence[str]

    @classmethod
    def of(cls, name: str, sources: Sequence[str], parameters: Mapping[str, str]) -> "WantedGroup":
        """Return the group of volumes on several nodes, each of which has the form of an id."""
        nodes = ids.nodes_of(sources)
        return cls(
            id=ids.id_at(name, nodes[0]),
            name=name,
            sources=sources,
            parameters=parameters,
            nodes=nodes,
        )


class GroupTake:
    """A take of a group: `prepare` on all nodes, then `commit`; at last `end` in any case."""

    def __init__(self, wanted: WantedGroup, parts: Parts) -> None:
        self.attempt = uuid.uuid4().hex
        self._wanted = wanted
        self._parts = parts
        self._streams: list[PartStream] = []

    async def prepare(self, call: Call, links: Iterable[NodeLink]) -> groups.Part | None:
        """Prepare all parts; or return the coordinator's part, if the group exists already.

        The first of `links` is the coordinator's. `FailedPrecondition` if more than one of the
        volumes in use cannot be frozen.
        """
        unfreezable: list[str] = []
        # One after the other and in order: so takes that share volumes do not wait for each other.
        for link in links:
            answer = await self._begin(call, link)
            if answer.HasField("found") and not answer.found.prepared:
                return answer.found
            if answer.HasField("found"):
                await self._undo(call, link, answer.found)
                answer = await self._begin(call, link)
            unfreezable += answer.ready.unfreezable_volume_ids
        refuse_unfreezable(unfreezable)
        await self._all(_FREEZE)
        await self._all(_STEP(capture=_STEP.Capture(created=time.time())))
        await self._all(_PREPARE)
        return None

    async def _begin(self, call: Call, link: NodeLink) -> groups.TakePartResponse:
        wanted = self._wanted
        begin = _STEP.Begin(
            name=wanted.name,
            attempt=self.attempt,
            source_volume_ids=wanted.sources,
            parameters=wanted.parameters,
        )
        self._streams.append(PartStream(link, call))
        return await self._streams[-1].step(_STEP(group_snapshot_id=wanted.id, begin=begin))

    async def _undo(self, call: Call, link: NodeLink, part: groups.Part) -> None:
        """Undo what an earlier take has prepared on a node.

        The coordinator holds the group's lock, and has no record: so that take was not committed.
        It is undone by its attempt, whenever the request may arrive.
        """
        await self._streams.pop().end()
        await self._parts.undo(call, link.segment, self._wanted.id, part.attempt)

    async def _all(self, request: groups.TakePartRequest) -> None:
        """Take a step on all nodes; the first error ends the streams that have not answered."""
        steps = [asyncio.ensure_future(stream.step(request)) for stream in self._streams]
        try:
            done, _ = await asyncio.wait(steps, return_when=asyncio.FIRST_EXCEPTION)
            for step in done:
                step.result()
        finally:
            for step in steps:
                step.cancel()
            await asyncio.gather(*steps, return_exceptions=True)

    async def commit(self) -> dict[str, groups.Part]:
        """Commit the coordinator's part, then the others; return those that were committed.

        If this raises an error it is not known whether the coordinator has committed.
        """
        first, *others = self._streams
        found = {first.node: (await first.step(_COMMIT)).committed}
        steps = (stream.step(_COMMIT) for stream in others)
        answers = await asyncio.gather(*steps, return_exceptions=True)
        for stream, answer in zip(others, answers, strict=True):
            if isinstance(answer, groups.TakePartResponse):
                found[stream.node] = answer.committed
        return found

    async def end(self) -> None:
        """End all streams; what is not committed by then is undone, or left in doubt."""
        streams, self._streams = self._streams, []
        await asyncio.gather(*(stream.end() for stream in streams))
