"""A model of the whole API, held against a driver call by call.

It knows of every volume, snapshot and group what was answered and written, and of the node what is
staged and published where. From that it predicts the status code and the answer of the next call.
"""

import dataclasses
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from driver import GIB, MIB, Driver, Mode, from_snapshot, from_volume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from reliability.arena import (
    OK,
    PARAMETERS,
    POD,
    Call,
    Code,
    capability_of,
    delete_all,
    delete_group,
    outcome_of,
    read,
    write,
)
from reliability.conftest import check_unused, check_whole

from pycsi.linux import kernel
from pycsi.proto import csi_pb2 as csi

LARGE = 4 * GIB
SIZES = (MIB, 16 * MIB, 32 * MIB, LARGE)
LEAST = {"image": 16 * MIB}
INLINE = 16 * MIB

NAMES = ("a", "b", "c")
NUMBERS = (1, 2)
HANDLES = ("csi-1", "csi-2")

names = st.sampled_from(NAMES)
known = st.runner().flatmap(lambda it: st.sampled_from([*it.volumes, *it.volumes, *NAMES]))
"""A volume's name, mostly of one that there is."""

snapshot_names = st.sampled_from(["s", "t"])
group_names = st.sampled_from(["g", "h"])
handles = st.sampled_from(HANDLES)
kinds = st.sampled_from(list(PARAMETERS))
made = st.sampled_from(["directory", "image", "block"])
sizes = st.sampled_from(SIZES)
modes = st.sampled_from([Mode.SINGLE_NODE_MULTI_WRITER, Mode.SINGLE_NODE_WRITER])
numbers = st.sampled_from(NUMBERS)
rarely = st.sampled_from([False, False, False, True])
contents = st.binary(min_size=1, max_size=3).map(lambda text: text * 4000)
pages = st.integers(1, 3)


@dataclasses.dataclass
class Volume:
    """What is known of a volume. `content` is what was written to it, None where that is unknown.

    `asked` is the size of its creation, and whether that was the limit too.
    """

    kind: str
    asked: tuple[int, bool]
    source: str
    answer: csi.Volume
    content: bytes | None
    retained: bool = False
    staged: int | None = None
    published: dict[int, tuple[int, bool]] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        return int(self.answer.capacity_bytes)

    @property
    def written(self) -> bool:
        """Whether somebody may write to it, and it cannot be frozen."""
        return self.staged is not None and self.kind != "image"

    def satisfies(self, kind: str, size: int, source: str, *, exact: bool) -> bool:
        fits = size <= self.size and (not exact or size == self.size)
        return (self.kind, self.source) == (kind, source) and (fits or self.asked == (size, exact))


@dataclasses.dataclass
class Snapshot:
    """A snapshot; `volume` is its source as that was then, `of` that very object."""

    answer: csi.Snapshot
    of: Volume
    kind: str
    size: int
    content: bytes | None


def volume_id(name: str) -> str:
    return f"{name}@node-1"


def bounded(kind: str, size: int) -> int:
    """Return a size that is not too large to be formatted over and over."""
    return min(size, 64 * MIB) if kind == "image" else size


class Machine(RuleBasedStateMachine):
    """The rules are the RPCs; each says first how its call has to end."""

    driver: Driver
    pool: Path
    folder: Path
    ground: str
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.volumes: dict[str, Volume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.groups: dict[str, tuple[list[str], csi.VolumeGroupSnapshot]] = {}
        self.inlines: dict[str, tuple[str, bool]] = {}
        self.kept: list[int] = []
        self.room = self.available()

    def available(self) -> int:
        return int(self.driver.capacity(type="directory", quota="none").available_capacity)

    def expect(self, code: Code, call: Call) -> Any:
        """Make a call that has to end with `code`; return its answer."""
        type(self).calls += 1
        found = outcome_of(call)
        assert found.code is code, f"{found.code} {found.details!r}, not {code}"
        return found.answer

    def staging(self, name: str) -> Path:
        return self.folder / f"staging-{name}"

    def target(self, name: str, number: int) -> Path:
        return self.folder / f"target-{name}-{number}"

    # Volumes

    @initialize(kind=made, other=made, content=contents)
    def begin(self, kind: str, other: str, content: bytes) -> None:
        """Begin in the middle of things: with a volume in use, an idle one, and snapshots."""
        self.create("a", kind, 16 * MIB, exact=False)
        self.create("b", other, 16 * MIB, exact=False)
        self.stage("a", Mode.SINGLE_NODE_MULTI_WRITER, wrong=False)
        self.publish("a", 1, Mode.SINGLE_NODE_MULTI_WRITER, readonly=False)
        self.write("a", content)
        self.snapshot("s", "a")
        self.snapshot("t", "b")

    @rule(name=names, kind=kinds, size=sizes, exact=rarely)
    def create(self, name: str, kind: str, size: int, *, exact: bool) -> None:
        self._create(name, kind, bounded(kind, size), "", None, exact=exact)

    @rule(name=names, origin=known, size=sizes, exact=rarely, other=kinds, change=rarely)
    def clone(
        self, name: str, origin: str, size: int, other: str, *, exact: bool, change: bool
    ) -> None:
        source = self.volumes.get(origin)
        kind = other if change or source is None else source.kind
        self._create(name, kind, bounded(kind, size), f"volume {origin}", source, exact=exact)

    @rule(name=names, origin=snapshot_names, size=sizes, exact=rarely, other=kinds, change=rarely)
    def restore(
        self, name: str, origin: str, size: int, other: str, *, exact: bool, change: bool
    ) -> None:
        source = self.snapshots.get(volume_id(origin))
        kind = other if change or source is None else source.kind
        self._create(name, kind, bounded(kind, size), f"snapshot {origin}", source, exact=exact)

    def _create(
        self,
        name: str,
        kind: str,
        size: int,
        origin: str,
        source: Volume | Snapshot | None,
        *,
        exact: bool,
    ) -> None:
        what, _, origin_name = origin.partition(" ")
        make = {"": None, "volume": from_volume, "snapshot": from_snapshot}[what]
        call = partial(
            self.driver.create,
            name,
            size,
            limit=size if exact else 0,
            capability=capability_of(kind),
            parameters=PARAMETERS[kind],
            source=make and make(volume_id(origin_name)),
        )
        if found := self.volumes.get(name):
            if found.satisfies(kind, size, origin, exact=exact):
                assert self.expect(OK, call) == found.answer
            else:
                self.expect(Code.ALREADY_EXISTS, call)
            return
        code = self._creation(kind, size, origin, source, exact=exact)
        answer = self.expect(code, call)
        if code is OK:
            assert answer.volume_id == volume_id(name)
            assert answer.capacity_bytes == max(size, LEAST.get(kind, MIB))
            content = source.content if source and source.kind == kind else None
            self.volumes[name] = Volume(
                kind, (size, exact), origin, answer, content if origin else b""
            )
            if {kind, source.kind if source else kind} == {"directory", "limited"}:
                self.volumes[name].content = source.content if source else None
            assert self.expect(OK, call) == answer

    def _creation(
        self,
        kind: str,
        size: int,
        origin: str,
        source: Volume | Snapshot | None,
        *,
        exact: bool,
    ) -> Code:
        """Return how a creation of what is not there ends."""
        if origin and source is None:
            return Code.NOT_FOUND
        impossible = kind == "limited" and self.ground != "btrfs"
        if impossible or (source and not makes(source.kind, kind)):
            return Code.INVALID_ARGUMENT
        least = LEAST.get(kind, MIB)
        if (source and source.size > size) or (exact and size < least):
            return Code.OUT_OF_RANGE
        if max(size, least) > self.available():
            return Code.RESOURCE_EXHAUSTED
        if isinstance(source, Volume) and self._is_restless(source):
            return Code.FAILED_PRECONDITION
        return OK

    def _is_restless(self, volume: Volume) -> bool:
        """Tell whether no point in time can be had of a volume."""
        return volume.kind == "block" and volume.written and self.ground == "ext4"

    @rule(name=known)
    def delete(self, name: str) -> None:
        found = self.volumes.get(name)
        in_use = found and found.staged is not None
        self.expect(
            Code.FAILED_PRECONDITION if in_use else OK,
            partial(self.driver.delete, volume_id(name)),
        )
        if found and not in_use:
            del self.volumes[name]
            if found.retained:
                self.kept.append(found.size)

    @rule(name=known, size=sizes, exact=rarely)
    def expand(self, name: str, size: int, *, exact: bool) -> None:
        found = self.volumes.get(name)
        size = bounded(found.kind if found else "image", size)
        code = OK
        if found is None:
            code = Code.NOT_FOUND
        elif exact and size < found.size:
            code = Code.OUT_OF_RANGE
        elif size - found.size > self.available():
            code = Code.RESOURCE_EXHAUSTED
        answer = self.expect(
            code,
            partial(self.driver.expand, volume_id(name), size, size if exact else 0),
        )
        if found and code is OK:
            found.answer.capacity_bytes = max(found.size, size)
            assert answer.capacity_bytes == found.size
            assert answer.node_expansion_required is (found.kind == "image")

    @rule(name=known, value=st.sampled_from(["retain", "delete", "burn"]))
    def modify(self, name: str, value: str) -> None:
        found = self.volumes.get(name)
        code = Code.INVALID_ARGUMENT if value == "burn" else OK
        self.expect(
            code if found else Code.NOT_FOUND,
            partial(self.driver.modify, volume_id(name), onDelete=value),
        )
        if found and code is OK:
            found.retained = value == "retain"

    # Snapshots

    @rule(name=snapshot_names, of=known)
    def snapshot(self, name: str, of: str) -> None:
        call = partial(self.driver.snapshot, name, volume_id(of))
        source = self.volumes.get(of)
        if found := self.snapshots.get(volume_id(name)):
            same = found.answer.source_volume_id == volume_id(of)
            if same and (source is None or source is found.of):
                assert self.expect(OK, call) == found.answer
            else:
                self.expect(Code.ALREADY_EXISTS, call)
        elif source is None:
            self.expect(Code.NOT_FOUND, call)
        elif self._is_restless(source):
            self.expect(Code.FAILED_PRECONDITION, call)
        else:
            answer = self.expect(OK, call)
            assert self.expect(OK, call) == answer
            self._taken(answer, source)

    def _taken(self, answer: csi.Snapshot, source: Volume) -> None:
        assert answer.ready_to_use
        assert answer.size_bytes == source.size
        assert answer.source_volume_id == source.answer.volume_id
        self.snapshots[answer.snapshot_id] = Snapshot(
            answer, source, source.kind, source.size, source.content
        )

    @rule(name=snapshot_names, data=st.data(), member=rarely)
    def delete_snapshot(self, name: str, data: st.DataObject, *, member: bool) -> None:
        snapshot_id = volume_id(name)
        if member and self.snapshots:
            snapshot_id = data.draw(st.sampled_from(sorted(self.snapshots)))
        found = self.snapshots.get(snapshot_id)
        grouped = found and found.answer.group_snapshot_id
        self.expect(
            Code.INVALID_ARGUMENT if grouped else OK,
            partial(self.driver.delete_snapshot, snapshot_id),
        )
        if not grouped:
            self.snapshots.pop(snapshot_id, None)

    @rule(name=group_names, of=st.lists(known, min_size=1, max_size=3, unique=True))
    def snapshot_group(self, name: str, of: list[str]) -> None:
        call = partial(self.driver.snapshot_group, name, *map(volume_id, of))
        if found := self.groups.get(name):
            if set(found[0]) == set(of):
                assert self.expect(OK, call) == found[1]
            else:
                self.expect(Code.ALREADY_EXISTS, call)
            return
        sources = [self.volumes[it] for it in of if it in self.volumes]
        if len(sources) < len(of):
            self.expect(Code.NOT_FOUND, call)
        elif sum(it.written for it in sources) > 1 or any(map(self._is_restless, sources)):
            self.expect(Code.FAILED_PRECONDITION, call)
        else:
            answer = self.expect(OK, call)
            assert self.expect(OK, call) == answer
            self.groups[name] = (of, answer)
            for item, source in zip(answer.snapshots, sources, strict=True):
                assert item.group_snapshot_id == answer.group_snapshot_id == volume_id(name)
                assert item.creation_time == answer.creation_time
                self._taken(item, source)

    @rule(name=group_names, wrong=rarely)
    def look_at_group(self, name: str, *, wrong: bool) -> None:
        found = self.groups.get(name)
        members = [item.snapshot_id for item in found[1].snapshots] if found else []
        request = csi.GetVolumeGroupSnapshotRequest(
            group_snapshot_id=volume_id(name),
            snapshot_ids=["other@node-1"] if wrong else members,
        )
        code = Code.INVALID_ARGUMENT if wrong else OK
        answer = self.expect(
            code if found else Code.NOT_FOUND,
            partial(self.driver.group.GetVolumeGroupSnapshot, request),
        )
        if found and not wrong:
            assert answer.group_snapshot == found[1]

    @rule(name=group_names)
    def delete_group(self, name: str) -> None:
        group = csi.VolumeGroupSnapshot(group_snapshot_id=volume_id(name))
        if found := self.groups.pop(name, None):
            group = found[1]
        self.expect(OK, partial(delete_group, self.driver, group))
        for item in group.snapshots:
            del self.snapshots[item.snapshot_id]

    # The node

    def capability(self, name: str, mode: int, *, wrong: bool = False) -> csi.VolumeCapability:
        kind = self.volumes[name].kind if name in self.volumes else "image"
        kind = kind if not wrong else "image" if kind == "block" else "block"
        capability = capability_of(kind)
        capability.access_mode.mode = mode  # type: ignore[assignment]
        return capability

    @rule(name=known, mode=modes, wrong=rarely)
    def stage(self, name: str, mode: int, *, wrong: bool) -> None:
        found, code = self.volumes.get(name), OK
        if found is None:
            code = Code.NOT_FOUND
        elif found.staged is None:
            code = Code.FAILED_PRECONDITION if wrong else OK
        elif wrong or found.staged != mode:
            code = Code.ALREADY_EXISTS
        capability = self.capability(name, mode, wrong=wrong)
        call = partial(self.driver.stage, volume_id(name), self.staging(name), capability)
        self.expect(code, call)
        if found and code is OK:
            found.staged = mode

    @rule(name=known)
    def unstage(self, name: str) -> None:
        found, code = self.volumes.get(name), OK
        if found is None:
            code = Code.NOT_FOUND
        elif found.published:
            code = Code.FAILED_PRECONDITION
        self.expect(code, partial(self.driver.unstage, volume_id(name), self.staging(name)))
        if found and code is OK:
            found.staged = None

    @rule(name=known, number=numbers, mode=modes, readonly=rarely)
    def publish(self, name: str, number: int, mode: int, *, readonly: bool) -> None:
        found, code = self.volumes.get(name), OK
        if found is None:
            code = Code.NOT_FOUND
        elif number in found.published:
            same = found.published[number] == (mode, readonly)
            code = OK if same else Code.ALREADY_EXISTS
        elif (
            found.published
            and Mode.SINGLE_NODE_WRITER
            in {
                mode,
                *(there for there, _ in found.published.values()),
            }
        ) or found.staged is None:
            code = Code.FAILED_PRECONDITION
        self.expect(
            code,
            partial(
                self.driver.publish,
                volume_id(name),
                self.staging(name),
                self.target(name, number),
                self.capability(name, mode),
                readonly=readonly,
            ),
        )
        if found and code is OK:
            found.published[number] = (mode, readonly)

    @rule(name=known, number=numbers)
    def unpublish(self, name: str, number: int) -> None:
        found = self.volumes.get(name)
        call = partial(self.driver.unpublish, volume_id(name), self.target(name, number))
        self.expect(OK if found else Code.NOT_FOUND, call)
        if found:
            found.published.pop(number, None)

    @rule(handle=handles, kind=st.sampled_from(["image", "bigger image"]), readonly=rarely)
    def publish_inline(self, handle: str, kind: str, *, readonly: bool) -> None:
        size = "16Mi" if kind == "image" else str(INLINE)
        call = partial(
            self.driver.publish,
            handle,
            None,
            self.target(handle, 1),
            readonly=readonly,
            context=POD | {"size": size, "type": "image"},
        )
        wanted = (kind, readonly)
        there = self.inlines.get(handle, wanted)
        self.expect(OK if there == wanted else Code.ALREADY_EXISTS, call)
        self.inlines.setdefault(handle, wanted)

    @rule(handle=handles)
    def unpublish_inline(self, handle: str) -> None:
        self.expect(OK, partial(self.driver.unpublish, handle, self.target(handle, 1)))
        self.inlines.pop(handle, None)

    @rule(name=known, number=numbers)
    def measure(self, name: str, number: int) -> None:
        found = self.volumes.get(name)
        here = found is not None and number in found.published
        call = partial(self.driver.stats, volume_id(name), self.target(name, number))
        answer = self.expect(OK if here else Code.NOT_FOUND, call)
        if found and here:
            assert not answer.volume_condition.abnormal, answer.volume_condition.message
            if found.kind in {"block", "limited"}:
                assert answer.usage[0].total == found.size

    @rule(name=known)
    def node_expand(self, name: str) -> None:
        found = self.volumes.get(name)
        here = found is not None and found.staged is not None
        place = self.staging(name)
        if found and found.kind == "block" and not found.published:
            here = here and place.exists()
        outcome = outcome_of(partial(self.driver.node_expand, volume_id(name), place))
        if not here:
            assert outcome.code is Code.NOT_FOUND, outcome
        elif found and found.kind == "image":  # some kernels let nobody grow a mounted ext4
            assert outcome.code in {OK, Code.FAILED_PRECONDITION}, outcome
        else:
            assert outcome.code is OK, outcome

    @rule(name=known, content=contents)
    def write(self, name: str, content: bytes) -> None:
        found = self.volumes.get(name)
        for number, (_, readonly) in found.published.items() if found else ():
            if found and not readonly:
                target = self.target(name, number)
                write(target if found.kind == "block" else target / "file", content)
                found.content = content + (found.content or b"")[len(content) :]
                return

    # Looking

    @invariant()
    def mounted_as_answered(self) -> None:
        """See mounted what is published, with its content, and nothing else."""
        wanted = {
            str(self.target(name, number))
            for name, found in self.volumes.items()
            for number in found.published
        } | {str(self.target(handle, 1)) for handle in self.inlines}
        found = {
            item.target
            for item in kernel.mountinfo()
            if item.target.startswith(f"{self.folder}/target-")
        }
        assert found == wanted
        for name, volume in self.volumes.items():
            for number in volume.published:
                target = self.target(name, number)
                file = target if volume.kind == "block" else target / "file"
                if volume.content:
                    assert read(file, len(volume.content)) == volume.content

    @rule(size=pages)
    def list_volumes(self, size: int) -> None:
        found, token = [], ""
        while True:
            request = csi.ListVolumesRequest(max_entries=size, starting_token=token)
            page = self.expect(OK, partial(self.driver.controller.ListVolumes, request))
            assert len(page.entries) <= size
            assert not any(it.status.volume_condition.abnormal for it in page.entries), page
            found += [entry.volume for entry in page.entries]
            if not (token := page.next_token):
                break
        assert found == [item.answer for _, item in sorted(self.volumes.items())]

    @rule()
    def look_for_faults(self) -> None:
        assert self.driver.unwell() == []
        assert self.driver.storage_health() == []

    @rule(size=pages, of=st.one_of(st.none(), known))
    def list_snapshots(self, size: int, of: str | None) -> None:
        found, token, source = [], "", volume_id(of) if of else ""
        while True:
            request = csi.ListSnapshotsRequest(
                max_entries=size, starting_token=token, source_volume_id=source
            )
            page = self.expect(OK, partial(self.driver.controller.ListSnapshots, request))
            assert len(page.entries) <= size
            found += [entry.snapshot for entry in page.entries]
            if not (token := page.next_token):
                break
        every = [item.answer for _, item in sorted(self.snapshots.items())]
        assert found == [it for it in every if source in {"", it.source_volume_id}]

    @rule(name=known, wrong=rarely)
    def look_at_volume(self, name: str, *, wrong: bool) -> None:
        found = self.volumes.get(name)
        code = OK if found else Code.NOT_FOUND
        get = csi.ControllerGetVolumeRequest(volume_id=volume_id(name))
        answer = self.expect(code, partial(self.driver.controller.ControllerGetVolume, get))
        validate = csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume_id(name),
            volume_capabilities=[self.capability(name, Mode.SINGLE_NODE_MULTI_WRITER, wrong=wrong)],
        )
        valid = self.expect(
            code, partial(self.driver.controller.ValidateVolumeCapabilities, validate)
        )
        if found:
            assert answer.volume == found.answer
            assert not answer.status.volume_condition.abnormal, answer
            well = csi.VolumeHealth(volume_id=volume_id(name))
            assert self.driver.health(volume_id(name)) == well
            assert self.driver.node_health(volume_id(name)) == well
            assert valid.HasField("confirmed") is not wrong
            assert bool(valid.message) is wrong

    @rule()
    def measure_room(self) -> None:
        """Find promised what was created, and what is kept of it."""
        held = sum(item.size for item in self.volumes.values()) + sum(self.kept)
        left = self.room - held - INLINE * len(self.inlines)
        if self.snapshots:
            assert self.available() <= left
        else:
            assert self.available() == left

    @rule(number=st.sampled_from([signal.SIGTERM, signal.SIGKILL]), now=rarely)
    def restart(self, number: int, *, now: bool) -> None:
        if now:
            self.driver.restart(number)

    def teardown(self) -> None:
        """Undo whatever there is, and find nothing left."""
        listed = self.driver.volume_ids()
        for name in NAMES:
            if volume_id(name) in listed:
                for number in NUMBERS:
                    self.driver.unpublish(volume_id(name), self.target(name, number))
                self.driver.unstage(volume_id(name), self.staging(name))
        for handle in HANDLES:
            self.driver.unpublish(handle, self.target(handle, 1))
        delete_all(self.driver)
        empty = [sys.executable, "-m", "pycsi", "trash", "empty", "--all", "--yes"]
        subprocess.run([*empty, f"--pool=default={self.pool}"], check=True, capture_output=True)
        check_whole(self.driver, self.pool)
        check_unused(self.pool)
        assert "Traceback" not in self.driver.log


def makes(source: str, kind: str) -> bool:
    """Tell whether a volume of one kind can be made from one of another."""
    directories = {"directory", "limited"}
    if source in directories or kind in directories:
        return {source, kind} <= directories
    return kind == "block" or source == "image"
