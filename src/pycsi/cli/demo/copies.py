"""The claims about copies: snapshots, restored and cloned volumes, and volumes in the trash.

They are functions like those in `claims`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pycsi.cli.demo.claims import expect
from pycsi.cli.demo.files import DATA, Inventory, inventory
from pycsi.cli.demo.snapshots import Range
from pycsi.linux.descriptor import opened
from pycsi.linux.fiemap import extents
from pycsi.model.size import BLOCK, show
from pycsi.proto import csi_pb2 as csi

# Snapshots


def snapshot_idempotent(first: csi.Snapshot, again: csi.Snapshot, reason: str) -> str:
    """Prove that a retry gives the same snapshot, and that another volume cannot have its name."""
    expect(f"the same request gives {first}", again, true=first == again)
    expect("the reason names the snapshot's volume", reason, true=first.source_volume_id in reason)
    return "the same request again gives the same snapshot; another volume is refused its name"


def blocks_shared(copy: Path, source: Path, least: int) -> str:
    """Prove that two volumes or snapshots share the blocks of at least `least` bytes."""
    held = _held(copy)
    size = len(held & _held(source)) * BLOCK
    expect(f"{show(least)} or more in common with {source}", show(size), true=size >= least)
    return (
        f"{show(len(held) * BLOCK)}, of which {show(size)} are shared with the "
        f"{source.parent.name.removesuffix('s')}"
    )


def _held(place: Path) -> set[int]:
    """Return the disk offsets in bytes of all blocks of the files below `place`."""
    blocks: set[int] = set()
    for path in place.rglob("*"):
        if path.is_file():
            with opened(path) as fd:
                for item in extents(fd):
                    if item.located and item.written:
                        length = item.end - item.start
                        blocks |= set(range(item.physical, item.physical + length, BLOCK))
    return blocks


def snapshot_restored(target: Path, old: Inventory, new: Inventory) -> str:
    """Prove that a restored volume has its source's files as of the snapshot, not later ones."""
    expect("the volume has changed since its snapshot", "the same", true=old != new)
    _same(target, old)
    return f"{_described(old)} are as when the snapshot was taken, not as now"


def volume_cloned(target: Path, old: Inventory, new: Inventory) -> str:
    """Prove that a clone has the files that its source has now."""
    expect("the volume has changed since its snapshot", "the same", true=old != new)
    _same(target, new)
    return f"{_described(new)} are as the volume has them now"


def outlives_source(target: Path, expected: Inventory) -> str:
    """Prove that a volume keeps its files after its source volume and snapshot are deleted."""
    _same(target, expected)
    return f"{_described(expected)} are still there without the source"


def _described(files: Inventory) -> str:
    links = "; hard links" if any(name != file.first for name, file in files.items()) else ""
    holes = ", holes" if any(file.holes for file in files.values()) else ""
    return f"{len(files)} files ({show(files[DATA].size)}; SHA-256, modes{links}{holes})"


def _same(target: Path, expected: Inventory) -> None:
    found = inventory(target)
    expect(f"{target} holds {', '.join(expected)}", ", ".join(found), true=[*found] == [*expected])
    for name, file in expected.items():
        expect(f"{target / name} is {file}", found[name], true=found[name] == file)


# Groups


def members_listed(
    group: csi.VolumeGroupSnapshot, listed: Sequence[csi.Snapshot], volume_ids: Sequence[str]
) -> str:
    """Prove that a group has one member for each volume, and that ListSnapshots shows them so."""
    for members in (group.snapshots, listed):
        of_group = [item for item in members if item.group_snapshot_id == group.group_snapshot_id]
        volumes = sorted(item.source_volume_id for item in of_group)
        expect(f"members of {', '.join(volume_ids)}", volumes, true=volumes == sorted(volume_ids))
    return f"the group has a snapshot of each of the {len(volume_ids)} volumes; all are listed"


def one_moment(first: int, second: int, last: int) -> str:
    """Prove that the snapshots of two volumes are of one point in time.

    `first` and `second` are the numbers that they hold of a count which was written to the first
    volume, then to the second, and has gone on to `last`.
    """
    found = f"{first} in the first, {second} in the second, {last} at the end"
    expect("counting went on since", found, true=first < last)
    expect("a number in both, or only the first yet", found, true=first - second in {0, 1})
    return f"both are of one moment: of numbers up to {last} they hold {first} and {second}"


def not_deleted_alone(
    group: csi.VolumeGroupSnapshot, reason: str, listed: Sequence[csi.Snapshot]
) -> str:
    """Prove that deleting the group's first member alone was refused, and it still exists."""
    name = group.group_snapshot_id
    expect(f"the reason names {name}", reason, true=name in reason)
    expect("the member is still listed", listed, true=group.snapshots[0] in listed)
    return f"a member cannot be deleted without its group, {name}"


# Blocks


def blocks_restored(device: Path, expected: bytes) -> str:
    """Prove that a restored device has exactly the data that its source had at the snapshot."""
    found = device.read_bytes()
    expect(f"{len(expected)} bytes", len(found), true=len(found) == len(expected))
    other = [at for at in _blocks(expected) if _block(found, at) != _block(expected, at)]
    expect("all blocks as they were then", f"others at {other[:8]}", true=not other)
    return f"all {show(len(expected))} of the device are as when the snapshot was taken"


def allocated_blocks(data: bytes, allocated: Sequence[Range]) -> str:
    """Prove that the ranges are exactly the blocks of a device's `data` that are not zeros."""
    _exactly(allocated, bytes(len(data)), data)
    return f"{show(_total(allocated))} of {show(len(data))} hold data: all that is not zeros"


def changed_blocks(before: bytes, after: bytes, changed: Sequence[Range]) -> str:
    """Prove that the ranges are exactly the blocks that differ."""
    expect("something has changed", "nothing", true=before != after)
    _exactly(changed, before, after)
    return (
        f"{show(_total(changed))} in {len(changed)} ranges are exactly what differs; with these "
        "the first becomes the second"
    )


def _exactly(ranges: Sequence[Range], before: bytes, after: bytes) -> None:
    """Prove that exactly these ranges, copied from `after`, turn `before` into `after`."""
    made = bytearray(before)
    for start, end in ranges:
        made[start:end] = after[start:end]
    missed = [at for at in _blocks(after) if _block(made, at) != _block(after, at)]
    expect("no block is missed", f"missed: {missed[:8]}", true=not missed)
    covered = [at for start, end in ranges for at in range(start, end, BLOCK)]
    needless = [at for at in covered if _block(before, at) == _block(after, at)]
    expect("no block is there needlessly", f"needless: {needless[:8]}", true=not needless)


def _blocks(data: bytes) -> range:
    return range(0, len(data), BLOCK)


def _block(data: bytes | bytearray, at: int) -> bytes | bytearray:
    return data[at : at + BLOCK]


def _total(ranges: Iterable[Range]) -> int:
    return sum(end - start for start, end in ranges)


# Trash


def kept_in_trash(pool: Path, volume_id: str, entries: Sequence[str]) -> str:
    """Prove that a deleted volume has left volumes/, and is one entry in trash/ with its record."""
    expect("one entry in trash/ that is kept", entries, true=len(entries) == 1)
    place = pool / "volumes" / volume_id
    expect("it is no volume any more", place, true=not place.exists())
    expect(
        "its record is there", "none", true=(pool / "trash" / entries[0] / "volume.json").exists()
    )
    return f"it is in the trash: {entries[0]}"


def brought_back(volume_id: str, status: int, printed: str) -> str:
    """Prove that the restore command has succeeded and printed the volume's id."""
    found = f"{status}, {printed}"
    expect(f"status 0, {volume_id}", found, true=(status, printed) == (0, volume_id))
    return f"volume {volume_id} is a volume again"
