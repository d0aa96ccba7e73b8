"""Nodes whose names cannot be topology values, so that digests stand for them."""

import pytest
from cluster import Cluster
from routing.conftest import ODD_NAME, create, segments
from rpc.conftest import request


@pytest.mark.parametrize("number", range(4))
def test_repeated(three: Cluster, number: int) -> None:
    """A volume on such a node is found there if it is asked for again without a topology."""
    name = f"odd-{number}"
    made = three.nodes[ODD_NAME].controller.CreateVolume(request(name)).volume.volume_id
    assert made == f"{name}@{segments(three)[ODD_NAME]}"
    assert create(three.controller, name) == made
