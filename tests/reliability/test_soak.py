"""One driver for a long time: volumes come and go in many threads, and the process stays flat."""

import contextlib
import dataclasses
import itertools
import os
import random
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import FilesystemFactory, run
from driver import GIB, MIB, Driver, from_snapshot, from_volume
from reliability.arena import (
    PARAMETERS,
    POD,
    SIZES,
    Call,
    Code,
    capability_of,
    codes,
    delete_all,
    delete_group,
    outcome_of,
    read,
    settle,
    together,
    write,
)
from reliability.conftest import GROUNDS, Counter, check_unused, check_whole, names_in

from pycsi.proto import csi_pb2 as csi

THREADS = 16
RETAINED = 2
"""Seconds for which the trash keeps what is to be retained."""

LEAK = 24 * MIB
"""More memory than at the same load a while ago is a leak; half of it is the allocator's noise."""

FORGOTTEN = 4
"""So many quota groups of deleted subvolumes may be waiting: the last ones, always."""


@dataclasses.dataclass(frozen=True, slots=True)
class Alive:
    """A volume of a life, with what was written to it."""

    id: str
    kind: str
    ground: str
    data: bytes
    size: int

    @property
    def captured_in_use(self) -> bool:
        """Whether a snapshot can be taken of it while it is staged."""
        return self.kind != "block" or self.ground != "ext4"


@dataclasses.dataclass
class Soak:
    """Lives over everything, in one thread; `tally` counts the calls by their names."""

    driver: Driver
    folder: Path
    chance: random.Random
    prefix: str
    tally: Tally[str] = dataclasses.field(default_factory=Tally)
    _names: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def name(self) -> str:
        return f"{self.prefix}-{next(self._names)}"

    def do(self, call: Call, *allowed: Code, what: str = "") -> Any:
        """Make a call that has to succeed, or may fail as `allowed`; return its answer."""
        found = settle(call)
        codes([found], *allowed)
        self.tally[what or getattr(call, "func", call).__name__] += 1
        return found.answer

    def create(
        self,
        kind: str,
        ground: str,
        source: csi.VolumeContentSource | None = None,
        data: bytes = b"",
    ) -> Alive:
        parameters = PARAMETERS[kind] | {"pool": ground}
        if self.chance.random() < 0.3:
            parameters["onDelete"] = "retain"
        make = partial(
            self.driver.create,
            self.name(),
            SIZES[kind],
            capability=capability_of(kind),
            parameters=parameters,
            source=source,
        )
        volume = self.do(make)
        assert self.do(make) == volume
        assert volume.capacity_bytes == SIZES[kind]
        return Alive(volume.volume_id, kind, ground, data, volume.capacity_bytes)

    @contextlib.contextmanager
    def mounted(self, volume: Alive) -> Iterator[Path]:
        """Stage and publish a volume through the `with` block; yield its file or its device."""
        staging, target = self.folder / f"s-{volume.id}", self.folder / f"t-{volume.id}"
        capability = capability_of(volume.kind)
        self.do(partial(self.driver.stage, volume.id, staging, capability))
        self.do(partial(self.driver.publish, volume.id, staging, target, capability))
        yield target if volume.kind == "block" else target / "file"
        usage = self.do(partial(self.driver.stats, volume.id, target))
        assert not usage.volume_condition.abnormal, usage.volume_condition.message
        self.do(partial(self.driver.unpublish, volume.id, target))
        assert not target.exists()
        self.do(partial(self.driver.unstage, volume.id, staging))
        staging.rmdir()

    def check(self, volume: Alive) -> None:
        with self.mounted(volume) as file:
            assert read(file, len(volume.data)) == volume.data, f"{volume.id} lost its data"

    def write(self, volume: Alive) -> Alive:
        data = self.chance.randbytes(self.chance.randrange(4096, 256 * 1024, 4096))
        with self.mounted(volume) as file:
            write(file, data)
        return dataclasses.replace(volume, data=data)

    # What a life consists of

    def live(self) -> None:
        """Make a volume, use it, do one or several things to it, and delete it."""
        ground = self.chance.choice(GROUNDS)
        kinds = [kind for kind in PARAMETERS if kind != "limited" or ground == "btrfs"]
        volume = self.write(self.create(self.chance.choice(kinds), ground))
        parts = [self.snapshot, self.clone, self.group, self.inline, self.look]
        for part in self.chance.sample(parts, self.chance.randint(1, 3)):
            part(volume)
        if self.chance.random() < 0.5:
            self.expand(volume)
        self.meddle()
        self.check(volume)
        self.delete(volume)

    def delete(self, volume: Alive) -> None:
        for _ in range(2):
            self.do(partial(self.driver.delete, volume.id))
        self.do(partial(self.driver.condition, volume.id), Code.NOT_FOUND)

    def snapshot(self, volume: Alive) -> None:
        """Take snapshots in use and idle, restore one, and ask which blocks differ."""
        first, second = self.name(), self.name()
        if volume.captured_in_use:
            with self.mounted(volume):
                base = self.do(partial(self.driver.snapshot, first, volume.id))
        else:
            base = self.do(partial(self.driver.snapshot, first, volume.id))
        target = self.do(partial(self.driver.snapshot, second, volume.id))
        if volume.kind in {"image", "block"}:
            assert self.do(partial(self.driver.allocated, base.snapshot_id))
            self.do(partial(self.driver.delta, base.snapshot_id, target.snapshot_id))
        source = from_snapshot(self.chance.choice((base, target)).snapshot_id)
        self.restored(volume, source)
        for item in (base, target):
            assert self.do(partial(self.driver.snapshots, snapshot_id=item.snapshot_id)) == [item]
            self.do(partial(self.driver.delete_snapshot, item.snapshot_id))

    def clone(self, volume: Alive) -> None:
        self.restored(volume, from_volume(volume.id))

    def restored(self, volume: Alive, source: csi.VolumeContentSource) -> None:
        """Make a volume from another's data, find that there, and change it."""
        copy = self.create(volume.kind, volume.ground, source, volume.data)
        self.check(copy)
        self.write(copy)
        self.delete(copy)

    def group(self, volume: Alive) -> None:
        """Take a group snapshot of two volumes, mostly of two pools, and restore a member."""
        other = self.create("block", self.chance.choice(GROUNDS))
        group = self.do(partial(self.driver.snapshot_group, self.name(), volume.id, other.id))
        assert len(group.snapshots) == 2
        self.do(
            partial(self.driver.delete_snapshot, group.snapshots[1].snapshot_id),
            Code.INVALID_ARGUMENT,
        )
        self.restored(volume, from_snapshot(group.snapshots[0].snapshot_id))
        self.do(partial(delete_group, self.driver, group))
        self.delete(other)

    def expand(self, volume: Alive) -> None:
        """Grow a volume in use; some kernels let nobody grow a mounted ext4."""
        with self.mounted(volume) as file:
            size = volume.size + 8 * MIB
            grown = self.do(partial(self.driver.expand, volume.id, size))
            assert grown.capacity_bytes == size
            place = file if volume.kind == "block" else file.parent
            self.do(partial(self.driver.node_expand, volume.id, place), Code.FAILED_PRECONDITION)
            if volume.kind == "block":
                with file.open("rb") as device:
                    assert device.seek(0, os.SEEK_END) == size

    def inline(self, volume: Alive) -> None:
        handle, target = f"csi-{self.name()}", self.folder / f"i-{self.name()}"
        context = POD | {"pool": volume.ground, "type": "image", "size": "16Mi"}
        publish = partial(self.driver.publish, handle, None, target, context=context)
        for _ in range(2):
            self.do(publish, what="publish inline")
        write(target / "file", volume.data)
        self.do(partial(self.driver.stats, handle, target))
        self.do(partial(self.driver.unpublish, handle, target), what="unpublish inline")
        assert not target.exists()

    def look(self, volume: Alive) -> None:
        """List everything page by page, and ask for what else there is to know."""
        self.do(
            partial(
                self.driver.modify, volume.id, onDelete=self.chance.choice(["retain", "delete"])
            )
        )
        found, token = [], ""
        while True:
            request = csi.ListVolumesRequest(max_entries=7, starting_token=token)
            page = self.do(partial(self.driver.controller.ListVolumes, request), what="list")
            found += [entry.volume.volume_id for entry in page.entries]
            assert not any(it.status.volume_condition.abnormal for it in page.entries), page
            if not (token := page.next_token):
                break
        assert volume.id in found
        assert found == sorted(set(found))
        answers = self.driver.controller
        validate = csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.id, volume_capabilities=[capability_of(volume.kind)]
        )
        assert self.do(
            partial(answers.ValidateVolumeCapabilities, validate), what="validate"
        ).confirmed
        capacity = csi.GetCapacityRequest(parameters={"pool": volume.ground})
        assert (
            self.do(partial(answers.GetCapacity, capacity), what="capacity").available_capacity > 0
        )

    def meddle(self) -> None:
        """Do something to what all threads share, and be content with any good reason not to."""
        name = f"shared-{self.chance.randrange(3)}"
        volume, driver = f"{name}@node-1", self.driver
        pool = self.chance.choice(GROUNDS)
        calls: list[Call] = [
            partial(driver.create, name, 4 * MIB, type="directory", quota="none", pool=pool),
            partial(driver.create, f"{name}-copy", 4 * MIB, source=from_volume(volume)),
            partial(driver.snapshot, name, volume),
            partial(driver.snapshot_group, name, volume, "shared-0@node-1"),
            partial(driver.expand, volume, 8 * MIB),
            partial(driver.modify, volume, onDelete="delete"),
            partial(driver.delete_snapshot, volume),
            partial(driver.delete, volume),
            partial(driver.delete, f"{name}-copy@node-1"),
        ]
        for call in self.chance.sample(calls, 3):
            codes(
                [outcome_of(call)],
                Code.ALREADY_EXISTS,
                Code.NOT_FOUND,
                Code.INVALID_ARGUMENT,  # a volume twice in a group
                Code.OUT_OF_RANGE,  # a source that has grown
            )
            self.tally["of what is shared"] += 1


def soak(driver: Driver, folder: Path, name: str, seconds: float) -> Tally[str]:
    """Let volumes live in all threads for a time, until the last has been deleted."""
    end, failed = time.monotonic() + seconds, threading.Event()
    lives = [
        Soak(driver, folder, random.Random(f"{name} {number}"), f"{name}-{number}")  # noqa: S311
        for number in range(THREADS)
    ]

    def run(lives: Soak) -> None:
        try:
            while time.monotonic() < end and not failed.is_set():
                lives.live()
        except BaseException:
            failed.set()
            raise

    together([partial(run, item) for item in lives], seconds + 120)
    delete_all(driver)
    return sum((item.tally for item in lives), Tally())


@dataclasses.dataclass(frozen=True, slots=True)
class Footprint:
    """What a driver's process occupies: open files, threads, and bytes of memory."""

    files: int
    threads: int
    memory: int

    @classmethod
    def of(cls, driver: Driver) -> "Footprint":
        assert driver.process is not None
        process = Path(f"/proc/{driver.process.pid}")
        fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return cls(
            files=len(list((process / "fd").iterdir())),
            threads=int(fields["Threads"]),
            memory=int(fields["VmRSS"].split()[0]) * 1024,
        )


def wait_for(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def is_empty(folder: Path) -> bool:
    return not names_in(folder)


def forget_groups(driver: Driver, pool: Path) -> None:
    """Delete a subvolume again and again, until those before it are forgotten."""

    def few() -> bool:
        driver.delete(driver.create("last", MIB, pool="btrfs", type="directory").volume_id)
        driver.reaped()
        run("btrfs", "filesystem", "sync", pool)
        run("btrfs", "subvolume", "sync", pool)  # waits until what was deleted is freed
        return len(names_in(pool / "deleted-groups")) <= FORGOTTEN

    wait_for(few, "the quota groups of deleted subvolumes are kept")


@pytest.mark.timeout(900)
def test_soak(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    counted: Counter,
    thorough: bool,
) -> None:
    """When all is deleted there is nothing left, and the process is no larger than it was."""
    pools = {ground: filesystem(ground, 6 * GIB) for ground in GROUNDS}
    options = f"overcommit=10,retain-for={RETAINED}s"
    driver = serve(*(f"{name}={pool},{options}" for name, pool in pools.items()))
    warm_up, rest = (120, 480) if thorough else (3, 6)
    tally = soak(driver, tmp_path, "warm-up", warm_up)
    before = Footprint.of(driver)
    tally += soak(driver, tmp_path, "soak", rest)
    after = Footprint.of(driver)
    counted("calls in the soak", tally.total())
    counted("KiB by which the driver has grown", (after.memory - before.memory) // 1024)
    assert len(tally) >= 20, f"not everything was done: {tally}"
    wait_for(lambda: Footprint.of(driver).files <= before.files, f"open files: {before} {after}")
    assert after.threads <= before.threads + THREADS, f"threads: {before} {after}"
    assert after.memory <= before.memory + LEAK, f"memory: {before} {after}"
    for pool in pools.values():
        wait_for(partial(is_empty, pool / "trash"), "what was retained stays")
        check_whole(driver, pool)
        check_unused(pool)
    forget_groups(driver, pools["btrfs"])
    assert "Traceback" not in driver.log
