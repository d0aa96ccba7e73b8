"""Copy the chart for a release: `chart.py REPOSITORY FOLDER [SOURCE]`.

In the clone the chart names an image that `make image` builds. What is released names the one that
was pushed to REPOSITORY, and tells Artifact Hub of it, of what has changed and, if it is given,
where the source is.
"""

import re
import shutil
import sys
from pathlib import Path

from changelog import Changelog

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "pycsi"

_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9.:-]*(?:/[a-z0-9][a-z0-9._-]*)+")
_SOURCE = re.compile(r"(?:https://[\w./-]+)?", re.ASCII)
_LOCAL = re.compile(r"(?:^  #.*\n)+^  repository: localhost/pycsi$", re.MULTILINE)


def make(repository: str, folder: Path, source: str) -> None:
    """Write the chart to `folder`, which is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CHART, folder)
    values = folder / "values.yaml"
    text, found = _LOCAL.subn(f"  repository: {repository}", values.read_text(encoding="utf-8"))
    if found != 1:
        sys.exit(f"{values}: found no localhost/pycsi, with its comment; expected it once")
    values.write_text(text, encoding="utf-8")
    about = folder / "Chart.yaml"
    written = about.read_text(encoding="utf-8")
    version = re.search(r"^appVersion: (\S+)$", written, re.MULTILINE)
    if version is None:
        sys.exit(f"{about}: found no appVersion; expected it")
    image = f"    - name: pycsi\n      image: {repository}:{version[1]}\n"
    image += "      platforms: [linux/amd64, linux/arm64]\n"
    changes = _changes(version[1])
    annotations = f"  artifacthub.io/images: |\n{image}"
    if changes:
        annotations += f"  artifacthub.io/changes: |\n{changes}"
    if source:
        annotations += f"home: {source}\nsources: [{source}]\n"
    about.write_text(written.rstrip("\n") + f"\n{annotations}", encoding="utf-8")


def _changes(version: str) -> str:
    """Return what has changed in a version, as Artifact Hub reads it; "" if nothing is said."""
    section = Changelog.read(ROOT / "CHANGELOG.md").section(version)
    lines, kind = [], "changed"
    for line in section.text.splitlines() if section else []:
        if line.startswith("### "):
            kind = line.removeprefix("### ").lower()  # Artifact Hub's are those of the headings
        elif line.startswith("- "):
            lines.append(f"    - kind: {kind}\n      description: >-\n        {line[2:]}")
        elif line.strip() and lines:
            lines[-1] += f"\n        {line.strip()}"
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Write the chart, as the arguments say."""
    repository, folder, source = (*sys.argv[1:], "", "", "")[:3]
    if not _REPOSITORY.fullmatch(repository) or not folder or not _SOURCE.fullmatch(source):
        sys.exit(
            "usage: chart.py REPOSITORY FOLDER [SOURCE], with a REPOSITORY such as "
            "ghcr.io/me/pycsi, and a SOURCE such as https://github.com/me/pycsi"
        )
    make(repository, Path(folder), source)


if __name__ == "__main__":
    main()
