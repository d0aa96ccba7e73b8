"""What happened to a volume, as far as its records tell it, in the words of the driver's log.

The log has each call; the records have the latest of those that leave a mark.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from pycsi.backends import Backend
from pycsi.cli.inspection import InspectedPool
from pycsi.cli.rows import time_of
from pycsi.linux.descriptor import read_file
from pycsi.model.records import Volume
from pycsi.pool.layout import ATTACHMENT_RECORD, NOTES_RECORD, VOLUME_RECORD, never_noted

_SOON = 2.0
"""Seconds after its creation within which the record of a volume is still the first."""

_TRIMMED = "trimmed"
_FAILED_GROWTH = "growth.failed"


def of(seen: InspectedPool, volume: Volume, backend: Backend) -> Iterator[dict[str, Any]]:
    """Yield what happened, the oldest first: the time, the log's word, and what belongs to it."""
    events = sorted(_events(seen, volume, backend.where), key=lambda event: event[0])
    for when, word, detail in events:
        yield {"time": time_of(when), "event": word, "detail": detail}


def _events(
    seen: InspectedPool, volume: Volume, where: str
) -> Iterator[tuple[float, str, str | None]]:
    source = volume.request.source
    word = "NodePublishVolume" if volume.handle else "CreateVolume"
    yield volume.created, word, f"from {source}" if source else None
    for snapshot in seen.snapshots:
        if snapshot.volume.id == volume.id:
            group = f"of group {snapshot.group}" if snapshot.group else ""
            yield snapshot.created, "CreateSnapshot", f"{snapshot.id} {group}".rstrip()
    changed = _changed(f"{where}/{VOLUME_RECORD}")
    if changed and changed > volume.created + _SOON:
        yield changed, "its record was replaced", "ControllerExpandVolume, ControllerModifyVolume"
    if volume.attachment and (when := _changed(f"{where}/{ATTACHMENT_RECORD}")):
        yield when, "ControllerPublishVolume", volume.attachment.node
    yield from _on_node(where)


def _on_node(where: str) -> Iterator[tuple[float, str, str | None]]:
    when = _changed(f"{where}/{NOTES_RECORD}")
    with contextlib.suppress(OSError):
        if when and not never_noted(where):
            yield (
                when,
                "its notes were written",
                "NodeStageVolume, NodePublishVolume, or undone",
            )
    if when := _changed(f"{where}/{_TRIMMED}"):
        yield when, "trimmed", None
    failed = f"{where}/{_FAILED_GROWTH}"
    if when := _changed(failed):
        reason = os.fsdecode(read_file(failed)).strip()
        yield when, "a filesystem cannot grow", reason


def _changed(path: str) -> float | None:
    """Return when a file was written last, in seconds since the epoch; None without the file."""
    with contextlib.suppress(OSError):
        return os.lstat(path).st_mtime
    return None
