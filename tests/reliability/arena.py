"""Calls that meet: sent at once from many threads, with how each ended and when."""

import contextlib
import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from driver import MIB, Driver, block_capability, mount_capability

from pycsi.linux import kernel, loop
from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
OK = Code.OK
PATIENCE = 60.0
"""Seconds within which every call has to be answered."""

KINDS = ("directory", "limited", "image", "block")
SIZES = {"directory": 4 * MIB, "limited": 4 * MIB, "image": 16 * MIB, "block": 4 * MIB}
PARAMETERS = {
    "directory": {"type": "directory", "quota": "none"},
    "limited": {"type": "directory"},
    "image": {"type": "image"},
    "block": {},
}
POD = {"csi.storage.k8s.io/ephemeral": "true"}

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended; `began` and `ended` are seconds of one clock."""

    code: grpc.StatusCode
    answer: Any
    details: str
    began: float
    ended: float

    @property
    def good(self) -> bool:
        return self.code is OK


def outcome_of(call: Call) -> Outcome:
    """Make a call; one that is answered late, or with a code that explains nothing, fails."""
    began, answer, code, details = time.monotonic(), None, OK, ""
    try:
        answer = call()
    except grpc.RpcError as error:
        failure: Any = error
        code, details = failure.code(), failure.details()
        assert details, f"{code} without a message"
    ended = time.monotonic()
    assert ended - began < PATIENCE, f"answered after {ended - began:.0f} s"
    assert code not in {Code.UNKNOWN, Code.INTERNAL}, f"{code}: {details}"
    return Outcome(code, answer, details, began, ended)


def together(works: Sequence[Callable[[], None]], seconds: float) -> None:
    """Run every work in a thread of its own, all at once; raise what one of them raises."""
    start, failures = threading.Barrier(len(works)), []

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait(PATIENCE)
            work()
        except BaseException as error:  # noqa: BLE001  (raised below, by the thread that waits)
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), f"no end after {seconds:.0f} s"


def settle(call: Call) -> Outcome:
    """Repeat a call as an orchestrator does, until it is not told to come back later."""
    deadline = time.monotonic() + PATIENCE
    while (found := outcome_of(call)).code is Code.ABORTED:
        assert time.monotonic() < deadline, f"aborted for {PATIENCE:.0f} s: {found.details}"
        time.sleep(0.01)
    return found


def codes(outcomes: Collection[Outcome], *allowed: grpc.StatusCode) -> bool:
    """Check that calls ended as they may, ABORTED included; tell whether one succeeded."""
    for item in outcomes:
        assert item.code in {OK, Code.ABORTED, *allowed}, f"{item.code}: {item.details}"
    return any(item.good for item in outcomes)


def capability_of(kind: str) -> csi.VolumeCapability:
    return block_capability() if kind == "block" else mount_capability()


@dataclasses.dataclass
class Arena:
    """One volume `v` after another of the kind `kind`, and what is raced over it.

    `delays` are the seconds by which one side of a race begins later, one for each race.
    """

    driver: Driver
    folder: Path
    delays: Iterator[float]
    kind: str = "directory"
    operations: int = 0
    _names: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def name(self, prefix: str) -> str:
        """Return a name that nothing has had."""
        return f"{prefix}{next(self._names)}"

    @property
    def size(self) -> int:
        return SIZES[self.kind]

    @property
    def capability(self) -> csi.VolumeCapability:
        return capability_of(self.kind)

    def create(
        self, name: str, size: int = 0, source: csi.VolumeContentSource | None = None
    ) -> str:
        return str(
            self.driver.create(
                name,
                size or self.size,
                capability=self.capability,
                parameters=PARAMETERS[self.kind],
                source=source,
            ).volume_id
        )

    def path(self, what: str, volume_id: str) -> Path:
        return self.folder / f"{what}-{volume_id}"

    def stage(self, volume_id: str) -> None:
        self.driver.stage(volume_id, self.path("staging", volume_id), self.capability)

    def unstage(self, volume_id: str) -> None:
        self.driver.unstage(volume_id, self.path("staging", volume_id))

    def publish(self, volume_id: str) -> None:
        staging, target = self.path("staging", volume_id), self.path("target", volume_id)
        self.driver.publish(volume_id, staging, target, self.capability)

    def unpublish(self, volume_id: str) -> None:
        self.driver.unpublish(volume_id, self.path("target", volume_id))

    @contextlib.contextmanager
    def mounted(self, volume_id: str) -> Iterator[Path]:
        """Stage and publish a volume through the `with` block; yield its file or its device."""
        self.stage(volume_id)
        self.publish(volume_id)
        target = self.path("target", volume_id)
        try:
            yield target if self.kind == "block" else target / "file"
        finally:
            self.unpublish(volume_id)
            self.unstage(volume_id)

    def write(self, volume_id: str, data: bytes) -> None:
        with self.mounted(volume_id) as file:
            write(file, data)

    def check_data(self, volume_id: str, data: bytes) -> None:
        with self.mounted(volume_id) as file:
            assert read(file, len(data)) == data, f"{volume_id} holds something else"

    def is_staged(self, volume_id: str) -> bool:
        """Tell whether the kernel has the volume where it is staged."""
        if self.kind == "block":
            return bool(loop.find(self.driver.folders[0] / "volumes" / volume_id / "disk.img"))
        return kernel.topmost(self.path("staging", volume_id)) is not None

    def is_published(self, volume_id: str) -> bool:
        """Tell whether the kernel has the volume at its target, which exists only then."""
        target = self.path("target", volume_id)
        found = kernel.topmost(target) is not None
        assert found is os.path.lexists(target), f"{target}: mounted {found}, and yet"
        return found

    def race(self, *sides: Call, each: int = 2) -> list[list[Outcome]]:
        """Make the calls of every side at once, `each` of them, the later sides a little later."""
        found: list[list[Outcome]] = [[] for _ in sides]
        late = next(self.delays)

        def work(number: int, call: Call) -> None:
            time.sleep(late * number)
            found[number].append(outcome_of(call))

        works = [
            partial(work, number, call) for number, call in enumerate(sides) for _ in range(each)
        ]
        together(works, PATIENCE + 10)
        self.operations += len(works)
        return found

    def delete(self, *volume_ids: str) -> None:
        for volume_id in volume_ids:
            assert settle(partial(self.driver.delete, volume_id)).good
            self.gone(volume_id)

    def gone(self, volume_id: str) -> None:
        """Check that nothing of a volume is left for anybody to see."""
        assert volume_id not in self.driver.volume_ids()
        assert not (self.driver.folders[0] / "volumes" / volume_id).exists()
        assert kernel.topmost(self.path("staging", volume_id)) is None


def write(file: Path, data: bytes) -> None:
    """Write durably to a file, or to a device, without its cache."""
    fd = os.open(file, os.O_WRONLY | (0 if file.exists() else os.O_CREAT), 0o600)
    try:
        os.pwrite(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def read(file: Path, size: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(size)


def delete_group(driver: Driver, group: csi.VolumeGroupSnapshot) -> None:
    driver.delete_group(group.group_snapshot_id, *(item.snapshot_id for item in group.snapshots))


def delete_all(driver: Driver) -> None:
    """Delete all that is listed; nothing of it may be in use."""
    groups: dict[str, csi.VolumeGroupSnapshot] = {}
    for item in driver.snapshots():
        if group_id := item.group_snapshot_id:
            group = csi.VolumeGroupSnapshot(group_snapshot_id=group_id)
            groups.setdefault(group_id, group).snapshots.append(item)
        else:
            driver.delete_snapshot(item.snapshot_id)
    for group in groups.values():
        delete_group(driver, group)
    for volume_id in driver.volume_ids():
        driver.delete(volume_id)
    driver.reaped()
