"""What was asked for and what was acknowledged, and so what must be there after a power cut."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping

from driver import NODE, Driver, block_capability, mount_capability
from reliability.power import Cut

from pycsi.proto import csi_pb2 as csi


@dataclasses.dataclass(frozen=True)
class Make:
    """What a volume is made of, and its size."""

    size: int
    filesystem: str = ""
    block: bool = False
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def capability(self) -> csi.VolumeCapability:
        return block_capability() if self.block else mount_capability(self.filesystem)

    @property
    def image(self) -> bool:
        return self.parameters["type"] == "image"


@dataclasses.dataclass(frozen=True)
class State:
    """A volume, snapshot or group that there is: its size, what it holds, what deleting does.

    A volume or snapshot holds `records`; of a group `members` says how many each volume's snapshot
    holds. Where it is `kept` it is a volume in the trash that can be brought back.
    """

    size: int = 0
    records: int = 0
    retain: bool = False
    kept: bool = False
    members: Mapping[str, int] = dataclasses.field(default_factory=dict)


Redo = Callable[[Driver], object]


@dataclasses.dataclass
class Change:
    """The step to a state, None: gone; when it began and was acknowledged, and how to ask again."""

    state: State | None
    redo: Redo | None
    began: float
    acknowledged: float = float("inf")


@dataclasses.dataclass
class Thing:
    """A volume, snapshot or group, whose name is used once; everything that happens to it."""

    kind: str
    id: str
    make: Make
    changes: list[Change] = dataclasses.field(default_factory=list)

    @property
    def state(self) -> State:
        """What was acknowledged last."""
        state = self.changes[-1].state
        assert state is not None
        return state

    def begin(self, state: State | None, redo: Redo | None) -> Change:
        """Note that something is asked for now."""
        change = Change(state, redo, time.monotonic())
        self.changes.append(change)
        return change

    def possible(self, cut: Cut) -> list[State | None]:
        """Return the states of which a power cut leaves one."""
        states: list[State | None] = [None]
        for change in itertools.takewhile(lambda change: change.began < cut.ended, self.changes):
            if change.acknowledged < cut.began:
                states = []
            states.append(change.state)
        return states

    def pending(self, cut: Cut) -> list[Change]:
        """Return what was under way at a cut."""
        return [
            change
            for change in self.changes
            if change.began < cut.ended and change.acknowledged >= cut.began
        ]


@dataclasses.dataclass
class Story:
    """One after the other what one thread does to its things; each step tells `acknowledged`."""

    driver: Driver
    acknowledged: Callable[[], object] = lambda: None
    things: list[Thing] = dataclasses.field(default_factory=list)
    steps: int = 0

    def new(self, kind: str, name: str, make: Make) -> Thing:
        thing = Thing(kind, f"{name}@{NODE}", make)
        self.things.append(thing)
        return thing

    def do(self, thing: Thing, state: State | None, redo: Redo) -> None:
        """Ask for something, and note that it was acknowledged."""
        change = thing.begin(state, redo)
        redo(self.driver)
        self._done(change)

    def repeat(self) -> None:
        """Ask once more for what was asked for last, and was not acknowledged."""
        (change,) = (
            change
            for thing in self.things
            for change in thing.changes
            if change.acknowledged == float("inf")
        )
        assert change.redo
        change.redo(self.driver)
        self._done(change)

    def note(self, thing: Thing, state: State, act: Callable[[], None]) -> None:
        """Do what is no request: write to a volume."""
        change = thing.begin(state, None)
        act()
        self._done(change)

    def _done(self, change: Change) -> None:
        change.acknowledged = time.monotonic()
        self.steps += 1
        self.acknowledged()

    def pending(self, cut: Cut) -> list[tuple[Thing, Change]]:
        """Return what was under way at a cut, of all things."""
        return [(thing, change) for thing in self.things for change in thing.pending(cut)]
