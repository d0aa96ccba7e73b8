"""The node on which the driver runs: its id and its topology segment."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

from pycsi.model import ids
from pycsi.model.errors import ResourceExhausted

_LONGEST_PREFIX = 63


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
        return {self.topology_key: ids.segment(self.id)}

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
                f"{ids.segment(self.id)}; ask the driver on one of those"
            )
