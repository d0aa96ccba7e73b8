"""Undoing adoptions, and finishing them. Callers hold the pool's lock of `Adoptions`."""

import dataclasses
import os
from pathlib import Path

from pycsi.cli.adoption.carrying import Carrier, explained, refuse_users
from pycsi.cli.errors import CommandError, UnknownNameError
from pycsi.linux import filesystem, tree
from pycsi.linux.descriptor import opened, sync_directory
from pycsi.linux.record import rename_durably
from pycsi.model.records import Volume
from pycsi.model.size import round_up
from pycsi.pool.adoptions import (
    Adoption,
    Begun,
    Way,
    adoption_of,
    forget_adoption,
    write_adoption,
)
from pycsi.pool.layout import never_noted
from pycsi.pool.pool import backend_for
from pycsi.pool.trash import Fate, new_entry
from pycsi.volumes.staging import Staging


class Undoing:
    """The way back from an adoption, and its end, in the pool of `carrier`."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self.seen = carrier.seen
        self._adoptions = carrier.adoptions

    def undo(self, volume_id: str) -> str:
        """Give an adopted volume's data its old name again; return that.

        A copy goes to the trash, for the old directory or file is still there.
        """
        begun = self._adoptions.get(volume_id)
        if begun is None:
            volume, adoption = self._adopted(volume_id)
            self._refuse_used(volume, str(self.seen.layout.volumes / volume.id))
            if adoption.way is Way.COPY:
                return self._discard(volume, adoption)
            _refuse_taken(adoption)
            with explained(volume_id):
                begun = self._adoptions.withdraw(volume, adoption)
        with explained(begun.adoption.source):
            return self._undo(begun)

    def _undo(self, begun: Begun) -> str:
        """Undo an adoption that was cut off, or whose volume was withdrawn."""
        source = Path(begun.adoption.source)
        if not begun.has_data and not begun.adoption.undoing:
            self._carrier.clear(begun)
            return str(source)
        if begun.adoption.way is Way.COPY:
            self._carrier.remove(begun, begun.content)
        elif begun.has_data:
            _refuse_taken(begun.adoption)
            try:
                self._refuse_used(begun.volume, begun.place)
            except CommandError:
                write_adoption(begun.place, dataclasses.replace(begun.adoption, undoing=False))
                self._carrier.complete(begun)
                raise
            self._restore(begun)
            rename_durably(begun.content, source)
        self._adoptions.drop(begun)
        return str(source)

    def _restore(self, begun: Begun) -> None:
        """Make the data what it was, but for what was written to it since."""
        if begun.adoption.size is None:
            self.seen.limiter.give_back(begun.content, begun.volume.project, begun.adoption.former)
            return
        # It was made longer, to whole blocks or to its claim's size. It gets its old size again, if
        # nobody can have taken note of the new one: neither its user nor its filesystem.
        found = filesystem.identify(begun.content)
        if not never_noted(begun.place) or (found and found.size > begun.adoption.size):
            return
        with opened(begun.content, os.O_RDWR) as fd:
            if os.fstat(fd).st_size > begun.adoption.size and _is_hole(fd, begun.adoption.size):
                os.ftruncate(fd, begun.adoption.size)
                os.fsync(fd)

    def _discard(self, volume: Volume, adoption: Adoption) -> str:
        if not os.path.lexists(adoption.source):
            raise CommandError(
                f"{adoption.source} is not there any more, so {volume.id} has the only copy; keep "
                f"it: pycsi adopt --finish {volume.id}"
            )
        layout = self.seen.layout
        layout.changes.announce()  # in case that this is killed before the other
        rename_durably(layout.volumes / volume.id, new_entry(layout, volume.id, Fate.KEPT).path)
        layout.changes.announce()
        return adoption.source

    def _adopted(self, volume_id: str) -> tuple[Volume, Adoption]:
        volume = self.seen.volumes.get(volume_id)
        adoption = adoption_of(self.seen.layout.volumes / volume_id) if volume else None
        if volume is None:
            raise UnknownNameError(f"there is no volume {volume_id}; see: pycsi get volumes")
        if adoption is None:
            raise CommandError(f"{volume_id} was not adopted, or its adoption is finished")
        return volume, adoption

    def _refuse_used(self, volume: Volume, place: str) -> None:
        """Raise `CommandError` if a volume in the directory `place` is in use."""
        seen = self.seen
        where = Staging(backend_for(place, volume, seen.limiter, seen.location)).in_use()
        if where:
            raise CommandError(f"{volume.id} is in use at {where}; stop its pods")
        if volume.attachment:
            raise CommandError(f"{volume.id} is attached to {volume.attachment.node}; detach it")
        if os.path.lexists(f"{place}/resize.undo"):
            raise CommandError(
                f"{volume.id}: its filesystem was being made larger when the driver was ended; "
                "stage it once, and unstage it"
            )

    def finish(self, volume_id: str) -> None:
        """Give the old name up: of a copy delete what it was copied from, of others the record."""
        volume, adoption = self._adopted(volume_id)
        source = Path(adoption.source)
        with explained(adoption.source):
            if adoption.way is Way.COPY and os.path.lexists(source):
                refuse_users(source)
                _delete(source, adoption)
            forget_adoption(self.seen.layout.volumes / volume.id)

    def doomed(self, volume_id: str) -> str | None:
        """Return the path that `finish` would delete; None if it deletes nothing."""
        _, adoption = self._adopted(volume_id)
        copied = adoption.way is Way.COPY and os.path.lexists(adoption.source)
        return adoption.source if copied else None


def _delete(source: Path, adoption: Adoption) -> None:
    """Delete what a volume was copied from, if it is still what it was."""
    if source.lstat().st_ino != adoption.inode:
        raise CommandError(
            f"{source} is another one by now than that which was copied; move it away, if it is to "
            "stay, and repeat this"
        )
    if adoption.size is None:
        tree.remove(source)
    else:
        source.unlink()
    sync_directory(source.parent)


def _refuse_taken(adoption: Adoption) -> None:
    """Raise `CommandError` unless the old name is free, in a directory that is there."""
    source = Path(adoption.source)
    if os.path.lexists(source):
        raise CommandError(f"{source} is there again; move it away first")
    if not source.parent.is_dir():
        raise CommandError(f"{source.parent} is not there any more; make it first")


def _is_hole(fd: int, start: int) -> bool:
    """Tell whether nothing was written to an open file from `start` on."""
    block = round_up(start)
    if any(os.pread(fd, block - start, start)):
        return False
    try:
        os.lseek(fd, block, os.SEEK_DATA)
    except OSError:  # ENXIO
        return True
    return False
