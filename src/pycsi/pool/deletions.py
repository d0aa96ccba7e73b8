"""Deletions from a pool while another pool was missing, so that a repeated call can succeed.

An id does not say in which pool its volume or snapshot is. An object that no open pool has may be
in a missing one, so its deletion must not be confirmed; but an object that was found and deleted in
this pool was not in the missing one. That has to be known after a crash too, for the reply may not
have been sent (CSI specification, DeleteVolume: "This operation MUST be idempotent").
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
        """Record, durably, that an object is about to be deleted while pools are `missing`.

        If the disk does not take the record, the only effect is that a repeated call is refused.
        """
        names = sorted(missing)
        if names:
            self._expire()
            with contextlib.suppress(OSError):
                write_record(self._file(kind, object_id), {"missing": names})

    def vouches(self, kind: str, object_id: str, missing: Iterable[str]) -> bool:
        """Tell whether an object was deleted here, and so is in none of the `missing` pools."""
        try:
            noted = read_record(self._file(kind, object_id))["missing"]
            return set(missing) <= set(noted)
        except (OSError, RecordError, KeyError, TypeError):
            return False

    def forget(self, pools: Iterable[str]) -> None:
        """Forget the deletions recorded while `pools` were missing: these are open again."""
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
