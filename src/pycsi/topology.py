"""The node on which the driver runs, as orchestrators know it."""

import dataclasses

from pycsi import ids
from pycsi.proto import csi_pb2 as csi


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """The node's id, its topology segment, and how many volumes it takes (0: any number)."""

    id: str
    topology_key: str
    max_volumes: int

    @property
    def topology(self) -> csi.Topology:
        return csi.Topology(segments={self.topology_key: ids.segment(self.id)})

    def matches(self, topology: csi.Topology) -> bool:
        """Tell whether this node lies in `topology`; keys compare without regard to case."""
        wanted = {key.lower(): value for key, value in topology.segments.items()}
        return wanted in ({}, {self.topology_key.lower(): ids.segment(self.id)})
