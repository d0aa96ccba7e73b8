"""Moves of volumes between pools: copies that arrive in one pool, and originals that leave another.

A volume has the same id in both, and is in one of them at any time. A move has these steps.

1. `arriving/ID` in the new pool: it has the volume's record, that of the move, and data that is
   being copied. It is no volume, and no start sweeps it, so that a move that was cut off goes on.
2. The copy is complete, was compared, and is durable. The original is renamed from `volumes/ID` to
   `leaving/ID`, durably: from then on the copy is the volume.
3. The copy is renamed from `arriving/ID` to `volumes/ID`.
4. The original goes to the trash of its pool.

Whoever finds an original in `leaving/` takes the steps that are left: see `volumes/handover.py`.
While a volume is in use, what its image was when it was copied is kept in `leaving/.ID`, so that
what has changed since is found by its extents.

A volume that moves to another node arrives there likewise, under its new id, and its original
leaves with a mark (`departures.py`); exchange.proto has the steps. The record of the move stays in
the directory of the new volume, and tells whoever asks again where that is from.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import structlog

from pycsi.backends.image import Image
from pycsi.linux.descriptor import exists
from pycsi.linux.fence import Fence
from pycsi.linux.record import explained, read_record, write_record
from pycsi.linux.tree import remove
from pycsi.model.records import Volume
from pycsi.pool.catalog import UNREADABLE
from pycsi.pool.departures import Departure, departure_of
from pycsi.pool.layout import VOLUME_RECORD, Layout

log = structlog.get_logger()

_RECORD = "move.json"
_KEPT = "."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """How far a copy is. `source` is the UUID of the original's pool, `created` when that was made.

    If it is `prepared`, the copy has all that had not changed when it was made; of a directory,
    what has changed since is told by `fence`.

    `origin` is the original's id on another node; None if it is on this one. From there, the copy
    is at the `point`, "" for none; or on its way from that one to the point `toward`, "" if it is
    not. If it is `complete`, it may become the volume.
    """

    source: str
    created: float
    prepared: bool = False
    fence: Fence | None = None
    origin: str | None = None
    point: str = ""
    toward: str = ""
    complete: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        fields = dict(data)
        fence = fields.pop("fence")
        return cls(fence=Fence.from_json(fence) if fence else None, **fields)


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """A copy that is being made in the directory `place`; `volume` is what it will be."""

    place: str
    volume: Volume
    move: Move


class Moves:
    """The copies that arrive in a pool, and the originals that leave it.

    `held` are the bytes of the pool that are promised to the copies, and those of kept images.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.held = 0
        layout.changes.follow(self.look)

    def look(self) -> bool:
        """Read the moves; return False if that fails."""
        try:
            kept = sum(map(_blocks, self._layout.leaving.glob(f".*/{Image.NAME}")))
            self.held = kept + sum(arrival.volume.held for arrival in self)
        except OSError:  # the pool's disk is away
            return False
        return True

    def arriving(self, volume_id: str) -> str:
        """Return the path of a copy that arrives."""
        return f"{self._layout.arriving}/{volume_id}"

    def leaving(self, volume_id: str) -> str:
        """Return the path of an original that leaves."""
        return f"{self._layout.leaving}/{volume_id}"

    def kept(self, volume_id: str) -> str:
        """Return the path of the directory with what an image was when it was copied."""
        return f"{self._layout.leaving}/{_KEPT}{volume_id}"

    def forget_kept(self, volume_id: str) -> None:
        """Delete what was kept of an image; absent is fine."""
        remove(Path(self.kept(volume_id)))
        self.look()

    def __iter__(self) -> Iterator[Arrival]:
        """Yield the arrivals whose records can be read."""
        folder = self._layout.arriving
        for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
            if arrival := self.get(name):
                yield arrival

    def get(self, volume_id: str) -> Arrival | None:
        """Return the copy of a volume that arrives; None without one that can be read."""
        place = self.arriving(volume_id)
        if not exists(place):
            return None
        try:
            volume = Volume.from_json(read_record(f"{place}/{VOLUME_RECORD}"))
            return Arrival(place, volume, self.read(place))
        except UNREADABLE as error:
            log.warning("a record cannot be read", path=place, error=explained(error))
            return None

    def left(self) -> list[str]:
        """Return the ids of the volumes whose originals leave for another pool of this node."""
        names = [name for name in self._leaving() if not name.startswith(_KEPT)]
        return [name for name in names if not self.departed(name)]

    def all_departed(self) -> dict[str, Departure]:
        """Return the marks of the volumes that have left for another node, by their ids."""
        marks = ((name, self.departed(name)) for name in self._leaving())
        return {name: mark for name, mark in marks if mark}

    def departed(self, volume_id: str) -> Departure | None:
        """Return the mark of a volume that has left for another node; None if it has not."""
        return departure_of(self.leaving(volume_id))

    def kept_ids(self) -> list[str]:
        """Return the ids of the volumes of which an earlier image is kept."""
        return [name[1:] for name in self._leaving() if name.startswith(_KEPT)]

    def _leaving(self) -> list[str]:
        folder = self._layout.leaving
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    @staticmethod
    def read(place: str) -> Move:
        """Return the record of a move from the directory of a copy, or of a volume that was one.

        `FileNotFoundError` if there is none, or another one of `UNREADABLE`.
        """
        return Move.from_json(read_record(f"{place}/{_RECORD}"))

    @staticmethod
    def write(place: str, move: Move) -> None:
        """Write the record of a move into the directory of its copy, durably."""
        write_record(Path(place, _RECORD), dataclasses.asdict(move))

    @staticmethod
    def end(place: str) -> None:
        """Delete the record of a move from the directory of a volume that has arrived."""
        Path(place, _RECORD).unlink(missing_ok=True)


def _blocks(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_blocks * 512
    return 0
