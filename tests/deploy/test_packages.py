"""What a release consists of: wheel, sdist and the packed chart."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import needs
from deploy.rendered import helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "release" / "chart.py"
REPOSITORY = "registry.example.org/somebody/pycsi"


def run(*command: str | Path, at: Path = ROOT, path: Path | None = None) -> str:
    variables = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        command, cwd=at, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone of what is here, as one commit."""
    built = all(importlib.util.find_spec(name) for name in ("build", "hatchling"))
    needs("build and hatchling, of the development dependencies", met=built)
    path = tmp_path_factory.mktemp("clone")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes((ROOT / name).read_bytes())
    run("git", "init", "--quiet", at=path)
    run("git", "add", "--all", at=path)
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    run("git", *who, "commit", "--quiet", "--message", "all", at=path)
    return path


def built(source: Path, folder: Path, *what: str) -> list[Path]:
    """Build from `source` what is asked for, and return the files."""
    run(sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", folder, at=source)
    return sorted(folder.iterdir())


def commit_of(wheel: Path, folder: Path) -> str | None:
    """Return the commit that `pycsi version` of an installed wheel shows."""
    shutil.unpack_archive(wheel, folder, "zip")
    shown = json.loads(
        run(sys.executable, "-m", "pycsi", "version", "-o", "json", at=folder, path=folder)
    )
    commit: str | None = shown["commit"]
    return commit


def test_commit(clone: Path, tmp_path: Path) -> None:
    """A wheel tells of which commit it is: from a clone, and by way of an sdist."""
    head = run("git", "rev-parse", "HEAD", at=clone).strip()
    (direct,) = built(clone, tmp_path / "wheel", "--wheel")
    assert commit_of(direct, tmp_path / "direct") == head
    (sdist,) = built(clone, tmp_path / "sdist", "--sdist")
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    # What it was unpacked in may be a clone of something else.
    run("git", "init", "--quiet", at=tmp_path)
    (indirect,) = built(source, tmp_path / "second", "--wheel")
    assert commit_of(indirect, tmp_path / "indirect") == head
    assert run("git", "status", "--porcelain", at=clone) == ""


def test_commit_with_changes(clone: Path, tmp_path: Path) -> None:
    """What is not of a commit is not said to be."""
    changed = clone / "README.md"
    before = changed.read_text()
    changed.write_text(before + "\n")
    try:
        (wheel,) = built(clone, tmp_path / "wheel", "--wheel")
    finally:
        changed.write_text(before)
    head = run("git", "rev-parse", "HEAD", at=clone).strip()
    assert commit_of(wheel, tmp_path / "installed") == f"{head}-dirty"


def test_commit_that_is_not_known(clone: Path, tmp_path: Path) -> None:
    """Sources without a clone can be built, and tell no commit."""
    source = tmp_path / "source"
    archive = tmp_path / "source.tar"
    run("git", "archive", "--output", archive, "HEAD", at=clone)
    shutil.unpack_archive(archive, source, filter="data")
    (wheel,) = built(source, tmp_path / "wheel", "--wheel")
    assert commit_of(wheel, tmp_path / "installed") is None


def test_chart(tmp_path: Path) -> None:
    """The chart of a release has the image that was pushed, and Artifact Hub is told of it."""
    place = tmp_path / "pycsi"
    run(sys.executable, CHART, REPOSITORY, place, "https://example.org/pycsi")
    about = yaml.safe_load((place / "Chart.yaml").read_text())
    image = f"{REPOSITORY}:{about['appVersion']}"
    (named,) = yaml.safe_load(about["annotations"]["artifacthub.io/images"])
    assert named["image"] == image
    assert about["annotations"]["artifacthub.io/category"] == "storage"
    assert about["sources"] == ["https://example.org/pycsi"]
    changes = yaml.safe_load(about["annotations"].get("artifacthub.io/changes", "[]"))
    assert {change["kind"] for change in changes} <= {"added", "changed", "fixed", "removed"}
    text = (place / "values.yaml").read_text()
    assert "localhost" not in text
    packed = Path(helm.package(place, destination=tmp_path))
    assert packed.name == f"pycsi-{about['version']}.tgz"
    with helm.Chart.load_archive(packed.read_bytes()) as chart:
        rendered = chart.render({})
    assert f"image: {image}\n" in "".join(rendered.values())


@pytest.mark.parametrize("repository", ["", "pycsi", "Registry/Pycsi", "a/b\nc: d", "$(id)/x"])
def test_chart_of_no_repository(tmp_path: Path, repository: str) -> None:
    done = subprocess.run(
        [sys.executable, CHART, repository, tmp_path / "pycsi"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "REPOSITORY such as" in done.stderr
    assert not (tmp_path / "pycsi").exists()
