"""File descriptors that are closed with the `with` block that uses them."""

import contextlib
import os
from collections.abc import Iterator

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
"""The flags to open a directory itself, not what a link points to."""


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close `fd` at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, at: int | None = None
) -> Iterator[int]:
    """Open `path`, relative to the directory descriptor `at` if that is given (open(2)).

    A file that is made belongs to its owner alone. No program inherits the descriptor.
    """
    with closing(os.open(path, flags | os.O_CLOEXEC, 0o600, dir_fd=at)) as fd:
        yield fd
