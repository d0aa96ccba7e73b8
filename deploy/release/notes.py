"""Print what CHANGELOG.md says of a version, for its release: `notes.py 1.2.3`."""

import sys
from pathlib import Path

from changelog import Changelog

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print the section of the version that the one argument names."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        sys.exit("usage: notes.py VERSION")
    version = sys.argv[1].removeprefix("v")
    section = Changelog.read(ROOT / "CHANGELOG.md").section(version)
    if section is None or not section.entries:
        sys.exit(f"CHANGELOG.md: it has nothing of {version}")
    print(section.text)


if __name__ == "__main__":
    main()
