"""Say what is inconsistent before a release: `make release-check [TAG=v1.2.3]`.

Each line names a place, what was found there and what is expected; all are told at once. The exit
status is 1 if there are any. It needs nothing but Python and git.
"""

import argparse
import datetime as dt
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from changelog import UNRELEASED, Changelog, Section

ROOT = Path(__file__).resolve().parents[2]

MODULE = "src/pycsi/__init__.py"
CHANGELOG = "CHANGELOG.md"
CHART = "deploy/helm/pycsi/Chart.yaml"

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_MENTIONS = re.compile(
    r"""\bpycsi:(?P<image>\d+\.\d+\.\d+[\w.-]*)"""
    r"""|\bapp\.kubernetes\.io/version:\ "(?P<label>[^"]+)"
        |\bpycsi\ (?P<said>\d+\.\d+\.\d+[\w.-]*)\ is\ installed""",
    re.VERBOSE,
)
"""Where texts name the version: an image's tag, a label of a manifest, and what Helm prints."""

_TEXTS = ("README.md", "docs/*.md", "deploy/**/*.md", "deploy/**/*.yaml", "deploy/**/*.hcl")
_SHOWN = 4


def problems(root: Path, tag: str | None) -> Iterator[str]:
    """Yield what is inconsistent in a clone; `tag` is the one to be released, if it is known."""
    found = re.search(r'^__version__ = "(.*)"$', _read(root / MODULE), re.MULTILINE)
    version = found[1] if found else ""
    if not _VERSION.fullmatch(version):
        yield f'{MODULE}: found {version or "no __version__"}; expected a version such as "1.2.3"'
        return
    if tag is not None and tag != f"v{version}":
        yield f"tag: found {tag}; expected v{version}, as {MODULE} has it"
    yield from _changelog(root, version)
    yield from _chart(root, version)
    yield from _mentions(root, version)
    yield from _clone(root, f"v{version}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _changelog(root: Path, version: str) -> Iterator[str]:
    try:
        changelog = Changelog.read(root / CHANGELOG)
    except (OSError, UnicodeDecodeError):
        yield f"{CHANGELOG}: found no text; expected a heading for each version"
        return
    names = [section.name for section in changelog.sections]
    if names[:1] != [UNRELEASED]:
        first = names[0] if names else "no heading"
        yield f"{CHANGELOG}: found {first} first; expected ## [{UNRELEASED}]"
    unreleased, section = changelog.section(UNRELEASED), changelog.section(version)
    if unreleased and unreleased.entries:
        yield (
            f"{CHANGELOG}: found {unreleased.entries} entries under {UNRELEASED}; expected none: "
            f"they belong under {version}"
        )
    if section is None:
        yield f"{CHANGELOG}: found no heading of {version}; expected ## [{version}] - YYYY-MM-DD"
    else:
        newest = next(name for name in names if name != UNRELEASED)
        if newest != version:
            yield f"{CHANGELOG}: found {newest} as the newest version; expected {version}"
        yield from _section(section)
    yield from _links(changelog, version)


def _section(section: Section) -> Iterator[str]:
    here = f"{CHANGELOG}: {section.name}"
    if not section.entries:
        yield f"{here}: found no entries; expected what has changed"
    try:
        date = dt.date.fromisoformat(section.date)
    except ValueError:
        yield f"{here}: found {section.date or 'no date'}; expected its date, as in 2027-01-31"
        return
    today = dt.datetime.now(dt.UTC).date()
    if date > today:
        yield f"{here}: found the date {date}; expected {today} or before"


def _links(changelog: Changelog, version: str) -> Iterator[str]:
    """Yield what is wrong with the links below the last section, one for each heading."""
    wanted = {UNRELEASED: f"/compare/v{version}...HEAD"}
    wanted |= {item.name: f"v{item.name}" for item in changelog.sections if item.name not in wanted}
    for name, end in wanted.items():
        target = changelog.links.get(name)
        if target is None:
            yield f"{CHANGELOG}: found no link of [{name}]; expected [{name}]: https://…{end}"
        elif not target.endswith(end):
            yield f"{CHANGELOG}: found [{name}]: {target}; expected its end to be {end}"


def _chart(root: Path, version: str) -> Iterator[str]:
    text = _read(root / CHART)
    for key in ("version", "appVersion"):
        found = re.search(rf'^{key}: "?([^"\s]+)"?$', text, re.MULTILINE)
        if found is None or found[1] != version:
            yield f"{CHART}: {key}: found {found[1] if found else 'none'}; expected {version}"


def _mentions(root: Path, version: str) -> Iterator[str]:
    places = sorted({path for pattern in _TEXTS for path in root.glob(pattern)})
    for path in places:
        for number, line in enumerate(_read(path).splitlines(), 1):
            for match in _MENTIONS.finditer(line):
                named = match["image"] or match["label"] or match["said"]
                if named != version:
                    place = path.relative_to(root)
                    yield f"{place}:{number}: found {match[0]}; expected {version} there"


def _clone(root: Path, tag: str) -> Iterator[str]:
    """Yield what keeps a release from being that of a commit: changes, or a tag of another one."""
    status = _git(root, "status", "--porcelain")
    if status is None:
        yield "the tree: found no clone of git; expected a clean clone"
        return
    if changed := [line[3:] for line in status.splitlines()]:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        yield f"the tree: found changes of {', '.join(changed[:_SHOWN])}{more}; expected none"
    head = _git(root, "rev-parse", "HEAD")
    tagged = _git(root, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}")
    if tagged and tagged != head:
        yield f"tag {tag}: found at {tagged[:12]}; expected at HEAD, which is {(head or '')[:12]}"


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git says, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.rstrip()


def main() -> None:
    """Print the problems; exit with 1 if there are any."""
    parser = argparse.ArgumentParser(description="Say what is inconsistent before a release.")
    parser.add_argument(
        "--tag",
        default=os.environ.get("TAG"),
        help="the tag that is to be released, such as v1.2.3; by default the variable TAG",
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the clone to look at")
    given = parser.parse_args()
    found = [*problems(given.root, given.tag or None)]
    for line in found:
        print(line)
    if found:
        sys.exit(1)
    print("nothing is inconsistent")


if __name__ == "__main__":
    main()
