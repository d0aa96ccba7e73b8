"""Durable records: what is on disk when a function here has returned survives a power cut.

A record is a small JSON file with a `schema` number. It is written aside, synchronised, and renamed
over the old one, so a reader sees the old or the new one, never a part.

What is new is made in a directory of its own and published by one rename. Files are synchronised
before directories: the file's fsync(2) takes the journal's commit with it, so those that follow
find nothing left to write.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pycsi.linux.descriptor import opened, read_file, sync_directory

SCHEMA = 2


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


def _text(data: Mapping[str, Any]) -> bytes:
    return json.dumps({"schema": SCHEMA, **data}, separators=(",", ":")).encode()


def write_record(path: Path, data: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write a record, replacing what was there.

    Without `durable` it survives the end of this process but not a power cut: enough for what
    describes mounts, which a power cut ends too.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        _write(aside, data, os.O_TRUNC, durable=durable)
        aside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    if durable:
        sync_directory(path.parent)


def write_new_record(path: Path, data: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write a record of what is being made, where nobody looks for it yet.

    Its name is not durable before its directory is synchronised.
    """
    _write(path, data, os.O_EXCL, durable=durable)


def _write(path: Path, data: Mapping[str, Any], flag: int, *, durable: bool) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT | flag) as fd:
        left = memoryview(_text(data))
        while left:
            left = left[os.write(fd, left) :]
        if durable:
            os.fsync(fd)


def overwrite_record(path: Path, data: Mapping[str, Any]) -> None:
    """Write a record into the file that is there, which needs no new block while it is small.

    For full disks: after a power cut the record may be damaged.
    """
    text = _text(data)
    with opened(path, os.O_WRONLY) as fd:
        # One call, with spaces over what is left of a longer old text: never a mixture.
        os.pwrite(fd, text.ljust(os.fstat(fd).st_size), 0)
        os.ftruncate(fd, len(text))


def read_record(path: Path) -> dict[str, Any]:
    """Read a record and bring it to today's schema; `FileNotFoundError` where there is none."""
    try:
        data = json.loads(read_file(path))
        schema = data.pop("schema")
        while schema < SCHEMA:
            data = MIGRATIONS[schema](data)
            schema += 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    if schema > SCHEMA:
        raise RecordError(f"{path} has schema {schema}, newer than this version's {SCHEMA}")
    return dict(data)


def publish(building: Path, place: Path) -> None:
    """Rename a directory to its final name, durably; where that fails it has its old one again."""
    building.rename(place)
    try:
        sync_directory(place.parent)
        sync_directory(building.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # somebody has taken it already
            place.rename(building)
        raise
