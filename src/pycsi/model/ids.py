"""Ids of volumes and snapshots: `<key>@<node>`, safe as file names, at most 128 bytes.

The key is the name itself if that is a safe file name, so that `ls volumes/` shows names; any other
legal name is replaced by a digest. The same name always gives the same id, so a retry takes the
same lock and finds the same directory. The node part tells on which node the data lies.
"""

import hashlib
import re

_SAFE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_ID = re.compile(rf"(?P<key>{_SAFE.pattern})@(?P<node>{_SAFE.pattern})")
_DIGITS = 40

DIGESTED = "sha256-"
"""The prefix of a digest that replaces a name which is not safe as a file name."""

EPHEMERAL = "ephemeral-"
"""The prefix of the key of an inline volume. No name has such a key."""

MEMBER = "member-"
"""The prefix of the key of a group snapshot's member. No name has such a key."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def segment(node: str) -> str:
    """Return the node's name for ids and for the topology segment, or a digest of the name.

    The name itself is used if it can be a topology value: like a Kubernetes label, that has at most
    63 characters and begins and ends with a letter or digit.
    """
    if _SAFE.fullmatch(node) and not node.startswith(DIGESTED):
        return node
    return DIGESTED + _digest(node)


def key(name: str) -> str:
    """Return the key for `name`: the name itself, or a digest of it."""
    if _SAFE.fullmatch(name) and not name.startswith((DIGESTED, EPHEMERAL, MEMBER)):
        return name
    return DIGESTED + _digest(name)


def object_id(name: str, node: str) -> str:
    """Return the id of the volume, snapshot or group snapshot called `name` on `node`."""
    return f"{key(name)}@{segment(node)}"


def ephemeral_id(handle: str, node: str) -> str:
    """Return the driver's id for the inline volume that the orchestrator calls `handle`."""
    return f"{EPHEMERAL}{_digest(handle)}@{segment(node)}"


def member_id(group_id: str, volume_id: str, node: str) -> str:
    """Return the id of the group snapshot's member that is the snapshot of `volume_id`."""
    return f"{MEMBER}{_digest(f'{group_id} {volume_id}')}@{segment(node)}"


def node_of(text: str) -> str | None:
    """Return the node part of an id, or None if `text` does not have the form of an id."""
    match = _ID.fullmatch(text)
    return match["node"] if match else None
