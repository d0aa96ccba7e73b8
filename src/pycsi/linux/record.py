"""Records: small JSON files that survive a power cut, unless a function says otherwise.

A record has a `schema` number. It is written to a temporary file, synchronised, and renamed over
the old one, so a reader sees either the old or the new record, never a part.

A new object is built in its own directory and committed by one rename. Files are synchronised
before directories: the fsync(2) of a file also commits the filesystem's journal, so the following
ones find nothing left to write.
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
    NO_ROOM,
    opened,
    read_file,
    read_whole,
    sync_directory,
)

SCHEMA = 2

_PAGE = 4096
"""Records up to this size are overwritten whole: the kernel kills no process within a page."""


def _volumes_have_settings(data: dict[str, Any]) -> dict[str, Any]:
    """Convert a record to schema 2, in which volumes have settings and may have a source."""
    if "request" in data:
        data["request"] |= {"mutable": {}, "source": None}
        data["settings"] = {"onDelete": "delete"}
    return data


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _volumes_have_settings}
"""For each schema number below `SCHEMA`, the function that converts a record to the next."""


class RecordError(Exception):
    """A record cannot be read: it is damaged, or was written by a newer version."""


def fields_of(item: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name; `encoded` does that to dataclasses among them."""
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=fields_of)


def encoded(data: Mapping[str, Any]) -> bytes:
    """Return the bytes of a record, including the schema number."""
    return _ENCODER.encode({"schema": SCHEMA, **data}).encode()


def write_record(path: Path, data: Mapping[str, Any]) -> None:
    """Write a record durably; an existing one is replaced atomically."""
    _write_aside(path, encoded(data), durable=True)
    sync_directory(path.parent)


def write_file(path: Path | str, text: bytes, *, durable: bool, existing: int = os.O_EXCL) -> None:
    """Write an encoded record to a new file.

    If it is `durable`, its content is; its name is not until the caller synchronises the directory.
    `FileExistsError` if the file exists, unless `existing` is O_TRUNC, which empties it.
    """
    with opened(path, os.O_WRONLY | os.O_CREAT | existing) as fd:
        left = memoryview(text)
        while left:
            left = left[os.write(fd, left) :]
        if durable:
            os.fsync(fd)


def rewrite_record(path: Path | str, data: Mapping[str, Any]) -> None:
    """Replace a record that must survive the end of this process, but not a power cut.

    That is enough for records of mounts, which a power cut ends too. A short record is written over
    the old one, without creating, renaming or deleting a file. A long one could be read, or left by
    a killed process, in part; so it is written to a temporary file as long as there is room.
    """
    text = encoded(data)
    with contextlib.suppress(FileNotFoundError):
        if _write_over(path, text, longest=_PAGE):
            return
    try:
        _write_aside(path, text, durable=False)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        # The blocks of the old record may have room for the new one.
        try:
            _write_over(path, text)
        except FileNotFoundError:
            raise error from None


def _write_aside(path: Path | str, text: bytes, *, durable: bool) -> None:
    folder, name = os.path.split(path)
    aside = Path(folder, f".{name}.new")
    try:
        write_file(aside, text, durable=durable, existing=os.O_TRUNC)
        aside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def _write_over(path: Path | str, text: bytes, longest: int = sys.maxsize) -> bool:
    """Overwrite a file's content; return False if the old or new one is over `longest` bytes."""
    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        old = read_whole(fd)
        if max(len(old), len(text)) > longest:
            return False
        # One call, padded with spaces to the length of the old text, so that no mixture is left. A
        # partial write, for lack of room, is undone.
        new = text.ljust(len(old))
        if os.pwrite(fd, new, 0) < len(new):
            os.pwrite(fd, old, 0)
            os.ftruncate(fd, len(old))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
    return True


def explained(error: Exception) -> str:
    """Return for a person what kept a record from being read."""
    reason = "it has a value of a kind that no record has"
    match error:
        case RecordError():
            reason = str(error)
        case OSError(strerror=str() as why):
            reason = f"{error.filename}: {why}" if error.filename else why
        case json.JSONDecodeError(lineno=line, colno=column):
            reason = f"it is no JSON at line {line}, column {column}"
        case UnicodeDecodeError(start=position):
            reason = f"it is no text at byte {position}"
        case KeyError(args=(str() as key,)):
            reason = f"it has no {key}"
    return reason


def read_record(path: Path | str) -> dict[str, Any]:
    """Return a record, converted to the current schema.

    `FileNotFoundError` if there is none, `RecordError` if it is damaged or from a newer version.
    """
    return _parsed(path, read_file(path))


def read_rewritten(path: Path | str) -> dict[str, Any]:
    """Return a record that `rewrite_record` may be writing now; the errors are `read_record`'s."""
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
        raise RecordError(f"{path} is damaged: {explained(error)}") from error
    if schema > SCHEMA:
        raise RecordError(f"{path} has schema {schema}, newer than this version's {SCHEMA}")
    return dict(data)


def rename_durably(building: Path | str, place: Path | str) -> None:
    """Rename a directory durably to its final name; if that fails, it gets its old name back."""
    os.rename(building, place)
    try:
        sync_directory(os.path.dirname(place))
        sync_directory(os.path.dirname(building))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # another process has moved it already
            os.rename(place, building)
        raise
