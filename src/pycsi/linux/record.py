"""Durable records: what is on disk when a function here has returned survives a power cut.

A record is a small JSON file with a `schema` number. It is written aside, synchronised, and renamed
over the old one, so a reader sees the old or the new one, never a part.

What is new is made in a directory of its own and published by one rename. Files are synchronised
before directories: the file's fsync(2) takes the journal's commit with it, so those that follow
find nothing left to write.
"""

import contextlib
import errno
import fcntl
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pycsi.linux.descriptor import (
    opened,
    read_file,
    read_whole,
    sync_directory,
)

SCHEMA = 2

_ENCODER = json.JSONEncoder(separators=(",", ":"))

_PAGE = 4096
"""Up to here a file is written whole: the kernel ends no process within a page."""


def _volumes_have_settings(data: dict[str, Any]) -> dict[str, Any]:
    """Bring a record to schema 2: volumes have settings, and may be filled from a source."""
    if "request" in data:
        data["request"] |= {"mutable": {}, "source": None}
        data["settings"] = {"onDelete": "delete"}
    return data


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _volumes_have_settings}
"""For each schema number before `SCHEMA`, the step that makes a record of the next one."""


class RecordError(Exception):
    """A record cannot be read: damaged, or written by a newer version."""


def encoded(data: Mapping[str, Any]) -> bytes:
    """Return a record as it is written."""
    return _ENCODER.encode({"schema": SCHEMA, **data}).encode()


def write_record(path: Path, data: Mapping[str, Any]) -> None:
    """Write a record, replacing what was there."""
    _write_aside(path, encoded(data), durable=True)
    sync_directory(path.parent)


def write_new_record(path: Path | str, data: Mapping[str, Any]) -> None:
    """Write a record of what is being made, where nobody looks for it yet.

    Its name is not durable before its directory is synchronised.
    """
    _write(path, encoded(data), os.O_EXCL, durable=True)


def write_unsynchronised(path: Path | str, text: bytes) -> None:
    """Write an encoded record like `rewrite_record` does, where there is none yet."""
    _write(path, text, os.O_EXCL, durable=False)


def rewrite_record(path: Path | str, data: Mapping[str, Any]) -> None:
    """Replace a record that shall survive the end of this process, but not a power cut.

    That is enough for what describes mounts, which a power cut ends too. A short one is written
    over the old one: that makes, renames and deletes no file. Of a long one a reader, or who is
    killed, could leave or find a part, so it is written aside while there is room for that.
    """
    text = encoded(data)
    with contextlib.suppress(FileNotFoundError):
        if _write_over(path, text, longest=_PAGE):
            return
    try:
        _write_aside(path, text, durable=False)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        # There may be room for it in the blocks of the old one.
        try:
            _write_over(path, text)
        except FileNotFoundError:
            raise error from None


def _write_aside(path: Path | str, text: bytes, *, durable: bool) -> None:
    folder, name = os.path.split(path)
    aside = Path(folder, f".{name}.new")
    try:
        _write(aside, text, os.O_TRUNC, durable=durable)
        aside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def _write(path: Path | str, text: bytes, flag: int, *, durable: bool) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT | flag) as fd:
        left = memoryview(text)
        while left:
            left = left[os.write(fd, left) :]
        if durable:
            os.fsync(fd)


def _write_over(path: Path | str, text: bytes, longest: int = sys.maxsize) -> bool:
    """Write over what a file holds; return False where either is longer than `longest` bytes."""
    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        old = read_whole(fd)
        if max(len(old), len(text)) > longest:
            return False
        # One call, with spaces over what is left of a longer old text: never a mixture, but where
        # there is room for a part only.
        new = text.ljust(len(old))
        if os.pwrite(fd, new, 0) < len(new):
            os.pwrite(fd, old, 0)
            os.ftruncate(fd, len(old))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
    return True


def read_record(path: Path | str) -> dict[str, Any]:
    """Read a record and bring it to today's schema; `FileNotFoundError` where there is none."""
    return _parsed(path, read_file(path))


def read_rewritten(path: Path | str) -> dict[str, Any]:
    """Do the same for one that `rewrite_record` may be writing just now."""
    with opened(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)
        text = read_whole(fd)
    return _parsed(path, text)


def _parsed(path: Path | str, text: bytes) -> dict[str, Any]:
    try:
        data = json.loads(text.decode())
        schema = data.pop("schema")
        while schema < SCHEMA:
            data = MIGRATIONS[schema](data)
            schema += 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    if schema > SCHEMA:
        raise RecordError(f"{path} has schema {schema}, newer than this version's {SCHEMA}")
    return dict(data)


def rename_durably(building: Path | str, place: Path | str) -> None:
    """Rename a directory to its final name, durably; where that fails it has its old one again."""
    os.rename(building, place)
    try:
        sync_directory(os.path.dirname(place))
        sync_directory(os.path.dirname(building))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # somebody has taken it already
            os.rename(place, building)
        raise
