"""Durable records: what is on disk when a function here has returned survives a power cut.

A record is a small JSON file with a `schema` number. It is written aside, synchronised, and renamed
over the old one, so a reader sees the old or the new one, never a part.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pycsi.linux.descriptor import opened, sync_directory

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


def write_record(path: Path, data: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write a record, replacing what was there.

    Without `durable` it survives the end of this process but not a power cut: enough for what
    describes mounts, which a power cut ends too.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump({"schema": SCHEMA, **data}, file, separators=(",", ":"))
            if durable:
                file.flush()
                os.fsync(fd)
        aside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    if durable:
        sync_directory(path.parent)


def overwrite_record(path: Path, data: Mapping[str, Any]) -> None:
    """Write a record into the file that is there, which needs no new block while it is small.

    For full disks: after a power cut the record may be damaged.
    """
    text = json.dumps({"schema": SCHEMA, **data}, separators=(",", ":")).encode()
    with opened(path, os.O_WRONLY) as fd:
        # One call, with spaces over what is left of a longer old text: never a mixture.
        os.pwrite(fd, text.ljust(os.fstat(fd).st_size), 0)
        os.ftruncate(fd, len(text))


def read_record(path: Path) -> dict[str, Any]:
    """Read a record and bring it to today's schema; `FileNotFoundError` where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
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
