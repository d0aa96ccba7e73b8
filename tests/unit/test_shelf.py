"""What is derived from what lies on a shelf is of its latest state."""

import dataclasses
from pathlib import Path

import pytest

from pycsi.shelf import Shelf


@dataclasses.dataclass(frozen=True)
class Thing:
    id: str
    held: int = 0
    filesystem: str | None = None


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf[Thing]:
    return Shelf(tmp_path, "thing.json", lambda data: Thing(**data))


def test_what_is_derived_is_kept(shelf: Shelf[Thing]) -> None:
    asked: list[str] = []

    def size(thing: Thing) -> int:
        asked.append(thing.id)
        return thing.held

    def name(thing: Thing) -> str:
        return thing.id.upper()

    thing, other = Thing("a", 1), Thing("b", 2)
    shelf.put(thing)
    shelf.put(other)
    for _ in range(2):
        assert shelf.derived(thing, size) == 1
        assert shelf.derived(other, size) == 2
        assert shelf.derived(thing, name) == "A"
    assert asked == ["a", "b"]
    shelf.touch("a")
    assert shelf.derived(thing, size) == 1
    assert shelf.derived(other, size) == 2
    assert asked == ["a", "b", "a"]


def test_what_is_derived_goes_with_a_new_record(shelf: Shelf[Thing]) -> None:
    def size(thing: Thing) -> int:
        return thing.held

    for held in (1, 2):
        thing = Thing("a", held)
        shelf.put(thing)
        assert shelf.derived(thing, size) == held
    shelf.drop("a")
    again = Thing("a", 3)
    assert shelf.derived(again, size) == 3
    shelf.put(Thing("a", 4))
    assert shelf.derived(Thing("a", 4), size) == 4


def test_what_is_derived_of_an_older_state_is_not_kept(shelf: Shelf[Thing]) -> None:
    """The thing is touched, or replaced, while something is made of it."""
    thing = Thing("a", 1)
    shelf.put(thing)
    answers = ["old", "new"]

    def touched(_: Thing) -> str:
        answer = answers.pop(0)
        if answer == "old":
            shelf.touch("a")
        return answer

    assert shelf.derived(thing, touched) == "old"
    assert shelf.derived(thing, touched) == "new"

    def replaced(item: Thing) -> int:
        shelf.put(Thing("a", 2))
        return item.held

    assert shelf.derived(thing, replaced) == 1
    assert shelf.derived(Thing("a", 2), lambda item: item.held) == 2
