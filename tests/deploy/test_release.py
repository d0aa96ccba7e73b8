"""What `make release-check` says of clones that are consistent, and of broken ones."""

import datetime as dt
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pycsi import __version__

ROOT = Path(__file__).resolve().parents[2]
VERSION = "9.8.7"
TODAY = dt.datetime.now(dt.UTC).date()
CHANGES = f"""# Changelog

## [Unreleased]

## [{VERSION}] - {TODAY}

### Added

- Something.
- Another thing,
  in two lines.

## [9.8.6] - 2026-01-01

- An older thing.

[Unreleased]: https://example.org/pycsi/compare/v{VERSION}...HEAD
[{VERSION}]: https://example.org/pycsi/compare/v9.8.6...v{VERSION}
[9.8.6]: https://example.org/pycsi/releases/tag/v9.8.6
"""
MODULE = "src/pycsi/__init__.py"
CHART = "deploy/helm/pycsi/Chart.yaml"
PARTS = ("deploy", "docs", "README.md", MODULE)


def git(clone: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", "-C", clone, *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a clone of what the check looks at, of a version that can be released."""
    path = tmp_path / "clone"
    ignored = shutil.ignore_patterns("*.svg", "__pycache__")
    for part in PARTS:
        place = path / part
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, place, ignore=ignored)
        else:
            shutil.copy(ROOT / part, place)
    for place in path.rglob("*"):
        if place.is_file() and __version__ in (text := place.read_text()):
            place.write_text(text.replace(__version__, VERSION))
    (path / "CHANGELOG.md").write_text(CHANGES)
    git(path.parent, "init", "--quiet", "clone")
    commit(path)
    return path


def commit(clone: Path) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "all", "--allow-empty")


def checked(clone: Path, *arguments: str) -> list[str]:
    """Return what the check says of a clone, line by line; its exit status has to go with it."""
    program = ROOT / "deploy" / "release" / "check.py"
    done = subprocess.run(
        [sys.executable, program, "--root", clone, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    lines = done.stdout.splitlines()
    if done.returncode == 0:
        assert lines == ["nothing is inconsistent"]
        return []
    assert done.returncode == 1
    return lines


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_consistent(clone: Path) -> None:
    """A clone that can be released has nothing to be said of it, with its tag or before."""
    assert checked(clone) == []
    assert checked(clone, "--tag", f"v{VERSION}") == []
    git(clone, "tag", f"v{VERSION}")
    assert checked(clone, "--tag", f"v{VERSION}") == []


def in_changelog(old: str, new: str) -> Callable[[Path], None]:
    return lambda clone: replace(clone / "CHANGELOG.md", old, new)


@pytest.mark.parametrize(
    ("breaks", "place", "words"),
    [
        (
            lambda clone: replace(clone / MODULE, VERSION, "soon"),
            MODULE,
            ("found soon;", "1.2.3"),
        ),
        (
            lambda clone: replace(clone / CHART, f"\nversion: {VERSION}", "\nversion: 1.0.0"),
            f"{CHART}: version",
            ("found 1.0.0;", f"expected {VERSION}"),
        ),
        (
            lambda clone: replace(clone / CHART, f"appVersion: {VERSION}", "# none"),
            f"{CHART}: appVersion",
            ("found none;", f"expected {VERSION}"),
        ),
        (
            lambda clone: replace(
                clone / "docs/nomad.md", f"localhost/pycsi:{VERSION}", "localhost/pycsi:1.0.0"
            ),
            "docs/nomad.md:",
            ("found pycsi:1.0.0;", f"expected {VERSION}"),
        ),
        (
            lambda clone: replace(
                clone / "deploy/kubernetes/snapshot-class.yaml", f'"{VERSION}"', '"1.0.0"'
            ),
            "deploy/kubernetes/snapshot-class.yaml:",
            ("1.0.0", f"expected {VERSION}"),
        ),
        (
            lambda clone: replace(
                clone / "deploy/nomad/plugin.nomad.hcl", f"pycsi:{VERSION}", "pycsi:9.8.70"
            ),
            "deploy/nomad/plugin.nomad.hcl:",
            ("found pycsi:9.8.70;",),
        ),
        (
            lambda clone: replace(clone / "README.md", f"pycsi {VERSION} is", "pycsi 1.0.0 is"),
            "README.md:",
            ("1.0.0", f"expected {VERSION}"),
        ),
        (
            in_changelog("## [Unreleased]\n", "## [Unreleased]\n\n- One.\n- Two.\n"),
            "CHANGELOG.md",
            ("2 entries under Unreleased", "expected none"),
        ),
        (
            in_changelog("## [Unreleased]\n", ""),
            "CHANGELOG.md",
            (f"found {VERSION} first", "[Unreleased]"),
        ),
        (
            in_changelog(f" - {TODAY}", ""),
            f"CHANGELOG.md: {VERSION}",
            ("found no date", "expected"),
        ),
        (
            in_changelog(f" - {TODAY}", " - 31 January"),
            f"CHANGELOG.md: {VERSION}",
            ("found 31 January",),
        ),
        (
            in_changelog(f" - {TODAY}", " - 2999-01-01"),
            f"CHANGELOG.md: {VERSION}",
            ("found the date 2999-01-01",),
        ),
        (
            in_changelog("- Something.\n- Another thing,\n  in two lines.\n", ""),
            f"CHANGELOG.md: {VERSION}",
            ("found no entries",),
        ),
        (
            in_changelog(f"...v{VERSION}", "...v1.0.0"),
            "CHANGELOG.md",
            ("...v1.0.0", f"expected its end to be v{VERSION}"),
        ),
        (
            in_changelog(f"/compare/v{VERSION}...HEAD", "/compare/v9.8.6...HEAD"),
            "CHANGELOG.md",
            ("[Unreleased]", f"/compare/v{VERSION}...HEAD"),
        ),
        (
            in_changelog("[9.8.6]: https://example.org/pycsi/releases/tag/v9.8.6\n", ""),
            "CHANGELOG.md",
            ("no link of [9.8.6]",),
        ),
        (lambda clone: (clone / "CHANGELOG.md").unlink(), "CHANGELOG.md", ("found no text",)),
    ],
)
def test_inconsistent(
    clone: Path, breaks: Callable[[Path], None], place: str, words: tuple[str, ...]
) -> None:
    """One line says where, what was found and what is expected."""
    breaks(clone)
    commit(clone)
    (line,) = checked(clone)
    assert line.startswith(place)
    assert "expected" in line
    for word in words:
        assert word in line


def test_version_without_a_heading(clone: Path) -> None:
    """A version that was raised alone is told in each place that does not have it."""
    replace(clone / MODULE, VERSION, "10.0.0")
    commit(clone)
    found = checked(clone, "--tag", f"v{VERSION}")
    assert f"tag: found v{VERSION}; expected v10.0.0, as {MODULE} has it" in found
    assert "CHANGELOG.md: found no heading of 10.0.0; expected ## [10.0.0] - YYYY-MM-DD" in found
    named = {line.partition(":")[0] for line in found}
    assert {CHART, "README.md", "docs/kubernetes.md", "deploy/kubernetes/distributed.yaml"} < named


def test_older_version_is_released(clone: Path) -> None:
    """The version's section has to be the newest."""
    newer = f"## [Unreleased]\n\n## [9.9.0] - {TODAY}\n\n- B.\n"
    link = "[9.9.0]: https://example.org/pycsi/releases/tag/v9.9.0\n"
    (clone / "CHANGELOG.md").write_text(CHANGES.replace("## [Unreleased]\n", newer) + link)
    commit(clone)
    assert checked(clone) == [
        f"CHANGELOG.md: found 9.9.0 as the newest version; expected {VERSION}"
    ]


def test_dirty_tree(clone: Path) -> None:
    """Changes that are not in the commit are named, a few of them."""
    for number in range(6):
        (clone / f"{number}.txt").touch()
    assert checked(clone) == [
        "the tree: found changes of 0.txt, 1.txt, 2.txt, 3.txt and 2 more; expected none"
    ]


def test_tag_of_another_commit(clone: Path) -> None:
    git(clone, "tag", f"v{VERSION}")
    commit(clone)
    (line,) = checked(clone)
    assert line.startswith(f"tag v{VERSION}: found at ")


def test_no_clone(clone: Path) -> None:
    shutil.rmtree(clone / ".git")
    assert checked(clone) == ["the tree: found no clone of git; expected a clean clone"]


def test_nothing_there(tmp_path: Path) -> None:
    (line,) = checked(tmp_path)
    assert line.startswith(f"{MODULE}: found no __version__; expected")


def test_this_version() -> None:
    """Whatever else a release waits for, all places name the version that the package has."""
    found = checked(ROOT)
    waits = re.compile(r"CHANGELOG\.md: |the tree: |tag ")
    assert [line for line in found if not waits.match(line)] == []


def notes(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program that prints a version's notes, of the clone."""
    return subprocess.run(
        [sys.executable, clone / "deploy" / "release" / "notes.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("version", [VERSION, f"v{VERSION}"])
def test_notes(clone: Path, version: str) -> None:
    """The notes of a release are its section, without heading and links."""
    said = notes(clone, version)
    assert said.returncode == 0
    assert said.stdout == "### Added\n\n- Something.\n- Another thing,\n  in two lines.\n"


@pytest.mark.parametrize("arguments", [(), ("1.0.0",), ("Unreleased",)])
def test_no_notes(clone: Path, arguments: tuple[str, ...]) -> None:
    """There is no release without notes."""
    said = notes(clone, *arguments)
    assert said.returncode == 1
    assert len(said.stderr.splitlines()) == 1
