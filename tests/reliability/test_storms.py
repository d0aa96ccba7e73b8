"""Sixteen threads call everything on a few names: what is left is what was acknowledged."""

import dataclasses
import itertools
import os
import random
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from driver import MIB, Driver, from_snapshot, from_volume
from reliability.arena import (
    PATIENCE,
    POD,
    Arena,
    Call,
    Code,
    Outcome,
    codes,
    delete_group,
    outcome_of,
    settle,
    together,
)
from reliability.conftest import Counter, check_unused, check_whole

from pycsi.linux import kernel
from pycsi.proto import csi_pb2 as csi

THREADS = 16
CALLS = 8
"""How many calls each thread makes in one storm."""

STORMS = 25
KINDS = ("directory", "image", "block")
INLINE = POD | {"type": "image", "size": "16Mi"}

EXPLAINED = {
    "create": {Code.ALREADY_EXISTS},
    "clone": {
        Code.ALREADY_EXISTS,
        Code.NOT_FOUND,
        Code.OUT_OF_RANGE,  # the source was expanded
        Code.INVALID_ARGUMENT,  # the snapshot is of a volume of another kind
        Code.FAILED_PRECONDITION,  # a raw block volume in use, where blocks cannot be shared
    },
    "delete": {Code.FAILED_PRECONDITION},
    "expand": {Code.NOT_FOUND},
    "modify": {Code.NOT_FOUND},
    "snapshot": {Code.ALREADY_EXISTS, Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    "delete snapshot": set(),
    "group": {Code.ALREADY_EXISTS, Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    "delete group": {Code.INVALID_ARGUMENT},  # a group that was made of others meanwhile
    "delete member": {Code.INVALID_ARGUMENT},
    "stage": {Code.NOT_FOUND},
    "unstage": {Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    "publish": {Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    "unpublish": {Code.NOT_FOUND},
    "publish inline": set(),
    "unpublish inline": set(),
    "stats": {Code.NOT_FOUND},
    "grow": {Code.NOT_FOUND, Code.FAILED_PRECONDITION},  # a mounted ext4, on some kernels
    "list": set(),
    "capacity": set(),
}
"""The codes, besides OK and ABORTED, that some order of the calls explains."""

UNDONE = {
    "create": "delete",
    "clone": "delete",
    "snapshot": "delete snapshot",
    "stage": "unstage",
    "publish": "unpublish",
    "publish inline": "unpublish inline",
}
"""What makes something be there, and what makes it go."""


@dataclasses.dataclass(frozen=True, slots=True)
class Act:
    """A call of a storm: `what` was done to the object called `name`."""

    what: str
    name: str
    call: Call


class Storm:
    """A few names, of one kind of volume each, and random calls on them."""

    def __init__(self, arena: Arena, number: int, ground: str) -> None:
        self.driver = arena.driver
        self.chance = random.Random(f"{ground} {number}")  # noqa: S311  (the same every time)
        self.arenas = {
            f"{kind}-{number}@node-1": dataclasses.replace(arena, kind=kind) for kind in KINDS
        }
        self.snapshots = [f"s{which}-{number}@node-1" for which in range(2)]
        self.group = f"g-{number}@node-1"
        self.inline, self.target = f"csi-inline-{number}", arena.folder / f"inline-{number}"
        self.done: list[tuple[Act, Outcome]] = []

    def act(self) -> Act:
        """Return a random call."""
        name = self.chance.choice(list(self.arenas))
        what = self.chance.choice(list(EXPLAINED))
        if what in {"snapshot", "delete snapshot", "group", "delete group", "delete member"}:
            return self._of_snapshots(what, name)
        if what.endswith("inline"):
            undo = partial(self.driver.unpublish, self.inline, self.target)
            do = partial(self.driver.publish, self.inline, None, self.target, context=INLINE)
            return Act(what, self.inline, undo if what.startswith("un") else do)
        arena, key = self.arenas[name], name.partition("@")[0]
        target = arena.path("target", name)
        size = arena.size * self.chance.choice((1, 1, 1, 2))
        if what == "clone":
            source = self.chance.choice((from_volume(name), from_snapshot(self.snapshots[0])))
            key, name = f"{key}-copy", f"{key}-copy@node-1"
            return Act(what, name, partial(arena.create, key, size, source))
        calls: dict[str, Call] = {
            "create": partial(arena.create, key, size),
            "delete": partial(self.driver.delete, name),
            "expand": partial(self.driver.expand, name, size),
            "modify": partial(self.driver.modify, name, onDelete="delete"),
            "stage": partial(arena.stage, name),
            "unstage": partial(arena.unstage, name),
            "publish": partial(arena.publish, name),
            "unpublish": partial(arena.unpublish, name),
            "stats": partial(self.driver.stats, name, target),
            "grow": partial(self.driver.node_expand, name, target),
            "list": self.look,
            "capacity": self.driver.capacity,
        }
        return Act(what, name, calls[what])

    def _of_snapshots(self, what: str, name: str) -> Act:
        snapshot, group = self.chance.choice(self.snapshots), self.group
        members = [it for it in self.driver.snapshots() if it.group_snapshot_id == group]
        found = csi.VolumeGroupSnapshot(group_snapshot_id=group, snapshots=members)
        member = members[0].snapshot_id if members else snapshot
        calls: dict[str, Call] = {
            "snapshot": partial(self.driver.snapshot, snapshot.partition("@")[0], name),
            "delete snapshot": partial(self.driver.delete_snapshot, snapshot),
            "group": partial(self.driver.snapshot_group, group.partition("@")[0], name),
            "delete group": partial(delete_group, self.driver, found),
            "delete member": partial(self.driver.delete_snapshot, member),
        }
        if what == "delete member" and not members:
            what = "delete snapshot"
        return Act(what, snapshot, calls[what])

    def look(self) -> None:
        listed = self.driver.controller.ListVolumes(csi.ListVolumesRequest()).entries
        found = [entry.volume.volume_id for entry in listed]
        assert found == sorted(set(found))
        bad = [entry for entry in listed if entry.status.volume_condition.abnormal]
        assert not bad, bad

    def rage(self) -> None:
        """Let all threads call at once."""
        for volume_id, arena in self.arenas.items():
            arena.create(volume_id.partition("@")[0])
        plans = [[self.act() for _ in range(CALLS)] for _ in range(THREADS)]

        def work(plan: list[Act]) -> None:
            for act in plan:
                found = outcome_of(act.call)
                codes([found], *EXPLAINED[act.what])
                self.done.append((act, found))

        together([partial(work, plan) for plan in plans], PATIENCE * 2)
        assert len(self.done) == THREADS * CALLS

    def outcomes(self, name: str, whats: Collection[str]) -> list[Outcome]:
        return [
            found
            for act, found in self.done
            if act.name == name and act.what in whats
            if found.good
        ]

    def explain(self, name: str, what: str, *, there: bool, before: bool = False) -> None:
        """Check that some order of what was acknowledged leaves something `there`, or not."""
        made = self.outcomes(name, {it for it in UNDONE if UNDONE[it] == UNDONE[what]})
        undone = self.outcomes(name, {UNDONE[what]})
        last, other = (made, undone) if there else (undone, made)
        possible = any(all(it.began <= one.ended for it in other) for one in last)
        unchanged = not other and there is before
        assert possible or unchanged, f"{name}: {what}, {there}, of {made} and {undone}"

    def check(self) -> None:
        """Check what is there against what was acknowledged."""
        listed = set(self.driver.volume_ids())
        for name, arena in self.arenas.items():
            self.explain(name, "create", there=name in listed, before=True)
            copy = name.replace("@", "-copy@")
            self.explain(copy, "clone", there=copy in listed)
            published = arena.is_published(name)
            self.explain(name, "publish", there=published)
            staged = arena.kind == "block" or arena.is_staged(name)
            if arena.kind != "block":
                self.explain(name, "stage", there=staged)
            assert not published or staged
            assert not staged or name in listed or arena.kind == "block"
        taken = {item.snapshot_id: item for item in self.driver.snapshots()}
        for name in self.snapshots:
            self.explain(name, "snapshot", there=name in taken)
            answers = [item.answer for item in self.outcomes(name, {"snapshot"})]
            if answers and not self.outcomes(name, {"delete snapshot"}):
                assert all(item == taken[name] for item in answers), "one name, two snapshots"
        inline = kernel.topmost(self.target) is not None
        self.explain(self.inline, "publish inline", there=inline)
        assert inline is os.path.lexists(self.target)

    def end(self) -> None:
        """Undo everything, as an orchestrator does that tries until it is done."""
        calls: list[Callable[[], Any]] = [partial(self.driver.unpublish, self.inline, self.target)]
        for name, arena in self.arenas.items():
            if name in self.driver.volume_ids():
                calls += [partial(arena.unpublish, name), partial(arena.unstage, name)]
            calls.append(partial(self.driver.delete, name))
            calls.append(partial(self.driver.delete, name.replace("@", "-copy@")))
        members = [it for it in self.driver.snapshots() if it.group_snapshot_id]
        group = csi.VolumeGroupSnapshot(group_snapshot_id=self.group, snapshots=members)
        calls.append(partial(delete_group, self.driver, group))
        calls += [partial(self.driver.delete_snapshot, name) for name in self.snapshots]
        for call in calls:
            found = settle(call)
            assert found.good, found.details


@pytest.mark.timeout(900)
def test_storm(
    big_pool: Path,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    counted: Counter,
    thorough: bool,
) -> None:
    """No call hangs or ends without a reason, and the end is one that some order leads to."""
    driver = serve(f"default={big_pool},overcommit=10")
    arena = Arena(driver, tmp_path, itertools.repeat(0.0))
    for number in range(STORMS if thorough else 1):
        storm = Storm(arena, number, ground)
        storm.rage()
        storm.check()
        storm.end()
        counted("calls in storms", len(storm.done))
        check_whole(driver, big_pool)
        check_unused(big_pool)
    assert driver.volume_ids() == []
    assert driver.capacity(quota="none").available_capacity > MIB
    assert "Traceback" not in driver.log
