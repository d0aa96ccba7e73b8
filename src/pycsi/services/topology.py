"""The node on which the driver runs, as orchestrators know it."""

import dataclasses
import functools
import hashlib

from pycsi.model import ids
from pycsi.proto import csi_pb2 as csi

_LONGEST_PREFIX = 63


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """The node's id, its topology segment, and how many volumes it takes (0: any number)."""

    id: str
    driver_name: str
    max_volumes: int

    @functools.cached_property
    def topology_key(self) -> str:
        """The key: a DNS prefix in lower case, at most 63 bytes, and a name."""
        prefix = f"topology.{self.driver_name.lower().replace('_', '-')}"
        if len(prefix) > _LONGEST_PREFIX:
            prefix = f"topology.{hashlib.sha256(self.driver_name.encode()).hexdigest()[:40]}"
        return f"{prefix}/node"

    @functools.cached_property
    def topology(self) -> csi.Topology:
        return csi.Topology(segments={self.topology_key: ids.segment(self.id)})

    def matches(self, topology: csi.Topology) -> bool:
        """Tell whether this node lies in `topology`; keys compare without regard to case."""
        wanted = {key.lower(): value for key, value in topology.segments.items()}
        return wanted in ({}, {self.topology_key.lower(): ids.segment(self.id)})
