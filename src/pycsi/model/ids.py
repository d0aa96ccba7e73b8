"""Ids of volumes and snapshots, and the node that they name: its id and its topology segment.

An id is `<key>@<node>`, safe as a file name, and has at most 128 bytes. The key is the name itself
if that is a safe file name, so that `ls volumes/` shows names; any other legal name is replaced by
a digest. The same name always gives the same id, so a retry takes the same lock and finds the same
directory. The node part tells on which node the data lies.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from pycsi.model.errors import NotFound, ResourceExhausted

_SAFE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_ID = re.compile(rf"(?P<key>{_SAFE.pattern})@(?P<node>{_SAFE.pattern})")
_DIGITS = 40
_LONGEST_PREFIX = 63

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


def object_id(name: str, node: str) -> str:
    """Return the id of the volume, snapshot or group snapshot called `name` on `node`."""
    return id_at(name, segment(node))


def id_at(name: str, at: str) -> str:
    """Return the same id as `object_id`, for the node with the topology segment `at`."""
    is_key = _SAFE.fullmatch(name) and not name.startswith((DIGESTED, EPHEMERAL, MEMBER))
    return f"{name if is_key else DIGESTED + _digest(name)}@{at}"


def ephemeral_id(handle: str, node: str) -> str:
    """Return the driver's id for the inline volume that the orchestrator calls `handle`."""
    return f"{EPHEMERAL}{_digest(handle)}@{segment(node)}"


def member_id(group_id: str, volume_id: str, at: str) -> str:
    """Return the id of the group snapshot's member that is the snapshot of `volume_id`.

    `at` is the topology segment of the node on which both are.
    """
    return f"{MEMBER}{_digest(f'{group_id} {volume_id}')}@{at}"


def node_of(text: str) -> str | None:
    """Return the node part of an id, or None if `text` does not have the form of an id."""
    match = _ID.fullmatch(text)
    return match["node"] if match else None


def nodes_of(volume_ids: Iterable[str]) -> list[str]:
    """Return the nodes of volumes, in order; `NotFound` if one has not the form of an id."""
    found = set()
    for volume_id in volume_ids:
        node = node_of(volume_id)
        if node is None:
            raise NotFound(f"there is no volume {volume_id!r}")
        found.add(node)
    return sorted(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """The node's id and topology segment; `max_volumes` is its volume limit (0: any number)."""

    id: str
    driver_name: str
    max_volumes: int

    @functools.cached_property
    def topology_key(self) -> str:
        """The key of the segment: a DNS prefix in lower case, at most 63 bytes, and a name."""
        prefix = f"topology.{self.driver_name.lower().replace('_', '-')}"
        if len(prefix) > _LONGEST_PREFIX:
            prefix = f"topology.{hashlib.sha256(self.driver_name.encode()).hexdigest()[:40]}"
        return f"{prefix}/node"

    @functools.cached_property
    def segments(self) -> dict[str, str]:
        """The topology of this node and of its volumes: one segment, as key and value."""
        return {self.topology_key: segment(self.id)}

    def lies_in(self, segments: Mapping[str, str]) -> bool:
        """Tell whether this node lies in the topology `segments`; the case of keys is ignored."""
        wanted = {key.lower(): value for key, value in segments.items()}
        return wanted in ({}, {key.lower(): value for key, value in self.segments.items()})

    def meets(self, topologies: Sequence[Mapping[str, str]] | None) -> bool:
        """Tell whether this node lies in one of `topologies` (TopologyRequirement), if any."""
        return not topologies or any(self.lies_in(segments) for segments in topologies)

    def require(self, topologies: Sequence[Mapping[str, str]] | None) -> None:
        """Raise `ResourceExhausted` unless this node `meets` a request's topologies."""
        if not self.meets(topologies):
            raise ResourceExhausted(
                f"accessibility_requirements name other nodes than {self.topology_key}="
                f"{segment(self.id)}; ask the driver on one of those"
            )
