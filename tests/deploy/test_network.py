"""Who may reach whom, where the chart's network policies are on."""

from typing import Any

import pytest
from deploy.rendered import LATEST, MANY, VALUES, Manifest, objects, pod_of, the, workloads


def policy_of(made: list[Manifest], workload: Manifest) -> Manifest:
    """Return the one NetworkPolicy that selects a workload's pods."""
    labels = workload["spec"]["template"]["metadata"]["labels"]
    (found,) = (
        item["spec"]
        for item in made
        if item["kind"] == "NetworkPolicy"
        and item["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    )
    policy: Manifest = found
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    return policy


def ports_of(rules: list[Manifest]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


@pytest.mark.parametrize("values", [LATEST, MANY], ids=["latest", "many"])
def test_network_policy(values: dict[str, Any]) -> None:
    """Every pod has one, and metrics, changed blocks and the controller are the only ways in."""
    made = objects(values)
    for workload in workloads(made):
        listening = {
            port["containerPort"]
            for container in pod_of(workload)["containers"]
            for port in container.get("ports", [])
            if port["name"] not in {"healthz", "registration"}
        }
        assert ports_of(policy_of(made, workload)["ingress"]) == listening


def test_network_policy_of_many_nodes() -> None:
    """Only the controller reaches the nodes' port, and they reach nobody."""
    made = objects(MANY)
    daemons, controller = the(made, "DaemonSet"), the(made, "Deployment", "pycsi-controller")
    node = policy_of(made, daemons)
    assert ports_of(node["egress"]) == {14317, 53, 5353}
    (rule,) = (rule for rule in node["ingress"] if 9810 in ports_of([rule]))
    assert ports_of([rule]) == {9810}
    (source,) = rule["from"]
    assert source.keys() == {"podSelector"}
    assert source["podSelector"] == controller["spec"]["selector"]

    egress = policy_of(made, controller)["egress"]
    (to_nodes,) = (rule for rule in egress if 9810 in ports_of([rule]))
    assert to_nodes["to"] == [{"podSelector": daemons["spec"]["selector"]}]
    others = [rule for rule in egress if rule is not to_nodes]
    assert ports_of(others) == {443, 6443, 14317, 53, 5353}


@pytest.mark.parametrize(
    ("endpoint", "port"), [("http://collector:14317", 14317), ("https://[::1]", 4317)]
)
def test_network_policy_of_traces(endpoint: str, port: int) -> None:
    """The receiver of traces is reached where there is one, and nobody else but DNS."""
    values: dict[str, Any] = {"networkPolicy": {"enabled": True}}
    made = objects(values)
    assert policy_of(made, the(made, "DaemonSet"))["egress"] == []
    made = objects({**values, "tracing": {"endpoint": endpoint}})
    for workload in workloads(made):
        assert {port, 53, 5353} <= ports_of(policy_of(made, workload)["egress"])


def test_network_policy_without_metrics() -> None:
    """What is switched off is not let in."""
    values = VALUES["changed-blocks"]
    made = objects(values)
    wanted = {"DaemonSet": {9810}, "Deployment": {50051}}
    for workload in workloads(made):
        assert ports_of(policy_of(made, workload)["ingress"]) == wanted[workload["kind"]]
    single = objects(
        {"mode": "single-node", "networkPolicy": {"enabled": True}, "metrics": {"enabled": False}}
    )
    assert policy_of(single, the(single, "DaemonSet"))["ingress"] == []
