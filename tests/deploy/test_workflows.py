"""The workflows of continuous integration and releases, as far as they can be checked here."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(path.name for path in FOLDER.iterdir())
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


def steps(name: str) -> Iterator[dict[str, Any]]:
    for job in workflow(name)["jobs"].values():
        yield from job.get("steps", ())


def test_both_are_there() -> None:
    assert WORKFLOWS == ["ci.yaml", "release.yaml"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned(name: str) -> None:
    """Each action is of a commit, with its version beside it, or of this repository."""
    lines = [line for line in (FOLDER / name).read_text().splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.search(r"uses: (?:\./\S+|[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$", line)


def test_actions_are_the_same() -> None:
    """An action is of one version in all places."""
    text = "".join((FOLDER / name).read_text() for name in WORKFLOWS)
    found = set(re.findall(r"uses: ([\w-]+/[\w./-]+)@(\w+)", text))
    assert len(found) == len({action for action, _ in found})


@pytest.mark.parametrize("name", WORKFLOWS)
def test_scripts_are_not_put_together(name: str) -> None:
    """What others can choose, as a tag or a branch, gets into scripts as a variable only."""
    for step in steps(name):
        assert "${{" not in step.get("run", "")
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_permissions() -> None:
    """A job may do what it is for, and no workflow may do anything else."""
    assert workflow("ci.yaml")["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow("ci.yaml")["jobs"].values())
    release = workflow("release.yaml")
    assert release["permissions"] == {}
    writing = {
        name: {key for key, value in job["permissions"].items() if value == "write"}
        for name, job in release["jobs"].items()
    }
    assert {name: found for name, found in writing.items() if found} == {
        "pypi": {"id-token"},
        "image": {"packages", "id-token", "attestations"},
        "chart": {"packages"},
        "release": {"contents"},
    }
    assert release["jobs"]["pypi"]["environment"]["name"] == "pypi"


def test_nothing_is_released_untested() -> None:
    """Whatever is published waits for the check of the tag, and for all that CI runs."""
    jobs = workflow("release.yaml")["jobs"]
    assert jobs["test"]["uses"] == "./.github/workflows/ci.yaml"

    def before(name: str) -> set[str]:
        needed = jobs[name].get("needs", [])
        direct = {needed} if isinstance(needed, str) else set(needed)
        return direct.union(*(before(other) for other in direct))

    for name in ("pypi", "image", "chart", "release"):
        assert {"check", "test"} <= before(name)


def test_ci_runs_what_make_has() -> None:
    """Every command but the installation of tools is one of make's targets."""
    ran = [step["run"] for step in steps("ci.yaml") if "run" in step]
    made = [match[1] for line in ran if (match := re.search(r"\bmake ([a-z-]+)$", line))]
    installs = [line for line in ran if line.startswith("go install ")]
    assert len(made) + len(installs) == len(ran)
    assert set(made) <= TARGETS
    assert {"lint", "demo", "test", "test-reliability", "test-vm", "dist", "image", "kind"} == {
        *made
    }
    assert all(re.search(r"@v\d+\.\d+\.\d+$", line) for line in installs)


def test_versions_of_kubernetes() -> None:
    """The demos run on two of them, each an image that cannot change."""
    nodes = workflow("ci.yaml")["jobs"]["kind"]["strategy"]["matrix"]["node"]
    images = [
        re.fullmatch(r"kindest/node:v(1\.\d+)\.\d+@sha256:[0-9a-f]{64}", item) for item in nodes
    ]
    assert [image[1] for image in images if image] == ["1.36", "1.37"]


def test_actionlint() -> None:
    """The linter of workflows has nothing to say."""
    if shutil.which("actionlint") is None:
        pytest.skip("needs actionlint, which no package index has: see docs/development.md")
    done = subprocess.run(["actionlint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
