"""The names that volumes have on the disk."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""A pattern for the UUID of an object of Kubernetes, as in the names of its volumes."""


def directories(path: Path) -> list[Path]:
    """Return the directories in a directory, without symbolic links; none if it is none."""
    try:
        with os.scandir(path) as entries:
            found = [path / item.name for item in entries if item.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


def named(path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield the directories in a directory whose names match a pattern, each with the match."""
    for folder in directories(path):
        if match := pattern.fullmatch(folder.name):
            yield folder, match


def is_name(text: object) -> bool:
    """Tell whether a text that others have written is one file name, and no way out of there."""
    return isinstance(text, str) and text not in {"", ".", ".."} and not {"/", "\0"} & {*text}
