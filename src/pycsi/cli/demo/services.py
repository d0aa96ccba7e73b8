"""The lives that show the data services: snapshots, copies, changed blocks, and the trash."""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

from pycsi.cli.demo import (
    claims,
    copies,
    files,
    process,
)
from pycsi.cli.demo.files import Inventory
from pycsi.cli.demo.lives import Proofs
from pycsi.cli.demo.snapshots import Range, Snapshots
from pycsi.cli.demo.volume import Volume
from pycsi.model.size import BLOCK, KIB, MIB

_COUNTER = "counter"
_PACE = 0.0005
"""Seconds between two numbers of `_Counting`."""


def copied(volume: Volume, proofs: Proofs) -> None:
    """Show the life of a mounted volume with a snapshot, which is restored, and a clone."""
    snapshots = Snapshots(volume.client)
    volumes = volume.plan.pool.path / "volumes"
    volume.create()
    target = volume.use()
    old = files.fill(target, volume.plan.size // 2)
    snapshot = snapshots.take("before", volume)
    held = volume.plan.pool.path / "snapshots" / snapshot.snapshot_id
    _shared(volume, proofs, held, volumes / volume.id)
    new = files.change(target)

    restored = volume.restored("restored", snapshot)
    _shared(volume, proofs, volumes / restored.id, held)
    restored_target = restored.use()
    proofs.prove(copies.snapshot_restored, restored_target, old, new)
    clone = volume.cloned("clone")
    _shared(volume, proofs, volumes / clone.id, volumes / volume.id)
    clone_target = clone.use()
    proofs.prove(copies.volume_cloned, clone_target, old, new)
    again = snapshots.take("before", volume, "the same again")
    reason = snapshots.take_other("before", clone)
    proofs.prove(copies.snapshot_idempotent, snapshot, again, reason)

    volume.withdraw(target)
    volume.delete()
    snapshots.delete(snapshot)
    _outlive(restored, proofs, restored_target, old)
    _outlive(clone, proofs, clone_target, new)
    proofs.prove(claims.nothing_left, volume.plan.pool.path, volume.folder.parent)


def _shared(volume: Volume, proofs: Proofs, copy: Path, source: Path) -> None:
    """Prove that a copy shares the blocks of `files.fill`, if the pool can share blocks."""
    pool = volume.plan.pool
    if pool.shares:
        proofs.prove(copies.blocks_shared, copy, source, volume.plan.size // 2)
    else:
        proofs.say(f"a copy, for files on {pool.fstype} cannot share blocks")


def _outlive(volume: Volume, proofs: Proofs, target: Path, expected: Inventory) -> None:
    """Prove that a volume keeps its files without its source, after it was published again."""
    volume.withdraw(target)
    target = volume.use()
    proofs.prove(copies.outlives_source, target, expected)
    volume.withdraw(target)
    volume.delete()


# Groups


class _Counting:
    """Counts during a `with` block: writes each number into all files in turn, then the next."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.number = 0
        self._paths = list(paths)
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1)
        self._counted = self._thread.submit(self._count)
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown()

    def _count(self) -> None:
        with contextlib.ExitStack() as opened:
            open_files = [opened.enter_context(path.open("xb", 0)) for path in self._paths]
            while not self._stop.wait(_PACE):
                self.number += 1
                for file in open_files:
                    os.pwrite(file.fileno(), b"%020d" % self.number, 0)

    def go_on(self) -> None:
        """Wait until some more numbers are written; raise the error if counting has failed."""
        enough = self.number + 4
        while self.number < enough:
            if self._counted.done():
                self._counted.result()
            time.sleep(_PACE)


def grouped(volume: Volume, proofs: Proofs) -> None:
    """Show the lives of two volumes, with a group snapshot while both are written to."""
    snapshots = Snapshots(volume.client)
    volumes = [volume, volume.another("second")]
    for member in volumes:
        member.create()
    targets = [member.use() for member in volumes]
    with _Counting(target / _COUNTER for target in targets) as counting:
        group = snapshots.take_group("both", volumes)
        counting.go_on()
    ids = [member.id for member in volumes]
    proofs.prove(copies.members_listed, group, snapshots.listed(), ids)

    taken = {member.source_volume_id: member for member in group.snapshots}
    restored = [member.restored("restored", taken[member.id]) for member in volumes]
    restored_targets = [member.use() for member in restored]
    first, second = (int((target / _COUNTER).read_bytes()) for target in restored_targets)
    proofs.prove(copies.one_moment, first, second, counting.number)

    reason = snapshots.delete_member(group.snapshots[0])
    proofs.prove(copies.not_deleted_alone, group, reason, snapshots.listed())
    snapshots.delete_group(group)
    for member, target in zip(volumes + restored, targets + restored_targets, strict=True):
        member.withdraw(target)
        member.delete()
    proofs.prove(claims.nothing_left, volume.plan.pool.path, volume.folder.parent)


# Blocks


def compared(volume: Volume, proofs: Proofs) -> None:
    """Show the life of a raw block volume with two snapshots, and the blocks that differ."""
    snapshots = Snapshots(volume.client)
    size = volume.plan.size
    before = os.urandom(size // 2).ljust(size, b"\0")
    changes = {start: os.urandom(end - start) for start, end in _scattered(size)}
    after = bytearray(before)
    for start, data in changes.items():
        after[start : start + len(data)] = data

    volume.create()
    target = volume.use()
    with target.open("r+b") as device:  # kept open, so that closing it does not synchronise it
        _write(device, {0: before[: size // 2]})
        base = snapshots.take("before", volume)
        _write(device, changes)
        later = snapshots.take("after", volume)
    for name, snapshot, expected in (("old", base, before), ("new", later, bytes(after))):
        restored = volume.restored(name, snapshot)
        restored_target = restored.use()
        proofs.prove(copies.blocks_restored, restored_target, expected)
        restored.withdraw(restored_target)
        restored.delete()
    proofs.prove(copies.allocated_blocks, before, snapshots.allocated(base))
    proofs.prove(copies.changed_blocks, before, bytes(after), snapshots.changed(base, later))

    volume.withdraw(target)
    volume.delete()
    snapshots.delete(base)
    snapshots.delete(later)
    proofs.prove(claims.nothing_left, volume.plan.pool.path, volume.folder.parent)


def _scattered(size: int) -> list[Range]:
    """Return ranges at both ends of a device, in its full first half, and in its empty second."""
    lengths = {0: BLOCK, size // 4: MIB, size // 8 * 5: 64 * KIB, size - BLOCK: BLOCK}
    return [(start, start + length) for start, length in lengths.items()]


def _write(device: BinaryIO, pieces: Mapping[int, bytes]) -> None:
    for start, data in pieces.items():
        device.seek(start)
        device.write(data)
    device.flush()


# Trash


def retained(volume: Volume, proofs: Proofs) -> None:
    """Show the life of a volume that is deleted into the trash, restored, and deleted for good."""
    pool = volume.plan.pool
    volume.create()
    target = volume.use()
    proofs.prove(claims.keeps_files, target)
    volume.withdraw(target)
    volume.modify(onDelete="retain")
    volume.delete()
    volume.refuse_deleted()
    entries = [item.name for item in (pool.path / "trash").glob(f"{volume.id}.*.kept.*")]
    proofs.prove(copies.kept_in_trash, pool.path, volume.id, entries)

    command = ("trash", "restore", pool.option, entries[0])
    proofs.run(f"pycsi {' '.join(command)}")
    status, printed = process.run(*command)
    proofs.prove(copies.brought_back, volume.id, status, printed)
    target = volume.use()
    proofs.prove(claims.data_survives, target)
    volume.withdraw(target)
    volume.modify(onDelete="delete")
    volume.delete()
    proofs.prove(claims.nothing_left, pool.path, volume.folder.parent)
