"""Lists over all nodes, in the order of their segments, page by page.

A token is that of the node at which the page goes on, which ends with the node's segment; or the
segment alone, of a node of which nothing is listed yet. A node that does not answer fails the list:
a shorter one would look like a whole one.
"""

import asyncio
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from pycsi.model.errors import Aborted, InvalidArgument
from pycsi.routing.link import Call, Forward
from pycsi.services.reply import LARGEST_REPLY

_TOKEN = re.compile(r"(?P<node>[^>]+)(?P<rest>(?:>.*)?)|>.*@(?P<last>[^@]*)", re.DOTALL)


async def merged(
    call: Call, segments: Sequence[str], kind: type[Message], forward: Forward
) -> bytes:
    """Return one page of the list that a request asks for, whose replies are of type `kind`.

    `segments` are those of all nodes, in order.
    """
    size = call.request.max_entries
    if size < 0:
        raise InvalidArgument(f"max_entries is {size}; it must not be negative")
    first, token = _position(call.request.starting_token, segments)
    starts = [(item, token if item == first else "") for item in segments if item >= first]
    listing = _Listing(call, kind, forward)
    return await (listing.page(starts, size) if size else listing.everything(starts))


def _position(token: str, segments: Sequence[str]) -> tuple[str, str]:
    """Return the segment of the node at which a page begins, and the token for that node."""
    if not token:
        return "", ""
    match = _TOKEN.fullmatch(token)
    segment = match and (match["node"] or match["last"])
    if match is None or segment not in segments:
        raise Aborted("starting_token is not one that this driver gave; start the listing again")
    return str(segment), match["rest"] if match["node"] else token


def _token(segment: str, token: str) -> str:
    """Return the token of a list that goes on at a node's own token.

    That has up to 128 bytes (CSI specification, "Size Limits"), without room for more. It names the
    node, but for what was made while the node had another name.
    """
    return token if token.endswith(f"@{segment}") else segment + token


@dataclasses.dataclass(frozen=True, slots=True)
class _Page:
    """A node's encoded entries, their number, and the token with which the node goes on.

    Many pages can be waiting for others, and as messages they would take several times as much
    memory.
    """

    entries: bytes
    number: int
    token: str


class _Reply:
    """A reply that is joined of several nodes' pages, as long as they fit into one message."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._parts: list[bytes] = []
        self._room = LARGEST_REPLY

    def takes(self, page: _Page) -> bool:
        """Add a page, or tell that there is no room for it; there is for the first."""
        size = len(page.entries)
        if self._parts and size > self._room:
            return False
        self._parts.append(page.entries)
        self._room -= size
        return True

    def encoded(self, token: str) -> bytes:
        """Return the reply: joined encodings are that of one message with all entries."""
        return b"".join([*self._parts, self._kind(next_token=token).SerializeToString()])


class _Listing:
    """The list that an RPC asks for."""

    def __init__(self, call: Call, kind: Any, forward: Forward) -> None:
        self._call = call
        self._kind = kind
        self._forward = forward

    async def page(self, starts: Sequence[tuple[str, str]], size: int) -> bytes:
        """Ask one node after the other, until there are `size` entries or the reply is full.

        `starts` are the nodes' segments, each with the token at which it begins.
        """
        reply = _Reply(self._kind)
        for segment, start in starts:
            if not size:
                return reply.encoded(_token(segment, start))
            page = await self._ask(segment, start, size)
            if not reply.takes(page):
                return reply.encoded(_token(segment, start))
            if page.token:
                return reply.encoded(_token(segment, page.token))
            size -= page.number
        return reply.encoded("")

    async def everything(self, starts: Sequence[tuple[str, str]]) -> bytes:
        """Ask all nodes at once, and return what fits into one reply."""
        reply = _Reply(self._kind)
        pages = await asyncio.gather(*(self._ask(*start, 0) for start in starts))
        for (segment, start), page in zip(starts, pages, strict=True):
            if not reply.takes(page):
                return reply.encoded(_token(segment, start))
            if page.token:
                return reply.encoded(_token(segment, page.token))
        return reply.encoded("")

    async def _ask(self, segment: str, start: str, size: int) -> _Page:
        """Return a node's page."""
        request = type(self._call.request)()
        request.CopyFrom(self._call.request)
        request.starting_token, request.max_entries = start, size
        asked = self._call.asking(self._call.path, request)
        reply = self._kind.FromString(await self._forward(asked, segment))
        token, reply.next_token = reply.next_token, ""
        return _Page(reply.SerializeToString(), len(reply.entries), token)
