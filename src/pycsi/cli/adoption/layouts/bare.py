"""A directory or an image file of nobody's layout, such as a hostPath: the path is the volume."""

from collections.abc import Iterator
from pathlib import Path

from pycsi.cli.adoption.candidates import Candidate

NAME = "bare"


def recognises(path: Path) -> bool:
    """Tell whether a path is a file: a directory could as well hold volumes of its own."""
    return path.is_file()


def read(path: Path) -> Iterator[Candidate]:
    yield Candidate(path=str(path), name=path.name, layout=NAME)
