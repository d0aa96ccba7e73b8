"""What is derived from what lies on a catalog is of its latest state."""

import dataclasses
from pathlib import Path

import pytest

from pycsi.pool.catalog import Catalog


@dataclasses.dataclass(frozen=True)
class Thing:
    id: str
    held: int = 0
    filesystem: str | None = None


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog[Thing]:
    return Catalog(tmp_path, "thing.json", lambda data: Thing(**data))


def test_what_is_derived_is_kept(catalog: Catalog[Thing]) -> None:
    asked: list[str] = []

    def size(thing: Thing) -> int:
        asked.append(thing.id)
        return thing.held

    def name(thing: Thing) -> str:
        return thing.id.upper()

    thing, other = Thing("a", 1), Thing("b", 2)
    catalog.put(thing)
    catalog.put(other)
    for _ in range(2):
        assert catalog.derived(thing, size) == 1
        assert catalog.derived(other, size) == 2
        assert catalog.derived(thing, name) == "A"
    assert asked == ["a", "b"]
    catalog.touch("a")
    assert catalog.derived(thing, size) == 1
    assert catalog.derived(other, size) == 2
    assert asked == ["a", "b", "a"]


def test_what_is_derived_goes_with_a_new_record(catalog: Catalog[Thing]) -> None:
    def size(thing: Thing) -> int:
        return thing.held

    for held in (1, 2):
        thing = Thing("a", held)
        catalog.put(thing)
        assert catalog.derived(thing, size) == held
    catalog.drop("a")
    again = Thing("a", 3)
    assert catalog.derived(again, size) == 3
    catalog.put(Thing("a", 4))
    assert catalog.derived(Thing("a", 4), size) == 4


def test_what_is_derived_of_an_older_state_is_not_kept(catalog: Catalog[Thing]) -> None:
    """The thing is touched, or replaced, while something is made of it."""
    thing = Thing("a", 1)
    catalog.put(thing)
    answers = ["old", "new"]

    def touched(_: Thing) -> str:
        answer = answers.pop(0)
        if answer == "old":
            catalog.touch("a")
        return answer

    assert catalog.derived(thing, touched) == "old"
    assert catalog.derived(thing, touched) == "new"

    def replaced(item: Thing) -> int:
        catalog.put(Thing("a", 2))
        return item.held

    assert catalog.derived(thing, replaced) == 1
    assert catalog.derived(Thing("a", 2), lambda item: item.held) == 2


def test_hidden(catalog: Catalog[Thing]) -> None:
    """What is hidden counts and keeps its id, and is neither found nor listed until it is shown."""
    thing, other = Thing("a", 1, "xfs"), Thing("b", 2, "xfs")
    catalog.put_hidden(thing)
    catalog.put(other)
    for _ in range(2):
        assert [item.id for item in catalog] == ["b"]
        assert len(catalog) == 1
        assert catalog.get("a") is None
        assert "a" in catalog
        assert catalog.hidden() == [thing]
        assert (catalog.held, catalog.held_by("a"), catalog.filesystems["xfs"]) == (3, 1, 2)
        catalog.put_hidden(thing)
    for _ in range(2):
        catalog.show("a")
        assert [item.id for item in catalog] == ["a", "b"]
        assert catalog.get("a") == thing
        assert catalog.hidden() == []
        assert (catalog.held, catalog.held_by("a"), catalog.filesystems["xfs"]) == (3, 1, 2)
    catalog.put_hidden(thing)
    assert [item.id for item in catalog] == ["b"]
    for _ in range(2):
        catalog.drop("a")
        assert "a" not in catalog
        assert (catalog.held, catalog.filesystems["xfs"]) == (2, 1)
    catalog.show("a")
    assert catalog.get("a") is None
