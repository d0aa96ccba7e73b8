"""A build hook of Hatchling: writes into sdist and wheel from which commit they were built.

`pycsi version` shows what is in the file `commit` of the package (src/pycsi/cli/build.py). A wheel
that is built from an sdist takes that of the sdist; an editable installation asks its clone.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PLACES = {"sdist": "src/pycsi/commit", "wheel": "pycsi/commit"}


class CommitHook(BuildHookInterface):
    """Adds the file, where the commit is known."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Have the file included; `version` is that of the target, such as "editable"."""
        commit = _commit(Path(self.root))
        if commit is None or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "commit"
        file.write_text(f"{commit}\n")
        file.chmod(0o644)
        build_data["force_include"][str(file)] = _PLACES[self.target_name]

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was written for the build."""
        if folder := getattr(self, "_folder", None):
            folder.cleanup()


def _commit(root: Path) -> str | None:
    """Return the commit of the clone at `root`, with "-dirty" if it has changes; None: no clone."""
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None  # an sdist that was unpacked within a clone of something
        return _git(root, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
