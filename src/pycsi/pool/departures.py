"""Marks of volumes that move to another node.

A mark is a record in the directory of the volume, and stays there when the volume has left: then
the directory is `leaving/ID`, and what is there is no volume any more.
"""

import dataclasses
import hashlib
import os
from pathlib import Path

from pycsi.linux.descriptor import sync_directory
from pycsi.linux.record import read_record, write_record
from pycsi.model.errors import FailedPrecondition

_RECORD = "departure.json"

SNAPSHOT = "movesTo"
"""The parameter of a snapshot that is taken for a move; its value is the topology segment."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A volume goes to `node`, a topology segment. Each marking has another `attempt`."""

    node: str
    attempt: str

    @property
    def point(self) -> str:
        """The name of the volume's content, which does not change as long as it is marked."""
        return hashlib.sha256(f"departure\n{self.attempt}".encode()).hexdigest()


def departure_of(place: Path | str) -> Departure | None:
    """Return the mark of the volume in a directory; None without one."""
    try:
        data = read_record(f"{place}/{_RECORD}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Departure(node=data["node"], attempt=data["attempt"])


def mark(place: str, node: str) -> Departure:
    """Mark the volume in a directory, durably, as one that goes to `node`."""
    made = Departure(node=node, attempt=os.urandom(16).hex())
    write_record(Path(place, _RECORD), dataclasses.asdict(made))
    return made


def unmark(place: Path | str) -> None:
    """Delete the mark of the volume in a directory, durably; none is fine."""
    Path(place, _RECORD).unlink(missing_ok=True)
    sync_directory(place)


def refuse_departing(place: str, volume_id: str) -> None:
    """Raise `FailedPrecondition` if the volume in a directory is marked."""
    if found := departure_of(place):
        raise FailedPrecondition(
            f"volume {volume_id} is moving to node {found.node}; end that: pycsi move {volume_id} "
            f"--to-node {found.node}; or give it up: the same with --cancel"
        )
