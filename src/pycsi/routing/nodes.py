"""Finding the nodes: their addresses, which node answers at each, and whether all are there."""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any

import grpc
import grpc.aio
import structlog

from pycsi.model.addresses import Address
from pycsi.model.errors import Unavailable
from pycsi.proto import csi_pb2 as csi
from pycsi.routing.certificates import Certificates
from pycsi.routing.link import NodeLink, open_channel
from pycsi.services.identity import INSTANCE

log = structlog.get_logger()

_INTERVAL = 10.0
"""Seconds after which addresses and certificates are looked at again."""

_SOONEST = 1.0
"""Seconds between two looks that failed RPCs ask for."""

_PATIENCE = 5.0
"""Seconds for an address to tell which node it is."""

_REMEMBERED = 600.0
"""Seconds after which a node whose address has gone is no longer counted among the nodes.

The pod of a node that restarts has no address for a while; a node that was removed has none ever.
"""

_GRACE = 300.0
"""Seconds for the RPCs under way on a channel that is replaced."""

_READY = grpc.ChannelConnectivity.READY
_WHO = "/csi.v1.Identity/GetPluginInfo"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where the nodes are: at all addresses of `service`, or at those of `fixed`, by segment."""

    service: Address | None
    fixed: Mapping[str, Address]

    def __str__(self) -> str:
        return f"at {self.service}" if self.service else "given with --node"

    async def targets(self) -> dict[str, str | None]:
        """Return the addresses with ports, and of each the segment of its node, where given.

        `OSError` if the name cannot be resolved.
        """
        if self.service is None:
            return {str(address): segment for segment, address in self.fixed.items()}
        host, port = self.service
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return {str(Address(str(place[0]), port)): None for _, _, _, _, place in found}


@dataclasses.dataclass(slots=True)
class _Peer:
    """A channel to an address, and the node's link and process there, once it has told them.

    `fault` is why it has not. `doubted`: an RPC has failed since, so another node may be there now.
    """

    channel: grpc.aio.Channel
    expected: str | None
    link: NodeLink | None = None
    instance: str = ""
    doubted: bool = False
    fault: str = "it has not answered yet"


class Nodes:
    """The nodes that were found, by topology segment; `run` keeps them up to date.

    `up` tells of each whether it was connected at the last look.
    """

    def __init__(
        self,
        whereabouts: Whereabouts,
        certificates: Certificates,
        driver_name: str,
        topology_key: str,
    ) -> None:
        self._whereabouts = whereabouts
        self._certificates = certificates
        self._driver_name = driver_name
        self._topology_key = topology_key
        self._peers: dict[str, _Peer] = {}
        self._links: dict[str, NodeLink] = {}
        self._seen: dict[str, float] = {}
        self._twice: dict[str, str] = {}
        self.up: Mapping[str, bool] = {}
        self._fault = ""
        self._refusal = ""
        self._look: asyncio.Task[None] | None = None
        self._looked = float("-inf")
        self._found = asyncio.Condition()
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Look for nodes now and then, until this is cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("looking for nodes has failed; it goes on")
            await asyncio.sleep(_INTERVAL)

    def processes(self) -> set[tuple[str, str]]:
        """Return the nodes that are known, each with a word that tells its processes apart."""
        return {(peer.link.segment, peer.instance) for peer in self._peers.values() if peer.link}

    # Asking for nodes

    async def get(self, segment: str) -> NodeLink:
        """Return the node's link; if it is not known look once more, or raise `Unavailable`."""
        if segment not in self._links:
            look = self._started_look()
            async with self._found:
                await self._found.wait_for(lambda: segment in self._links or look.done())
        if segment in self._twice:
            raise Unavailable(self._twice[segment])
        if link := self._links.get(segment):
            return link
        raise Unavailable(f"node {segment} is not there: {self._why_missing()}")

    async def any(self) -> NodeLink:
        """Return the link of a node that answers, if there is one, or raise `Unavailable`."""
        if not self._links:
            await self.look()
        links = sorted(self._links.values(), key=lambda item: item.channel.get_state() != _READY)
        if links:
            return links[0]
        raise Unavailable(f"no node is there: {self._why_missing()}")

    async def known(self) -> set[str]:
        """Return the segments of the nodes that are there, were a while ago, or are given by name.

        `Unavailable` if there is none.
        """
        if not self._seen:  # a look under way has found some nodes, but not all
            await self.look()
        given = {peer.expected for peer in self._peers.values() if peer.expected}
        if found := given.union(self._seen):
            return found
        raise Unavailable(f"no node is there: {self._why_missing()}")

    async def every(self) -> list[str]:
        """Return the segments of all nodes, in order.

        `Unavailable` if one that should be there is not known; its name is told, or its address.
        """
        if self._lacking():
            await self.look()
        if lacking := self._lacking():
            raise Unavailable(f"not all nodes are there: {'; '.join(lacking[:4])}")
        return sorted(self._links)

    def _lacking(self) -> list[str]:
        """Return why the nodes that are known are not all that there are."""
        lost = [
            f"node {segment} has no address {self._whereabouts} any more"
            for segment in self._seen
            if segment not in self._links
        ]
        faults = [f"{at}: {peer.fault}" for at, peer in self._peers.items() if not peer.link]
        none = [] if self._links or lost or faults else [self._why_missing()]
        return [*self._twice.values(), *lost, *faults, *none]

    async def successor(self, failed: NodeLink) -> NodeLink | None:
        """Look where the node of a link is that has failed; None if it has no other address."""
        peer = self._peers.get(failed.target)
        if peer and peer.link is failed:
            peer.doubted = True
        await self.look()
        link = self._links.get(failed.segment)
        return link if link is not failed else None

    def _why_missing(self) -> str:
        faults = [f"{at}: {peer.fault}" for at, peer in self._peers.items() if not peer.link]
        reasons = [reason for reason in (self._fault, self._refusal, *faults) if reason]
        return "; ".join(reasons[:4]) or f"no address of it is among those {self._whereabouts}"

    # Looking for nodes

    async def look(self) -> None:
        """Look for nodes, unless that was done just now; wait for a look that is under way."""
        await asyncio.shield(self._started_look())

    def _started_look(self) -> "asyncio.Task[None]":
        loop = asyncio.get_running_loop()
        if self._look is None or (self._look.done() and loop.time() > self._looked + _SOONEST):
            self._look = loop.create_task(self._look_now())
        return self._look

    async def _look_now(self) -> None:
        try:
            if self._certificates.renewed():
                for at, peer in list(self._peers.items()):
                    self._replace(at, peer.expected)
                self._index()
            await self._update(await self._whereabouts.targets())
            self._fault = ""
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "that is no host's name"
            self._fault = f"the nodes {self._whereabouts} cannot be found: {reason}"
            log.warning("nodes cannot be found", error=self._fault)
        finally:
            self._looked = asyncio.get_running_loop().time()
            async with self._found:
                self._found.notify_all()

    async def _update(self, targets: Mapping[str, str | None]) -> None:
        for at in self._peers.keys() - targets.keys():
            self._close(self._peers.pop(at).channel)
        for at in targets.keys() - self._peers.keys():
            self._replace(at, targets[at])
        self._index()
        await asyncio.gather(*(self._identify(at, peer) for at, peer in self._unsure()))
        self._index()
        down = any(peer.channel.get_state() != _READY for peer in self._peers.values())
        self._refusal = self._certificates.refusal() if down else ""

    def _unsure(self) -> list[tuple[str, _Peer]]:
        """Return the peers of which it is not known which node and which process is there now.

        A process at several addresses may have been replaced without each channel telling: if one
        of a node's is unsure, so are the others.
        """
        unsure = {
            at: peer.link and peer.link.segment
            for at, peer in self._peers.items()
            if not peer.link
            or peer.doubted
            or peer.channel.get_state(try_to_connect=True) != _READY
        }
        return [
            (at, peer)
            for at, peer in self._peers.items()
            if at in unsure or (peer.link and peer.link.segment in unsure.values())
        ]

    def _replace(self, at: str, expected: str | None) -> None:
        """Open a new channel to an address; what is known of the node there stays known."""
        before = self._peers.get(at)
        channel = open_channel(at, self._certificates.pair, self._driver_name)
        peer = self._peers[at] = _Peer(channel, expected)
        if before is None:
            return
        if before.link:
            peer.link, peer.instance = NodeLink(before.link.segment, at, channel), before.instance
        self._close(before.channel)

    def _close(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(grace=_GRACE))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _identify(self, at: str, peer: _Peer) -> None:
        """Ask an address which node it is, and which process."""
        ask = peer.channel.unary_unary(
            _WHO,
            request_serializer=csi.GetPluginInfoRequest.SerializeToString,
            response_deserializer=csi.GetPluginInfoResponse.FromString,
        )
        try:
            answer = await ask(csi.GetPluginInfoRequest(), timeout=_PATIENCE)
        except grpc.aio.AioRpcError as error:
            peer.fault = error.details() or error.code().name
            return
        peer.doubted = False
        segment = answer.manifest.get(self._topology_key, "")
        if fault := self._misfit(answer, segment, peer.expected):
            peer.link, peer.fault = None, fault
            log.warning("an address is not that of a node", address=at, error=fault)
            return
        if peer.link is None or peer.link.segment != segment:
            peer.link = NodeLink(segment, at, peer.channel)
            log.info("found a node", node=segment, address=at)
        peer.instance = answer.manifest.get(INSTANCE, "")
        # At once, for those who wait; the end of the look judges all peers together.
        known = self._links.get(segment)
        if known is None or known.channel.get_state() != _READY:
            self._links[segment] = peer.link
        async with self._found:
            self._found.notify_all()

    def _misfit(self, answer: csi.GetPluginInfoResponse, segment: str, expected: str | None) -> str:
        """Return why an address is not that of the node that is expected there; "" if it is."""
        if answer.name != self._driver_name:
            return f"the driver there is {answer.name}, not {self._driver_name}"
        if not segment:
            return f"the driver there, of version {answer.vendor_version}, does not tell its node"
        if expected and segment != expected:
            return f"the driver there is that of node {segment}, not of node {expected}"
        return ""

    def _index(self) -> None:
        """Find the link of each node among all peers, and the nodes that have gone."""
        now = asyncio.get_running_loop().time()
        known: dict[str, list[_Peer]] = {}
        for peer in self._peers.values():
            if peer.link:
                known.setdefault(peer.link.segment, []).append(peer)
        self._twice = {}
        for segment, peers in known.items():
            answering = [peer for peer in peers if peer.channel.get_state() == _READY] or peers
            if len({peer.instance for peer in answering}) > 1:
                self._twice[segment] = _claimed(segment, answering)
            self._seen[segment] = now
        self._links = {segment: _best(peers) for segment, peers in known.items()}
        self._seen = {item: at for item, at in self._seen.items() if now < at + _REMEMBERED}
        self.up = {
            item: item in self._links and self._links[item].channel.get_state() == _READY
            for item in self._seen
        }


def _best(peers: Iterable[_Peer]) -> NodeLink:
    """Return the link of a peer that is connected, if one is: all are of the same node."""
    links = [peer.link for peer in peers if peer.link]
    return next((link for link in links if link.channel.get_state() == _READY), links[0])


def _claimed(segment: str, peers: Iterable[_Peer]) -> str:
    places = " and ".join(peer.link.target for peer in peers if peer.link)
    return (
        f"the drivers at {places} both are node {segment}; give each its own --node-id, and do not "
        "run two on one node"
    )


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work`, which has no end, beside the `with` block; then cancel it."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
