"""Volumes and snapshots that are being made: whole and durable in their places, or not there.

Each is built in a directory under `tmp/`, with its room reserved, and committed by a rename.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import structlog

from pycsi.linux.descriptor import exists, sync_directory
from pycsi.linux.record import rename_durably
from pycsi.model.errors import FailedPrecondition
from pycsi.model.records import Snapshot, Volume
from pycsi.pool.catalog import Catalog
from pycsi.pool.layout import Layout
from pycsi.pool.room import Reservation, Room

log = structlog.get_logger()

T = TypeVar("T", Volume, Snapshot)


class Build:
    """A volume or snapshot that is being built in `directory`, and will lie at `place`."""

    def __init__(self, directory: str, place: str, reservation: Reservation) -> None:
        self.directory = directory
        self.place = place
        self.reservation = reservation

    def commit(self, settle: Callable[[], None]) -> None:
        """Move the complete directory to its place, durably; `settle` does what else that takes.

        If `settle` fails the directory is moved back. `FailedPrecondition` if the place is taken.
        The object is in the catalog only after `index`.
        """
        if os.path.lexists(self.place):
            raise FailedPrecondition(
                f"{self.place} exists, but was not there when the driver started; restart the "
                "driver, or move it away"
            )
        sync_directory(self.directory)
        rename_durably(self.directory, self.place)
        try:
            settle()
        except BaseException:
            os.rename(self.place, self.directory)
            raise

    def index(self, catalog: Catalog[T], item: T) -> None:
        """Make the committed object known in the catalog, where it replaces its reservation."""
        with self.reservation.replaced():
            catalog.put(item)


@contextlib.contextmanager
def build(
    layout: Layout,
    room: Room,
    place: str,
    size: int,
    *,
    thick: bool,
    destroy: Callable[[Path], None],
) -> Iterator[Build]:
    """Reserve `size` bytes, and make an empty directory for an object that will be at `place`.

    If the `with` block fails, `destroy` deletes the directory, unless it was committed.
    """
    with room.reserved(size, thick=thick) as reservation:
        # A unique name: a mkfs that outlived its driver may still write into an older directory.
        name = place.rpartition("/")[2]
        directory = f"{layout.tmp}/{name}.{os.urandom(4).hex()}"
        os.mkdir(directory, 0o700)
        try:
            yield Build(directory, place, reservation)
        except BaseException:
            _destroy_or_log(directory, destroy)
            raise


def _destroy_or_log(directory: str, destroy: Callable[[Path], None]) -> None:
    """Delete an unfinished build; if that fails, the next start does it."""
    if not exists(directory):
        return
    try:
        destroy(Path(directory))
    except Exception as error:  # noqa: BLE001  (it must not hide why the build failed)
        log.warning("cannot be deleted now", path=directory, error=str(error))
