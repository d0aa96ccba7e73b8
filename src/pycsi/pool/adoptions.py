"""Adoptions: data that others have left on the node, and that becomes a volume: `pycsi adopt`.

A volume is adopted in a directory of its own, `adoptions/ID`, which no start sweeps: it may hold
the only copy of somebody's data. An adoption has three steps.

1. `begin`: the directory has the volume's record, and one that says where the data is: durably.
2. The data gets its name in the directory, durably: by one rename of the old directory or file, or
   of a complete copy.
3. `complete`: the directory is renamed to its place among the volumes. The volume exists.

So the data is in its old place, or the adoption is past its second step, and `settle` makes it a
volume: at the next start of a driver, or when the command is repeated. The adoption's record stays
beside the volume's until it is finished, and until then it can be undone, in the opposite order.
"""

import contextlib
import dataclasses
import enum
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import structlog

from pycsi.backends.directory import Directory
from pycsi.backends.image import Image
from pycsi.backends.limits import Former
from pycsi.linux.descriptor import exists, sync_directory
from pycsi.linux.record import explained, read_record, rename_durably, write_record
from pycsi.linux.tree import remove
from pycsi.model.ids import node_of
from pycsi.model.records import Volume, VolumeType
from pycsi.pool.catalog import UNREADABLE
from pycsi.pool.layout import VOLUME_RECORD, Layout, write_new_volume, write_volume
from pycsi.pool.trash import reaping_place

log = structlog.get_logger()

_RECORD = "adoption.json"
_LOCK = "lock"
_CONTENT = (Directory.NAME, Image.NAME)
_PART = ".part"


class Way(enum.StrEnum):
    """How the data becomes the volume's."""

    MOVE = "move"
    """The old directory or file itself, renamed."""
    COPY = "copy"
    """A copy, by reflinks where the filesystem has them; the old one stays as it was."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """Where a volume comes from, and what is needed to give it back.

    `source` is the old path, without symbolic links, `inode` what it had there, and `layout` whose
    volume it was. `size` is that of an image file in bytes, None for a directory. `former` is the
    directory's project id. Once there is a `part`, a copy has its limit, and one that was cut off
    is gone on with. While `undoing`, nothing completes the adoption any more.
    """

    source: str
    inode: int
    layout: str
    way: Way
    size: int | None = None
    former: Former = dataclasses.field(default_factory=Former)
    part: bool = False
    undoing: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        fields = dict(data)
        return cls(way=Way(fields.pop("way")), former=Former(**fields.pop("former")), **fields)


@dataclasses.dataclass(frozen=True, slots=True)
class Begun:
    """An adoption that is under way, or was cut off, in the directory `place`."""

    place: str
    volume: Volume
    adoption: Adoption

    @property
    def content(self) -> Path:
        """The path of the data once it is in."""
        return Path(self.place, content_name(self.volume))

    @property
    def part(self) -> Path:
        """The path of a copy that is not complete yet."""
        return Path(self.place, f"{content_name(self.volume)}{_PART}")

    @property
    def has_data(self) -> bool:
        return os.path.lexists(self.content)


def content_name(volume: Volume) -> str:
    """Return the name of a volume's data within its directory."""
    return Directory.NAME if volume.type is VolumeType.DIRECTORY else Image.NAME


def adoption_of(place: str | Path) -> Adoption | None:
    """Return the record of the adoption of the volume in a directory; None if there is none.

    A record that cannot be read counts as none.
    """
    with contextlib.suppress(*UNREADABLE):
        return Adoption.from_json(read_record(f"{place}/{_RECORD}"))
    return None


def was_never_recorded(place: Path) -> bool:
    """Tell whether a directory is that of an adoption which was killed before it had a record.

    Then the data is in its old place, as it was.
    """
    try:
        names = os.listdir(place)
    except (NotADirectoryError, FileNotFoundError):
        return False
    there = {_RECORD, *_CONTENT, *(f"{name}{_PART}" for name in _CONTENT)}
    return node_of(place.name) is not None and there.isdisjoint(names)


def write_adoption(place: str | Path, adoption: Adoption) -> None:
    """Write the record of an adoption into a volume's directory, durably."""
    write_record(Path(place, _RECORD), dataclasses.asdict(adoption))


def forget_adoption(place: str | Path) -> None:
    """Delete the record of an adoption, durably: then it cannot be undone any more."""
    Path(place, _RECORD).unlink(missing_ok=True)
    sync_directory(place)


class Adoptions:
    """The adoptions that are under way in a pool, or were cut off.

    `held` are the bytes of the pool that are promised to them.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.folder = layout.adoptions
        self.held = 0
        layout.changes.follow(self.look)

    @property
    def lock(self) -> Path:
        """The file that a command locks while it adopts, undoes or finishes."""
        return self.folder / _LOCK

    def look(self) -> bool:
        """Read the adoptions; return False if that fails."""
        try:
            self.held = sum(begun.volume.capacity for begun in self)
        except OSError:  # the pool's disk is away
            return False
        return True

    def __iter__(self) -> Iterator[Begun]:
        """Yield the adoptions whose records can be read."""
        names = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
        for name in names:
            if name != _LOCK and (begun := self.get(name)):
                yield begun

    def get(self, volume_id: str) -> Begun | None:
        """Return the adoption of the volume with an id; None without one that can be read."""
        place = f"{self.folder}/{volume_id}"
        adoption = adoption_of(place)
        if adoption is None:
            return None
        try:
            volume = Volume.from_json(read_record(f"{place}/{VOLUME_RECORD}"))
        except UNREADABLE as error:
            log.warning("a record cannot be read", path=place, error=explained(error))
            return None
        return Begun(place, volume, adoption)

    def unrecorded(self) -> Iterator[Path]:
        """Yield what is in `adoptions/` besides the lock, and is no adoption that can be read."""
        names = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
        for name in names:
            if name != _LOCK and self.get(name) is None:
                yield self.folder / name

    def sweep(self) -> None:
        """Delete what adoptions have left that were killed before they were recorded.

        Callers hold the lock.
        """
        for place in self.unrecorded():
            if was_never_recorded(place):
                remove(place)

    def begin(self, volume: Volume, adoption: Adoption) -> Begun:
        """Record, durably, that a volume is about to be made of what others have left.

        What an earlier attempt has left is replaced; it must not have any data.
        """
        place = f"{self.folder}/{volume.id}"
        if self.get(volume.id):
            write_volume(place, volume)
            write_adoption(place, adoption)
        else:
            for name in _CONTENT:
                if os.path.lexists(f"{place}/{name}"):
                    raise _exists(place, "its record cannot be read, and it has data")
            remove(Path(place))
            os.mkdir(place, 0o700)
            write_new_volume(place, volume)
            write_adoption(place, adoption)
        sync_directory(self.folder)
        self._layout.changes.announce()
        return Begun(place, volume, adoption)

    def complete(self, begun: Begun) -> None:
        """Make the adopted data a volume, durably. It is fine if another process has done so.

        `FileExistsError` if a volume of its id is there already.
        """
        place = self._layout.volumes / begun.volume.id
        if begun.volume.type is VolumeType.IMAGE:
            _extend(begun)
        try:
            _rename_to_new(begun.place, place)
        except FileNotFoundError:
            if not exists(place):
                raise
        self._layout.changes.announce()

    def withdraw(self, volume: Volume, adoption: Adoption) -> Begun:
        """Take an adopted volume out of the volumes, durably, to undo its adoption."""
        place = f"{self.folder}/{volume.id}"
        undoing = dataclasses.replace(adoption, undoing=True)
        write_adoption(self._layout.volumes / volume.id, undoing)
        _rename_to_new(self._layout.volumes / volume.id, Path(place))
        self._layout.changes.announce()
        return Begun(place, volume, undoing)

    def drop(self, begun: Begun) -> None:
        """Delete what is left of an adoption that has no data, in full or in part."""
        if begun.has_data or os.path.lexists(begun.part):
            raise _exists(begun.place, "it still has data")
        # In one step, so that a kill leaves no records in part; the trash is freed in any case.
        place = reaping_place(self._layout, begun.volume.id)
        rename_durably(begun.place, place)
        remove(place)
        self._layout.changes.announce()

    def settle(self) -> None:
        """Complete the adoptions that were cut off after their second step."""
        for begun in self:
            if begun.has_data and not begun.adoption.undoing:
                try:
                    self.complete(begun)
                except OSError as error:
                    log.warning("cannot be adopted now", path=begun.place, error=error.strerror)
                else:
                    log.info("adopted, after a crash", volume=begun.volume.id)


def _extend(begun: Begun) -> None:
    """Give an image the volume's size: its own, rounded up, or that of its claim."""
    with contextlib.suppress(FileNotFoundError):  # another process completes it
        if begun.content.stat().st_size < begun.volume.capacity:
            os.truncate(begun.content, begun.volume.capacity)
            with open(begun.content, "rb") as file:
                os.fsync(file.fileno())


def _rename_to_new(path: str | Path, place: Path) -> None:
    """Rename a directory durably to a place where nothing is; `FileExistsError` otherwise."""
    if os.path.lexists(place):
        raise _exists(str(place), os.strerror(errno.EEXIST))
    rename_durably(path, place)


def _exists(place: str, reason: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, reason, place)
