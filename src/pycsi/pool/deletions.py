"""What was deleted from a pool while another pool was missing, so that a repeated call is told so.

An id does not say in which pool its volume or snapshot is. What no pool has may be in a pool that
is missing, and nobody may be told that it is gone; but what was found in this pool and deleted was
not in the missing one. That has to be known after a crash too, for the reply may not have been
sent (CSI specification, DeleteVolume: "This operation MUST be idempotent").
"""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

from pycsi.linux.record import RecordError, read_record, write_record

_LIFETIME = 24 * 3600.0
"""Seconds for which a deletion is remembered; an orchestrator asks again within minutes."""


class Deletions:
    """The deletions that are remembered, each in a file of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, kind: str, object_id: str, missing: Iterable[str]) -> None:
        """Remember, durably, what is about to be deleted while the pools `missing` are missing.

        Where the disk does not take that, a repeated call is refused, and no more.
        """
        names = sorted(missing)
        if names:
            self._expire()
            with contextlib.suppress(OSError):
                write_record(self._file(kind, object_id), {"missing": names})

    def vouches(self, kind: str, object_id: str, missing: Iterable[str]) -> bool:
        """Tell whether it was deleted here, and is in none of the pools `missing` therefore."""
        try:
            noted = read_record(self._file(kind, object_id))["missing"]
            return set(missing) <= set(noted)
        except (OSError, RecordError, KeyError, TypeError):
            return False

    def forget(self, pools: Iterable[str]) -> None:
        """Forget all that says something of `pools`: they are there now, and may be filled."""
        there = set(pools)
        for file in self._files():
            with contextlib.suppress(OSError):
                try:
                    stale = bool(there & set(read_record(file)["missing"]))
                except (RecordError, KeyError, TypeError):
                    stale = True
                if stale:
                    file.unlink(missing_ok=True)

    def _expire(self) -> None:
        for file in self._files():
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > _LIFETIME:
                    file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        try:
            return list(self._folder.iterdir())
        except OSError:
            return []

    def _file(self, kind: str, object_id: str) -> Path:
        return self._folder / f"{kind}.{object_id}.json"
