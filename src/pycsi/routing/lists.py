"""Lists over all nodes, in the order of their segments, page by page.

A token is the segment of the node where the page begins, and the node's own token, which begins
with `>`. A node that does not answer fails the list: a shorter one would look like a whole one.
"""

import asyncio
import re
from typing import Any

from google.protobuf.message import Message

from pycsi.model.errors import Aborted, InvalidArgument
from pycsi.routing.link import Call, NodeLink
from pycsi.services.reply import LARGEST_REPLY

_TOKEN = re.compile(r"(?P<node>[^>]+)(?P<rest>(?:>.*)?)", re.DOTALL)


async def merged(call: Call, links: list[NodeLink], kind: type[Message]) -> bytes:
    """Return one page of the list that a request asks for, whose replies are of type `kind`.

    `links` are those of all nodes, in order.
    """
    request = call.request
    if request.max_entries < 0:
        raise InvalidArgument(f"max_entries is {request.max_entries}; it must not be negative")
    node, token = _position(request.starting_token, links)
    rest = [link for link in links if link.segment >= node]
    first = {link.segment: token if link.segment == node else "" for link in rest}
    if request.max_entries:
        return await _page(call, rest, first, kind, request.max_entries)
    return await _everything(call, rest, first, kind)


def _position(token: str, links: list[NodeLink]) -> tuple[str, str]:
    """Return the segment of the node at which a page begins, and the token for that node."""
    if not token:
        return "", ""
    match = _TOKEN.fullmatch(token)
    if match is None or all(link.segment != match["node"] for link in links):
        raise Aborted("starting_token is not one that this driver gave; start the listing again")
    return match["node"], match["rest"]


async def _page(
    call: Call, links: list[NodeLink], tokens: dict[str, str], kind: type[Message], most: int
) -> bytes:
    """Ask one node after the other, until there are `most` entries or the reply is full."""
    parts: list[bytes] = []
    room = LARGEST_REPLY
    for link in links:
        if not most or (parts and room <= 0):
            return _joined(parts, kind, link.segment)
        part, token = await _ask(call, link, tokens[link.segment], kind, most)
        size = part.ByteSize()
        if parts and size > room:
            return _joined(parts, kind, link.segment + tokens[link.segment])
        parts.append(part.SerializeToString())
        room -= size
        most -= len(part.entries)
        if token:
            return _joined(parts, kind, link.segment + token)
    return _joined(parts, kind, "")


async def _everything(
    call: Call, links: list[NodeLink], tokens: dict[str, str], kind: type[Message]
) -> bytes:
    """Ask all nodes at once, and return what fits into one reply."""
    asked = [
        asyncio.ensure_future(_ask(call, link, tokens[link.segment], kind, 0)) for link in links
    ]
    parts: list[bytes] = []
    room = LARGEST_REPLY
    try:
        for link, answer in zip(links, asked, strict=True):
            part, token = await answer
            size = part.ByteSize()
            if parts and size > room:
                return _joined(parts, kind, link.segment + tokens[link.segment])
            parts.append(part.SerializeToString())
            room -= size
            if token:
                return _joined(parts, kind, link.segment + token)
    finally:
        for answer in asked:
            answer.cancel()
    return _joined(parts, kind, "")


async def _ask(
    call: Call, link: NodeLink, token: str, kind: type[Message], most: int
) -> tuple[Any, str]:
    """Return a node's page without its token, and the token."""
    request = type(call.request)()
    request.CopyFrom(call.request)
    request.starting_token, request.max_entries = token, most
    page: Any = kind.FromString(await link.send(call.asking(call.path, request)))
    token, page.next_token = page.next_token, ""
    return page, token


def _joined(parts: list[bytes], kind: Any, token: str) -> bytes:
    """Return the reply with the entries of all parts; joined encodings are that of one message."""
    return b"".join([*parts, kind(next_token=token).SerializeToString()])
