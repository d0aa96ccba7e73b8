"""Where things lie in a pool, and how its records are read."""

import time
import uuid
from pathlib import Path

import structlog

from pycsi.model import Volume
from pycsi.store import RecordError, read_record, write_record

log = structlog.get_logger()

_POOL_RECORD = "pool.json"
_VOLUME_RECORD = "volume.json"
NOTES_RECORD = "node.json"
_HARMLESS = frozenset({"lost+found", f".{_POOL_RECORD}.new"})


class Layout:
    """The paths in the pool at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / _POOL_RECORD
        self.volumes = root / "volumes"
        self.tmp = root / "tmp"
        self.trash = root / "trash"

    def read_uuid(self) -> str:
        """Return the pool's UUID from its record."""
        try:
            return str(uuid.UUID(read_record(self.record)["uuid"]))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise RecordError(f"{self.record} is damaged: {error}") from None

    def read_or_make_uuid(self) -> str:
        """Return the pool's UUID; an empty directory becomes a pool now."""
        try:
            return self.read_uuid()
        except FileNotFoundError:
            pass
        for entry in list(self.root.iterdir()):
            if entry.name not in _HARMLESS:
                raise RecordError(
                    f"{self.root} is neither a pool nor empty (it holds {entry.name!r}); give an "
                    "empty directory, or the pool's own disk"
                )
        made = str(uuid.uuid4())
        write_record(self.record, {"uuid": made, "created": time.time()})
        return made

    def read_volumes(self) -> tuple[dict[str, Volume], dict[str, str]]:
        """Return all volumes by id, and by id why the others' records cannot be read.

        A volume whose record is damaged, or of a newer version, is left as it is.
        """
        volumes: dict[str, Volume] = {}
        unreadable: dict[str, str] = {}
        for place in sorted(self.volumes.iterdir()):
            try:
                volume = Volume.from_json(read_record(place / _VOLUME_RECORD))
                if volume.id != place.name:
                    raise RecordError(f"it is that of {volume.id}")
                volumes[volume.id] = volume
            except (RecordError, OSError, TypeError, KeyError, ValueError) as error:
                unreadable[place.name] = f"its record cannot be read ({error})"
                log.warning("a volume's record cannot be read", id=place.name, error=str(error))
        return volumes, unreadable


def read_project(place: Path) -> int | None:
    """Return the project id in the record of the volume at `place`; None where there is none."""
    try:
        return Volume.from_json(read_record(place / _VOLUME_RECORD)).project
    except (RecordError, OSError, TypeError, KeyError, ValueError):
        return None


def write_new_volume(place: Path, volume: Volume) -> None:
    """Write the records of a volume that is being made; the notes' file is there from the start."""
    write_record(place / NOTES_RECORD, {"staged": {}, "published": {}}, durable=False)
    write_volume(place, volume)


def write_volume(place: Path, volume: Volume) -> None:
    """Write a volume's record into its directory, durably."""
    write_record(place / _VOLUME_RECORD, volume.to_json())
