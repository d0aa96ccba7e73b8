"""Alerts and dashboard: valid, wired into the chart, and about metrics that there are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.rendered import EVERYTHING, objects, the
from metrics import promtool
from render import CHART, monitoring

ROOT = CHART.parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
RUNBOOKS = ROOT / "docs" / "runbooks"
ALERTS = CHART / "files" / "alerts.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"

SUFFIXES = ("_bucket", "_count", "_sum", "_total")
OF_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"}
"""Those that prometheus-client has for every process."""


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def queries() -> list[str]:
    """Return the dashboard's queries as Prometheus gets them, for a Grafana that shows all."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [
        re.sub(r"\$(driver|node|pool)", ".*", query.replace("$__rate_interval", "5m"))
        for query in found
    ]


def defined() -> set[str]:
    """Return the names of the metrics that the documentation has, which tests/rpc sees served."""
    page = (ROOT / "docs" / "monitoring.md").read_text()
    names = set()
    for row in re.findall(r"^\| (.+?) \|", page, re.MULTILINE):
        whole = re.findall(r"`((?:pycsi|csi_plugin)_\w+)`", row)
        names |= set(whole)
        for rest in re.findall(r"`(_\w+)`", row):
            names.add(re.sub(r"_[a-z]+(_bytes)$", "", whole[-1]) + rest)
    return {without_suffix(name) for name in names} | {
        without_suffix(name) for name in re.findall(r"`(pycsi_\w+)`", page)
    }


def without_suffix(name: str) -> str:
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def metrics_in(expression: str) -> set[str]:
    """Return the metrics that an expression is about."""
    plain = re.sub(r"\{[^}]*\}|\b(by|on|group_left) \([^)]*\)", "", expression)
    found = re.findall(r"\b((?:pycsi|csi|process)_\w+)", plain)
    return {without_suffix(name) for name in found}


@pytest.mark.parametrize("expression", [rule["expr"] for rule in rules()] + queries())
def test_metrics_that_there_are(expression: str) -> None:
    """An alert or a panel on a misspelt metric would never say anything."""
    assert metrics_in(expression)
    assert metrics_in(expression) <= defined() | OF_PROCESS


def test_alerts() -> None:
    """The rules are valid, and fire when they should."""
    promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", str(MONITORING / "alerts_test.yaml"))


def test_every_alert_is_tested() -> None:
    """Each alert fires in a test, and is silent in one."""
    cases = [
        case
        for test in yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in rules()}
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires} == names


def test_runbooks() -> None:
    """Each alert has a page of its name, listed with its severities; no page has no alert."""
    names = {rule["alert"] for rule in rules()}
    assert {page.stem for page in RUNBOOKS.glob("Pycsi*.md")} == names
    index = (RUNBOOKS / "README.md").read_text()
    listed = dict(re.findall(r"^\| \[(\w+)\]\(\w+\.md\) \| (.+?) \|", index, re.MULTILINE))
    for name in names:
        severities = [rule["labels"]["severity"] for rule in rules() if rule["alert"] == name]
        assert listed.pop(name) == ", ".join(severities)
        headings = re.findall("^#+ (.+)$", (RUNBOOKS / f"{name}.md").read_text(), re.MULTILINE)
        wanted = [name, "What happens meanwhile", "What to look at", "What to do"]
        assert [heading for heading in headings if heading in wanted] == wanted
    assert not listed


def test_drift() -> None:
    """What is for Prometheus and Grafana without the chart is what `make manifests` makes."""
    made = {
        path.name: path.read_text()
        for path in MONITORING.iterdir()
        if path.name != "alerts_test.yaml"
    }
    assert monitoring() == made


@pytest.mark.parametrize("url", ["", "https://example.org/runbooks/"])
def test_prometheus_rule(url: str) -> None:
    """It has the alerts as they are in the file, and where the runbooks are."""
    values = {"metrics": {"prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}}}}
    values["metrics"]["prometheusRule"]["runbookUrl"] = url
    made = the(objects(values), "PrometheusRule")
    assert made["metadata"]["labels"]["release"] == "prometheus"
    found = [rule for group in made["spec"]["groups"] for rule in group["rules"]]
    for rule in found:
        page = f"{rule['alert']}.md"
        key, place = ("runbook_url", url + page) if url else ("runbook", f"docs/runbooks/{page}")
        assert rule["annotations"].pop(key) == place
    assert found == rules()


def test_labels_of_a_controller() -> None:
    """Its samples keep the node that they are about, and are not said to be of its own node."""
    endpoints = the(objects(EVERYTHING), "PodMonitor")["spec"]["podMetricsEndpoints"]
    honoured = {each["port"] for each in endpoints if each.get("honorLabels")}
    assert honoured == {"metrics"}
    for each in endpoints:
        assert [rule["targetLabel"] for rule in each["relabelings"]] == ["node"]


def test_dashboard() -> None:
    """The chart hands it to Grafana as it is; all queries are valid, and no panel hides another."""
    made = the(objects(EVERYTHING), "ConfigMap", "-dashboard")
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(made["data"]["pycsi.json"]) == json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"]


def test_queries(tmp_path: Path) -> None:
    """Prometheus understands each of the dashboard's queries."""
    records = [{"record": f"query:{number}", "expr": each} for number, each in enumerate(queries())]
    rule_file = tmp_path / "queries.yaml"
    rule_file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    promtool("check", "rules", str(rule_file))
