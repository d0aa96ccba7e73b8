"""What a controller tells Prometheus, and whoever probes it."""

import datetime as dt
from pathlib import Path

from cluster import cluster, controller, free_port
from metrics import get, promtool, scrape
from routing.conftest import create, ending, requirement
from rpc.conftest import wait_for

from pycsi.proto import csi_pb2 as csi


def test_controller(tmp_path: Path) -> None:
    """It tells which nodes it reaches, how they answer, and when its certificates end."""
    port = free_port()
    options = (f"--metrics-address=127.0.0.1:{port}",)
    (tmp_path / "another").mkdir()
    with (
        cluster(tmp_path, "a", "b") as running,
        controller(tmp_path / "another", running.tls, running.nodes, options) as driver,
    ):
        on_a = requirement(preferred=("a",))
        assert create(driver, "v", accessibility_requirements=on_a) == "v@a"
        ending(lambda: driver.delete("none@b"))
        ending(lambda: driver.condition("none@b"))
        wait_for(lambda: scrape(port)("pycsi_nodes_up") == 2, 60)
        found = scrape(port)
        count = "pycsi_node_operations_seconds_count"
        assert found("pycsi_node_up", node="a") == 1
        assert found(count, node="a", grpc_status_code="OK") == 1
        assert found(count, node="b", grpc_status_code="OK") == 1
        assert found(count, node="b", grpc_status_code="NotFound") == 1
        assert found("pycsi_node_operations_in_flight", node="b") == 0
        served = "csi_plugin_operations_seconds_count"
        method = "/csi.v1.Controller/CreateVolume"
        assert found(served, method_name=method, grpc_status_code="OK") == 1
        for file in ("ca.crt", "tls.crt"):
            end = found("pycsi_certificate_expiry_timestamp_seconds", file=file)
            assert end is not None
            assert end > dt.datetime.now(dt.UTC).timestamp() + dt.timedelta(days=1).total_seconds()
        assert found("pycsi_build_info", mode="controller") == 1
        promtool("check", "metrics", given=found.text)
        assert get(port, "/readyz") == (200, "ok\n")
        for node in running.nodes.values():
            node.stop()
        ending(lambda: driver.controller.ListVolumes(csi.ListVolumesRequest()))
        wait_for(lambda: scrape(port)("pycsi_nodes_up") == 0, 60)
        found = scrape(port)
        assert found("pycsi_node_up", node="a") == 0
        assert get(port, "/readyz") == (503, "no node is reached\n")
        assert get(port, "/healthz") == (200, "ok\n")
