"""The metrics of a driver in mode controller: which nodes it reaches."""

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pycsi.model.errors import Unavailable
from pycsi.routing.nodes import Nodes


class NodeCollector(Collector):
    """The nodes that a controller has found, and whether they answer."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def collect(self) -> Iterable[GaugeMetricFamily]:
        up = GaugeMetricFamily(
            "pycsi_node_up", "1 if the controller reaches the node, otherwise 0.", labels=["node"]
        )
        found = self._nodes.up
        for segment, is_up in found.items():
            up.add_metric([segment], is_up)
        number = GaugeMetricFamily(
            "pycsi_nodes_up", "Number of nodes that the controller reaches.", sum(found.values())
        )
        return [up, number]

    def check(self) -> None:
        """Raise `Unavailable` if no node is reached: then nothing can be forwarded."""
        if not any(self._nodes.up.values()):
            raise Unavailable("no node is reached")
