"""What a driver finds after a power cut, compared with what was asked for and acknowledged."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conftest import run
from driver import Driver, from_snapshot
from reliability.conftest import check_unused, check_whole, names_in, trash
from reliability.history import Make, State, Story, Thing
from reliability.lives import delete_group, intact, kept
from reliability.power import FSCK, Cut

from pycsi.linux import devicemapper, loop, luks
from pycsi.model.encryption import SECRET
from pycsi.proto import csi_pb2 as csi


@contextlib.contextmanager
def decrypted(image: Path, make: Make) -> Iterator[Path]:
    """Yield what has the data of an image: the image, or a mapping if that is encrypted."""
    if not make.secrets:
        yield image
        return
    luks.open_mapping(image, "checked", make.secrets[SECRET].encode(), discards=False)
    (device,) = loop.find(image)
    (mapping,) = devicemapper.on_loop(device.number)
    try:
        yield mapping.path
    finally:
        devicemapper.remove(mapping)


class Finding:
    """The volumes, snapshots and groups that a driver lists, and what is kept in the trash."""

    def __init__(self, driver: Driver, pool: Path) -> None:
        self.volumes = {
            entry.volume.volume_id: entry.volume.capacity_bytes
            for entry in driver.controller.ListVolumes(csi.ListVolumesRequest()).entries
        }
        self.snapshots: dict[str, int] = {}
        self.groups: dict[str, dict[str, str]] = {}
        for item in driver.snapshots():
            assert item.ready_to_use
            if item.group_snapshot_id:
                members = self.groups.setdefault(item.group_snapshot_id, {})
                members[item.source_volume_id] = item.snapshot_id
            else:
                self.snapshots[item.snapshot_id] = item.size_bytes
        self.kept = kept(pool)

    @property
    def everything(self) -> set[str]:
        return {*self.volumes, *self.snapshots, *self.groups, *self.kept}

    def fits(self, thing: Thing, state: State | None) -> bool:
        """Tell whether a thing has a state, as far as that can be seen without using it."""
        if state is None:
            return thing.id not in self.everything
        if thing.kind == "group":
            return self.groups.get(thing.id, {}).keys() == state.members.keys()
        if thing.kind == "snapshot":
            return self.snapshots.get(thing.id) == state.size
        if state.kept:
            return thing.id in self.kept and thing.id not in self.volumes
        return self.volumes.get(thing.id) == state.size and thing.id not in self.kept


@dataclasses.dataclass
class Recovery:
    """A pool after a power cut, served by a new driver; `folder` is where volumes are published.

    `states` are those that each thing may have, as far as is known.
    """

    driver: Driver
    pool: Path
    folder: Path
    stories: Sequence[Story]
    cut: Cut
    retried: int = 0
    states: dict[str, list[State | None]] = dataclasses.field(default_factory=dict)
    forking: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    """Files are open in no volume while a program starts: it would have them, and keep it busy."""

    def check(self) -> None:
        """Check that what was acknowledged is there and all is whole; then delete everything."""
        self._look()
        self._retry()
        self._restore_one()
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(self._examine, list(self._things())):
                pass
            for _ in pool.map(self._delete, list(self._things())):
                pass
        if there := kept(self.pool):
            trash(self.pool, "empty", *there.values())
        check_whole(self.driver, self.pool)
        assert not Finding(self.driver, self.pool).everything
        check_unused(self.pool)

    def _things(self) -> Iterator[Thing]:
        """Return what there was, or may have been, before the cut."""
        for story in self.stories:
            yield from (item for item in story.things if item.changes[0].began < self.cut.ended)

    def _look(self) -> None:
        """Compare what is listed, before anything is used, which might put something right."""
        self.driver.reaped()
        for folder in ("tmp", "frozen"):
            assert names_in(self.pool / folder) == set(), f"{folder} is not empty"
        found = Finding(self.driver, self.pool)
        assert found.everything <= {thing.id for thing in self._things()}
        for thing in self._things():
            possible = thing.possible(self.cut)
            self._narrow(thing, [state for state in possible if found.fits(thing, state)])
        for volume_id in found.volumes.keys() - self._wiped():
            condition = self.driver.condition(volume_id)
            assert not condition.abnormal, f"{volume_id}: {condition.message}"

    def _wiped(self) -> set[str]:
        """Return the encrypted volumes whose deletion was under way: it takes the header first."""
        return {
            thing.id
            for story in self.stories
            for thing, change in story.pending(self.cut)
            if change.state is None and thing.make.secrets
        }

    def _narrow(self, thing: Thing, states: list[State | None]) -> None:
        assert states, f"{thing.id} should be one of {thing.possible(self.cut)}"
        self.states[thing.id] = states

    def _retry(self) -> None:
        """Repeat what was under way, as orchestrators do; now it is acknowledged."""
        for story in self.stories:
            match story.pending(self.cut):
                case [(thing, change)] if change.redo:
                    change.redo(self.driver)
                    self.retried += 1
                    assert Finding(self.driver, self.pool).fits(thing, change.state)
                    self._narrow(thing, [change.state])

    def _restore_one(self) -> None:
        """Bring a volume back that was deleted and retained."""
        for thing in self._things():
            states = [state for state in self.states[thing.id] if state and state.kept]
            if states and thing.id in (there := kept(self.pool)):
                trash(self.pool, "restore", there[thing.id])
                self._narrow(thing, [dataclasses.replace(item, kept=False) for item in states])
                return

    def _examine(self, thing: Thing) -> None:
        """Check that what a thing holds can be used, and is what it was."""
        states = [state for state in self.states[thing.id] if state and not state.kept]
        if not states:
            return
        if thing.kind == "group":
            for source, snapshot_id in Finding(self.driver, self.pool).groups[thing.id].items():
                held = self._restored(snapshot_id, thing.make)
                assert held in {state.members[source] for state in states}, snapshot_id
            return
        if thing.kind == "snapshot":
            held = self._restored(thing.id, thing.make)
        else:
            held = self._held(thing.id, thing.make)
        wanted = [state for state in states if state.records == held]
        assert wanted, f"{thing.id} holds {held} records, not one of {states}"
        self.states[thing.id] = list(wanted)

    def _restored(self, snapshot_id: str, make: Make) -> int:
        """Return how many records a snapshot holds."""
        (snapshot,) = self.driver.snapshots(snapshot_id=snapshot_id)
        copy = self.driver.create(
            f"of-{snapshot_id}",
            snapshot.size_bytes,
            capability=make.capability,
            parameters=dict(make.parameters),
            source=from_snapshot(snapshot_id),
            secrets=make.secrets,
        )
        held = self._held(copy.volume_id, make)
        self.driver.delete(copy.volume_id)
        return held

    def _held(self, volume_id: str, make: Make) -> int:
        """Return how many records a volume holds; the kernel recovers it, and then it is whole."""
        with (
            self.driver.published(
                volume_id, self.folder, make.capability, secrets=make.secrets
            ) as target,
            self.forking,
        ):
            held = intact(target, make)
        if make.filesystem:
            image = self.pool / "volumes" / volume_id / "disk.img"
            with self.forking, decrypted(image, make) as disk:
                run(*FSCK[make.filesystem], disk)
        return held

    def _delete(self, thing: Thing) -> None:
        """Delete a thing, if it is there; it goes where it was last acknowledged to go."""
        states = [state for state in self.states[thing.id] if state and not state.kept]
        if not states:
            return
        if thing.kind == "group":
            delete_group(self.driver, thing.id)
        elif thing.kind == "snapshot":
            self.driver.delete_snapshot(thing.id)
        else:
            self.driver.delete(thing.id)
            retained = thing.id in kept(self.pool)
            assert retained in {state.retain for state in states}, thing.id
