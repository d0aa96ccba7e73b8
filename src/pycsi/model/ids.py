"""Ids: `<key>@<node>`, derived from names, safe as file names, at most 128 bytes.

The key is the name itself where that is a safe file name, so that `ls volumes/` shows names; any
other legal name is digested. Same name, same id: one key to lock, one place to look. The node part
says where the data lies.
"""

import hashlib
import re

_SAFE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_ID = re.compile(rf"(?P<key>{_SAFE.pattern})@(?P<node>{_SAFE.pattern})")
_DIGITS = 40

DIGESTED = "sha256-"
"""The prefix of a key that stands for a name that cannot be a file name."""

EPHEMERAL = "ephemeral-"
"""The prefix of the key of an inline volume; no name can lead to it."""

MEMBER = "member-"
"""The prefix of the key of a group snapshot's member; no name can lead to it."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def segment(node: str) -> str:
    """Return `node` as it appears in ids and in topology: itself, or a digest of an odd name.

    A topology value, like a Kubernetes label, has at most 63 characters and begins and ends with a
    letter or digit.
    """
    if _SAFE.fullmatch(node) and not node.startswith(DIGESTED):
        return node
    return DIGESTED + _digest(node)


def key(name: str) -> str:
    """Return the part of an id that stands for `name`."""
    if _SAFE.fullmatch(name) and not name.startswith((DIGESTED, EPHEMERAL, MEMBER)):
        return name
    return DIGESTED + _digest(name)


def object_id(name: str, node: str) -> str:
    """Return the id of the volume (or snapshot) called `name` on `node`."""
    return f"{key(name)}@{segment(node)}"


def ephemeral_id(handle: str, node: str) -> str:
    """Return our id of the inline volume to which the orchestrator gave the id `handle`."""
    return f"{EPHEMERAL}{_digest(handle)}@{segment(node)}"


def member_id(group_id: str, volume_id: str, node: str) -> str:
    """Return the id of the snapshot of a volume that belongs to a group snapshot."""
    return f"{MEMBER}{_digest(f'{group_id} {volume_id}')}@{segment(node)}"


def node_of(text: str) -> str | None:
    """Return the node part of an id, or None where `text` is no id of ours."""
    match = _ID.fullmatch(text)
    return match["node"] if match else None
