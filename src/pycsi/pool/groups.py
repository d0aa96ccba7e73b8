"""The records of the group snapshots that have members in a pool."""

import contextlib
from collections.abc import Iterable, Iterator

import structlog

from pycsi.linux.descriptor import sync_directory
from pycsi.linux.record import read_record, write_record
from pycsi.model.records import Group, Snapshot
from pycsi.pool.catalog import UNREADABLE, Catalog
from pycsi.pool.layout import Layout

log = structlog.get_logger()


def recorded_groups(layout: Layout) -> Iterator[Group]:
    """Yield the groups whose records in a pool can be read."""
    for record in sorted(layout.groups.glob("[!.]*.json")):
        try:
            yield Group.from_json(read_record(record))
        except UNREADABLE as error:
            log.warning("a record cannot be read", path=str(record), error=str(error))


def hide_prepared(snapshots: Catalog[Snapshot], groups: Iterable[Group]) -> None:
    """Hide the snapshots of a pool that belong to those of its `groups` that are prepared."""
    prepared = {group.id for group in groups if group.prepared}
    for snapshot in list(snapshots) if prepared else []:
        if snapshot.group in prepared:
            snapshots.put_hidden(snapshot)


class Groups:
    """The group snapshots of a pool: their records, and an index of those in memory."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[str, Group] = {}

    def load(self) -> None:
        """Read the records, leave unreadable ones as they are, and delete unfinished ones."""
        self._known = {group.id: group for group in recorded_groups(self._layout)}
        for unfinished in list(self._layout.groups.glob(".*")):
            unfinished.unlink()

    def __iter__(self) -> Iterator[Group]:
        return iter(list(self._known.values()))

    def get(self, group_id: str) -> Group | None:
        """Return a group from the index, or None."""
        return self._known.get(group_id)

    def is_recorded(self, group_id: str) -> bool:
        """Tell whether there is a record of a group, readable or not."""
        return self._layout.group(group_id).exists()

    def write(self, group: Group) -> None:
        """Record a group, durably; with its record the group and all its members exist."""
        write_record(self._layout.group(group.id), group.to_json())

    def index(self, group: Group) -> None:
        """Add a group that is recorded to the index."""
        self._known[group.id] = group

    def delete(self, group_id: str) -> None:
        """Delete the record of a group, durably, or not at all; absent is fine."""
        try:
            self._layout.group(group_id).unlink(missing_ok=True)
            sync_directory(self._layout.groups)
        except BaseException:
            with contextlib.suppress(OSError):
                if group := self.get(group_id):
                    self.write(group)
            raise

    def drop(self, group_id: str) -> None:
        """Remove a group whose record is deleted from the index; absent is fine."""
        self._known.pop(group_id, None)
