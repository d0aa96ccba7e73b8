"""What other processes announce is looked at once, by everyone who keeps what may have changed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import VOLUME

from pycsi.model.records import Volume
from pycsi.pool.layout import Changes, Layout, volume_catalog, write_new_volume
from pycsi.pool.trash import Fate, Trash, new_entry


class Follower:
    def __init__(self, changes: Changes) -> None:
        self.looks = 0
        self.succeeds = True
        changes.follow(self.look)

    def look(self) -> bool:
        self.looks += 1
        return self.succeeds


@pytest.fixture
def changes(tmp_path: Path) -> Changes:
    return Changes(tmp_path / "announcement")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    for folder in layout.folders:
        folder.mkdir()
    return layout


def looks_after(act: Callable[[], object], changes: Changes, follower: Follower) -> int:
    """Return how often a follower looks when `catch_up` is called twice after `act`."""
    before = follower.looks
    act()
    changes.catch_up()
    changes.catch_up()
    return follower.looks - before


def test_looks_once_for_each_announcement(changes: Changes) -> None:
    """Also before the first one; another process announces in an object of its own."""
    first, second = Follower(changes), Follower(changes)
    assert looks_after(lambda: None, changes, first) == 1
    for _ in range(2):
        assert looks_after(changes.announce, changes, first) == 1
    assert first.looks == second.looks == 3


def test_who_failed_looks_again(changes: Changes) -> None:
    """The others do not have to."""
    failing, other = Follower(changes), Follower(changes)
    failing.succeeds = False
    assert looks_after(changes.announce, changes, failing) == 2
    failing.succeeds = True
    assert looks_after(lambda: None, changes, failing) == 1
    assert other.looks == 1


def test_who_wants_to_looks_again(changes: Changes) -> None:
    """Without an announcement, and alone."""
    follower, other = Follower(changes), Follower(changes)
    assert looks_after(lambda: None, changes, follower) == 1
    assert looks_after(lambda: changes.look_again(follower.look), changes, follower) == 1
    assert other.looks == 1


def add(layout: Layout, volume: Volume) -> Path:
    """Put a volume into a pool, as another process does."""
    place = layout.volumes / volume.id
    place.mkdir()
    write_new_volume(str(place), volume)
    return place


def test_added_volumes_are_adopted(layout: Layout) -> None:
    """Whether they are counted, listed or asked for, if the catalog adopts any."""
    catalog = volume_catalog(layout)
    add(layout, VOLUME)
    layout.changes.announce()
    assert list(catalog) == []
    catalog.adopts = lambda volume: volume.pool_uuid == "u"
    assert list(catalog) == [VOLUME]
    other, foreign = (
        dataclasses.replace(VOLUME, id=f"{name}@node-1", pool_uuid=uuid)
        for name, uuid in (("w", "u"), ("x", "another"))
    )
    add(layout, other)
    add(layout, foreign)
    assert len(catalog) == 1
    Layout(layout.root).changes.announce()
    assert len(catalog) == 2
    assert catalog.get(foreign.id) is None
    unannounced = dataclasses.replace(VOLUME, id="y@node-1")
    add(layout, unannounced)
    assert catalog.get(unannounced.id) == unannounced


def test_deleted_volumes_are_in_the_trash(layout: Layout) -> None:
    """They occupy the pool, and whose catalog has them is told, once they are announced."""
    trash = Trash(layout, None)
    told: list[str] = []
    trash.notices = told.append
    layout.changes.catch_up()
    assert trash.held == 0
    add(layout, VOLUME).rename(new_entry(layout, VOLUME.id, Fate.GONE).path)
    layout.changes.catch_up()
    assert trash.held == 0
    Layout(layout.root).changes.announce()
    layout.changes.catch_up()
    assert trash.held == VOLUME.capacity
    assert told == [VOLUME.id]
