"""The commands that are shown and run elsewhere: make's targets, the scripts, the demos."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import needs
from deploy.rendered import VERSIONS, values_of
from kubernetes_validate import validate

import pycsi

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DEMOS = DEPLOY / "demos"
SCRIPTS = (
    DEMOS / "run.sh",
    DEPLOY / "kind" / "kind.sh",
    DEPLOY / "kubernetes" / "tls-secrets.sh",
)
NAMES = (
    "01-pvc-pod",
    "02-snapshot",
    "03-restore",
    "04-clone",
    "05-expand",
    "06-block",
    "07-inline",
    "08-generic-ephemeral",
    "09-rwop",
    "10-capacity",
    "11-statefulset",
    "12-user-namespace",
    "13-attributes-class",
    "14-group-snapshot",
    "15-group-restore",
    "16-restore-elsewhere",
    "17-changed-blocks",
)

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def shell(*words: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **variables}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


# The scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script(script: Path) -> None:
    """It is a program that bash can read; where there is a shellcheck, that has nothing to say."""
    assert os.access(script, os.X_OK)
    assert shell("bash", "-n", script).stderr == ""
    if shutil.which("shellcheck"):
        assert shell("shellcheck", script).stdout == ""


def test_steps_of_kind() -> None:
    """Without a step the script says which there are; each one is a target of make."""
    done = shell(DEPLOY / "kind/kind.sh")
    assert done.returncode == 2
    steps = re.search(r"kind\.sh ([a-z|]+)", done.stdout)
    assert steps
    for step in steps[1].split("|"):
        assert f"kind-{'image' if step == 'load' else step}" in TARGETS


def test_missing_program(tmp_path: Path) -> None:
    """A step names the program that it lacks."""
    (tmp_path / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "/usr/bin/dirname")
    done = shell(tmp_path / "bash", DEPLOY / "kind/kind.sh", "cluster", PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == "kind is not on PATH: install it first\n"


@pytest.mark.parametrize("mode", ["single-node", "distributed"])
def test_kind_configuration(mode: str) -> None:
    config = values_of(DEPLOY / "kind" / f"{mode}.yaml")
    assert (config["kind"], config["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    nodes = [node["role"] for node in config["nodes"]]
    assert nodes == ["control-plane"] + ["worker"] * (2 if mode == "distributed" else 0)


# The demos


def demo(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEMOS / f"{name}.yaml").read_text()))


def test_demos() -> None:
    """Each has a manifest and an assertion, and no manifest has none."""
    assert tuple(sorted(path.stem for path in DEMOS.glob("*.yaml"))) == NAMES
    functions = re.findall(r"^demo_(\w+)\(\)", (DEMOS / "run.sh").read_text(), re.MULTILINE)
    assert tuple(name.replace("_", "-") for name in functions) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_demo_is_valid(name: str) -> None:
    """Every Kubernetes takes it, and all pods but those with a device are confined."""
    for manifest in demo(name):
        if "apiVersion" not in manifest:
            assert manifest == {"spec": {"resources": {"requests": {"storage": "160Mi"}}}}
            continue
        if not manifest["kind"].endswith("Snapshot"):
            for version in VERSIONS:
                validate(manifest, f"{version[0]}.{version[1]}", strict=True)
        spec = manifest.get("spec", {}).get("template", manifest).get("spec", {})
        containers = spec.get("containers", [])
        if any("volumeDevices" in container for container in containers):
            continue
        if containers:
            security = spec["securityContext"]
            assert security["runAsNonRoot"] is True
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_devices() -> None:
    """Only two demos have pods that are not confined, for they show devices."""
    with_devices = {
        name for name in NAMES if "volumeDevices" in (DEMOS / f"{name}.yaml").read_text()
    }
    assert with_devices == {"06-block", "17-changed-blocks"}


@pytest.mark.parametrize("name", ["14-group-snapshot", "17-changed-blocks"])
def test_steps_of_demos(name: str) -> None:
    """What is applied step by step, by label, is all that the manifest has."""
    script = (DEMOS / "run.sh").read_text()
    steps = set(re.findall(rf"apply {name} (\w+)", script))
    steps |= {"backup"} if "pycsi-demo=backup" in script and name.startswith("17") else set()
    assert {manifest["metadata"]["labels"]["pycsi-demo"] for manifest in demo(name)} == steps


def test_demo_that_there_is_not(tmp_path: Path) -> None:
    """Nothing is made on the cluster when a demo's name is wrong."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\ncase "$*" in *create*|*apply*) exit 9;; *) echo pycsi;; esac\n')
    kubectl.chmod(0o755)
    done = shell(DEMOS / "run.sh", "99", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert "no demo 99" in done.stdout


def test_image_names() -> None:
    """Chart, Nomad and make mean one image."""
    needs("make", met=shutil.which("make") is not None)
    said = shell("make", "--directory", ROOT, "--dry-run", "image", "CONTAINER_TOOL=docker").stdout
    name = f"localhost/pycsi:{pycsi.__version__}"
    assert f"--tag {name}" in said
    chart = values_of(DEPLOY / "helm/pycsi/values.yaml")
    assert f"{chart['image']['repository']}:{pycsi.__version__}" == name
    assert name in (DEPLOY / "nomad/plugin.nomad.hcl").read_text()
