"""Lives of volumes: everything that an orchestrator and a workload do with them, in one thread."""

import contextlib
import dataclasses
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import recorder
from driver import MIB, Driver, from_snapshot, from_volume
from reliability.conftest import trash
from reliability.history import Make, State, Story, Thing

from pycsi.linux.descriptor import opened

_MOST = 128 * recorder.RECORD.size


def makes(ground: str) -> dict[str, Make]:
    """Return all that volumes in a pool on `ground` can be made of."""
    thin, thick = {"type": "image"}, {"type": "image", "allocation": "thick"}
    return {
        # Only btrfs limits directories on every kernel.
        "limited" if ground == "btrfs" else "unlimited": Make(
            16 * MIB,
            parameters={"type": "directory"} | ({} if ground == "btrfs" else {"quota": "none"}),
        ),
        "plain": Make(16 * MIB, parameters={"type": "directory", "quota": "none"}),
        "ext4": Make(32 * MIB, "ext4", parameters=thin),
        "thick": Make(32 * MIB, "ext4", parameters=thick),
        "xfs": Make(300 * MIB, "xfs", parameters=thin),
        "btrfs": Make(256 * MIB, "btrfs", parameters=thin),
        "block": Make(16 * MIB, block=True, parameters=thin),
        "thick block": Make(16 * MIB, block=True, parameters=thick),
    }


def append(target: Path, make: Make, number: int) -> None:
    """Write a record to a published volume, durably."""
    file = target if make.block else target / "records"
    with opened(file, os.O_WRONLY | (0 if make.block else os.O_CREAT)) as fd:
        os.pwrite(fd, recorder.record(number), number * recorder.RECORD.size)
        os.fsync(fd)
    if not make.block:
        with opened(target, os.O_DIRECTORY) as fd:
            os.fsync(fd)


def intact(target: Path, make: Make) -> int:
    """Return how many records a published volume holds, from the first on."""
    file = target if make.block else target / "records"
    if not file.exists():
        return 0
    with opened(file) as fd:
        data = os.pread(fd, _MOST, 0)
    number = 0
    while data.startswith(recorder.record(number), number * recorder.RECORD.size):
        number += 1
    return number


def delete_group(driver: Driver, group_id: str) -> None:
    driver.delete_group(group_id, *(item.snapshot_id for item in driver.members(group_id)))


def kept(pool: Path) -> dict[str, str]:
    """Return the volumes in the trash that can be brought back: ids and names of entries."""
    names = [entry.name for entry in (pool / "trash").iterdir() if ".kept." in entry.name]
    return {name.rsplit(".", 3)[0]: name for name in names if not name.startswith(".")}


@dataclasses.dataclass
class Life:
    """What can be done with volumes, which are published in `folder`.

    `shares` tells whether copies share blocks in the pool.
    """

    story: Story
    folder: Path
    chance: random.Random
    shares: bool

    def create(self, name: str, make: Make, origin: Thing | None = None) -> Thing:
        """Create a volume, empty or as a copy of a snapshot or of another volume."""
        source, records = None, 0
        if origin:
            kind = from_snapshot if origin.kind == "snapshot" else from_volume
            source, records = kind(origin.id), origin.state.records
            make = dataclasses.replace(make, size=origin.state.size)
        thing = self.story.new("volume", name, make)

        def ask(driver: Driver) -> None:
            driver.create(
                name,
                make.size,
                capability=make.capability,
                parameters=dict(make.parameters),
                source=source,
                secrets=make.secrets,
            )

        self.story.do(thing, State(size=make.size, records=records), ask)
        return thing

    @contextlib.contextmanager
    def published(self, thing: Thing) -> Iterator[Path]:
        driver, make = self.story.driver, thing.make
        with driver.published(
            thing.id, self.folder, make.capability, secrets=make.secrets
        ) as target:
            yield target

    def write(self, thing: Thing, target: Path) -> None:
        number = thing.state.records
        state = dataclasses.replace(thing.state, records=number + 1)
        self.story.note(thing, state, lambda: append(target, thing.make, number))

    def snapshot(self, name: str, of: Thing) -> Thing:
        thing = self.story.new("snapshot", name, of.make)
        state = State(size=of.state.size, records=of.state.records)
        self.story.do(thing, state, lambda driver: driver.snapshot(name, of.id))
        return thing

    def group(self, name: str, *of: Thing) -> Thing:
        thing = self.story.new("group", name, of[0].make)
        state = State(members={item.id: item.state.records for item in of})
        sources = [item.id for item in of]
        self.story.do(thing, state, lambda driver: driver.snapshot_group(name, *sources))
        return thing

    def retain(self, thing: Thing) -> None:
        state = dataclasses.replace(thing.state, retain=True)
        self.story.do(thing, state, lambda driver: driver.modify(thing.id, onDelete="retain"))

    def expand(self, thing: Thing) -> None:
        """Make a volume larger; its filesystem grows when it is staged next."""
        size = thing.state.size + 16 * MIB
        state = dataclasses.replace(thing.state, size=size)
        self.story.do(thing, state, lambda driver: driver.expand(thing.id, size))

    def delete(self, thing: Thing) -> None:
        state = dataclasses.replace(thing.state, kept=True) if thing.state.retain else None
        delete: dict[str, Callable[[Driver], None]] = {
            "volume": lambda driver: driver.delete(thing.id),
            "snapshot": lambda driver: driver.delete_snapshot(thing.id),
            "group": lambda driver: delete_group(driver, thing.id),
        }
        self.story.do(thing, state, delete[thing.kind])

    def bring_back(self, thing: Thing, pool: Path) -> None:
        state = dataclasses.replace(thing.state, kept=False)
        entry = kept(pool)[thing.id]
        self.story.do(thing, state, lambda _: trash(pool, "restore", entry))

    def live(self, name: str, choice: list[Make]) -> None:
        """Make a volume and others from it, use them, and delete all that was made."""
        chance = self.chance
        first = self.create(f"{name}-a", chance.choice(choice))
        made = [first]
        acts = chance.sample([self._copy, self._restore, self._group, self._change], 2)
        # A device in use can be copied only at once.
        if first.make.block and not self.shares:
            self.use(first)
            for act in acts:
                made += act(name, first)
        else:
            with self.published(first) as target:
                self.write(first, target)
                for act in acts:
                    made += act(name, first)
                    self.write(first, target)
        self.use(first)
        chance.shuffle(made)
        for thing in made:
            self.delete(thing)

    def use(self, thing: Thing) -> None:
        with self.published(thing) as target:
            self.write(thing, target)

    def _copy(self, name: str, first: Thing) -> list[Thing]:
        copy = self.create(f"{name}-c", first.make, first)
        self.use(copy)
        return [copy]

    def _restore(self, name: str, first: Thing) -> list[Thing]:
        taken = self.snapshot(f"{name}-s", first)
        return [taken, self.create(f"{name}-r", first.make, taken)]

    def _group(self, name: str, first: Thing) -> list[Thing]:
        second = self.create(f"{name}-b", first.make)
        return [second, self.group(f"{name}-g", first, second)]

    def _change(self, name: str, first: Thing) -> list[Thing]:
        self.retain(first)
        self.expand(first)
        return []
