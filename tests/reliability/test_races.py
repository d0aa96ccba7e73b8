"""Calls that meet, in every pair that could hurt: some order of them explains what is there."""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from driver import MIB, Driver, from_snapshot, from_volume
from reliability.arena import KINDS, POD, Arena, Code, codes, delete_group, outcome_of, settle
from reliability.conftest import Counter, check_unused, check_whole

from pycsi.linux import kernel
from pycsi.proto import csi_pb2 as csi

DATA = b"written before" * 100
LONGEST_DELAY = 0.06
ROUNDS = 10

Pair = Callable[[Arena], None]


def delete_against_stage(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    deletions, stagings = arena.race(
        lambda: arena.driver.delete(volume), lambda: arena.stage(volume)
    )
    deleted = codes(deletions, Code.FAILED_PRECONDITION)
    staged = codes(stagings, Code.NOT_FOUND)
    assert not (deleted and staged), "deleted, and staged"
    assert deleted or all(item.code is not Code.NOT_FOUND for item in stagings)
    assert staged or all(item.code is not Code.FAILED_PRECONDITION for item in deletions)
    assert arena.is_staged(volume) is staged if not deleted else True
    if staged:
        arena.unstage(volume)
    if deleted:
        arena.gone(volume)
    arena.delete(volume)


def snapshot_against_expand(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    arena.write(volume, DATA)
    name, larger = arena.name("s"), 2 * arena.size
    taken, grown = arena.race(
        lambda: arena.driver.snapshot(name, volume), lambda: arena.driver.expand(volume, larger)
    )
    codes(taken)
    if codes(grown):
        assert {item.answer.capacity_bytes for item in grown if item.good} == {larger}
    snapshot = settle(lambda: arena.driver.snapshot(name, volume)).answer
    assert all(item.answer == snapshot for item in taken if item.good)
    assert snapshot.size_bytes in {arena.size, larger}
    assert settle(lambda: arena.driver.expand(volume, larger)).answer.capacity_bytes == larger
    copy = arena.create(arena.name("r"), larger, from_snapshot(snapshot.snapshot_id))
    arena.check_data(copy, DATA)
    arena.delete(volume, copy)
    arena.driver.delete_snapshot(snapshot.snapshot_id)


def clone_against_delete(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    arena.write(volume, DATA)
    name = arena.name("c")
    clones, deletions = arena.race(
        lambda: arena.create(name, 0, from_volume(volume)), lambda: arena.driver.delete(volume)
    )
    codes(deletions)
    cloned = codes(clones, Code.NOT_FOUND)
    arena.delete(volume)
    if cloned:
        copy = next(item.answer for item in clones if item.good)
        arena.check_data(copy, DATA)
        arena.delete(copy)
    else:
        arena.gone(f"{name}@node-1")


def restore_against_delete(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    arena.write(volume, DATA)
    snapshot = arena.driver.snapshot(arena.name("s"), volume).snapshot_id
    names = [arena.name("r"), arena.name("r")]
    first, second, deletions = arena.race(
        lambda: arena.create(names[0], 0, from_snapshot(snapshot)),
        lambda: arena.create(names[1], 0, from_snapshot(snapshot)),
        lambda: arena.driver.delete_snapshot(snapshot),
    )
    codes(deletions)
    assert settle(lambda: arena.driver.delete_snapshot(snapshot)).good
    assert arena.driver.snapshots(snapshot_id=snapshot) == []
    for name, restored in zip(names, (first, second), strict=True):
        if codes(restored, Code.NOT_FOUND):
            arena.check_data(f"{name}@node-1", DATA)
            arena.delete(f"{name}@node-1")
        else:
            arena.gone(f"{name}@node-1")
    arena.delete(volume)


def create_against_create(arena: Arena) -> None:
    name, sizes = arena.name("v"), (arena.size, 2 * arena.size)
    outcomes = arena.race(
        lambda: arena.driver.create(name, sizes[0], limit=sizes[0], quota="none"),
        lambda: arena.driver.create(name, sizes[1], quota="none"),
    )
    made = [codes(side, Code.ALREADY_EXISTS) for side in outcomes]
    assert sum(made) == 1, "of two sizes there can be one"
    winners = outcomes[made.index(True)]
    answers = [item.answer for item in winners if item.good]
    assert all(item == answers[0] for item in answers)
    assert all(item.code is not Code.ALREADY_EXISTS for item in winners)
    create = arena.driver.create
    again = [settle(partial(create, name, size, limit=size, quota="none")) for size in sizes]
    assert [item.good for item in again] == made
    arena.delete(answers[0].volume_id)


def publish_against_unstage(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    arena.stage(volume)
    published, unstaged = arena.race(lambda: arena.publish(volume), lambda: arena.unstage(volume))
    is_published = codes(published, Code.FAILED_PRECONDITION)
    was_unstaged = codes(unstaged, Code.FAILED_PRECONDITION)
    assert not (is_published and was_unstaged), "unstaged under what is published"
    assert arena.is_published(volume) is is_published
    assert arena.is_staged(volume) is not was_unstaged
    assert settle(lambda: arena.unpublish(volume)).good
    assert settle(lambda: arena.unstage(volume)).good
    assert not arena.is_published(volume)
    arena.delete(volume)


def unpublish_against_publish(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    arena.stage(volume)
    arena.publish(volume)
    for item in itertools.chain(
        *arena.race(lambda: arena.unpublish(volume), lambda: arena.publish(volume))
    ):
        codes([item])
    arena.is_published(volume)
    assert settle(lambda: arena.publish(volume)).good
    assert arena.is_published(volume)
    arena.unpublish(volume)
    assert not arena.is_published(volume)
    arena.unstage(volume)
    arena.delete(volume)


def group_against_delete(arena: Arena) -> None:
    volumes = [arena.create(arena.name("v")) for _ in range(3)]
    arena.write(volumes[1], DATA)
    name = arena.name("g")
    groups, deletions = arena.race(
        lambda: arena.driver.snapshot_group(name, *volumes),
        lambda: arena.driver.delete(volumes[1]),
    )
    codes(deletions)
    grouped = codes(groups, Code.NOT_FOUND)
    arena.delete(*volumes)
    members = arena.driver.snapshots()
    assert len(members) == (3 if grouped else 0)
    if grouped:
        group = next(item.answer for item in groups if item.good)
        assert list(group.snapshots) == sorted(
            members, key=lambda item: volumes.index(item.source_volume_id)
        )
        member = group.snapshots[1].snapshot_id
        copy = arena.create(arena.name("r"), 0, from_snapshot(member))
        arena.check_data(copy, DATA)
        arena.delete(copy)
        delete_group(arena.driver, group)


def expand_against_delete(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    grown, deletions = arena.race(
        lambda: arena.driver.expand(volume, 2 * arena.size), lambda: arena.driver.delete(volume)
    )
    codes(grown, Code.NOT_FOUND)
    codes(deletions)
    arena.delete(volume)
    assert settle(lambda: arena.driver.expand(volume, 2 * arena.size)).code is Code.NOT_FOUND


def delete_against_delete(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    (deletions,) = arena.race(lambda: arena.driver.delete(volume), each=8)
    assert codes(deletions)
    arena.gone(volume)


def stage_against_stage(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    (stagings,) = arena.race(lambda: arena.stage(volume), each=8)
    assert codes(stagings)
    assert arena.is_staged(volume)
    staging = arena.path("staging", volume)
    assert len([item for item in kernel.mountinfo() if item.target == str(staging)]) == (
        arena.kind != "block"
    )
    arena.unstage(volume)
    assert not arena.is_staged(volume)
    arena.delete(volume)


def stage_against_unstage(arena: Arena) -> None:
    volume = arena.create(arena.name("v"))
    for side in arena.race(lambda: arena.stage(volume), lambda: arena.unstage(volume), each=4):
        codes(side)
    assert settle(lambda: arena.stage(volume)).good
    assert arena.is_staged(volume)
    arena.unstage(volume)
    assert not arena.is_staged(volume)
    arena.delete(volume)


def inline_against_inline(arena: Arena) -> None:
    handle = "csi-" + arena.name("0123456789abcdef")
    target = arena.path("target", handle)
    context = POD | {"size": "16Mi", "type": "image"}
    sides = arena.race(
        lambda: arena.driver.publish(handle, None, target, context=context),
        lambda: arena.driver.unpublish(handle, target),
        each=3,
    )
    for side in sides:
        codes(side)
    made = list((arena.driver.folders[0] / "volumes").iterdir())
    assert len(made) == arena.is_published(handle)
    assert settle(lambda: arena.driver.unpublish(handle, target)).good
    assert list((arena.driver.folders[0] / "volumes").iterdir()) == []
    assert not arena.is_published(handle)


def stats_against_unpublish(arena: Arena) -> None:
    """Measure the volume, never what lies below its target."""
    volume = arena.create(arena.name("v"))
    arena.stage(volume)
    arena.publish(volume)
    target = arena.path("target", volume)
    total = arena.driver.stats(volume, target).usage[0].total
    measured, unpublished = arena.race(
        lambda: [outcome_of(lambda: arena.driver.stats(volume, target)) for _ in range(5)],
        lambda: arena.unpublish(volume),
    )
    for found in itertools.chain.from_iterable(item.answer for item in measured):
        codes([found], Code.NOT_FOUND)
        if found.good:
            assert not found.answer.volume_condition.abnormal, found.answer
            assert [item.total for item in found.answer.usage][:1] in ([total], [])
    codes(unpublished)
    assert settle(lambda: arena.unpublish(volume)).good
    assert settle(lambda: arena.unstage(volume)).good
    arena.delete(volume)


def looks_against_a_life(arena: Arena) -> None:
    """Whoever looks neither sees a fault that is none, nor keeps anything from being undone."""
    volume = f"{arena.name('v')}@node-1"

    def live() -> None:
        arena.create(volume.partition("@")[0])
        arena.stage(volume)
        arena.publish(volume)
        arena.unpublish(volume)
        arena.unstage(volume)
        arena.driver.expand(volume, 2 * arena.size)
        arena.driver.delete(volume)

    def look() -> None:
        for _ in range(8):
            listed = arena.driver.controller.ListVolumes(csi.ListVolumesRequest())
            for entry in listed.entries:
                condition = entry.status.volume_condition
                assert not condition.abnormal, f"{entry.volume.volume_id}: {condition.message}"
            found = outcome_of(lambda: arena.driver.condition(volume))
            codes([found], Code.NOT_FOUND)
            assert not found.good or not found.answer.abnormal, found.answer.message
            assert arena.driver.unwell() == []
            for ask in (arena.driver.health, arena.driver.node_health):
                told = outcome_of(lambda: ask(volume))  # noqa: B023
                codes([told], Code.NOT_FOUND)
                assert not told.good or not told.answer.health_statuses, told.answer

    lived, _, _ = arena.race(live, look, look, each=1)
    assert lived[0].good, lived[0].details
    arena.gone(volume)


def modify_against_expand(arena: Arena) -> None:
    """Neither of two changes of one record is lost."""
    volume = arena.create(arena.name("v"))
    modified, grown = arena.race(
        lambda: arena.driver.modify(volume, onDelete="retain"),
        lambda: arena.driver.expand(volume, 2 * arena.size),
    )
    retained = codes(modified)
    larger = codes(grown)
    listed = arena.driver.controller.ControllerGetVolume(
        csi.ControllerGetVolumeRequest(volume_id=volume)
    )
    assert listed.volume.capacity_bytes == (2 if larger else 1) * arena.size
    arena.delete(volume)
    kept = list((arena.driver.folders[0] / "trash").glob(f"{volume}.*.kept.*"))
    assert len(kept) == retained
    for entry in kept:
        entry.rename(entry.with_name(entry.name.replace(".kept.", ".gone.")))
    arena.driver.delete(arena.create(arena.name("v")))  # so that the trash is looked at


def group_against_itself(arena: Arena) -> None:
    """See a group and its members come and go together, whoever meddles."""
    volumes = [arena.create(arena.name("v")) for _ in range(2)]
    name = arena.name("g")
    group = arena.driver.snapshot_group(name, *volumes)
    members = [item.snapshot_id for item in group.snapshots]
    request = csi.GetVolumeGroupSnapshotRequest(
        group_snapshot_id=group.group_snapshot_id, snapshot_ids=members
    )
    deletions, meddling, found = arena.race(
        lambda: delete_group(arena.driver, group),
        lambda: arena.driver.delete_snapshot(members[0]),
        lambda: arena.driver.group.GetVolumeGroupSnapshot(request).group_snapshot,
    )
    deleted = codes(deletions)
    codes(meddling, Code.INVALID_ARGUMENT)
    codes(found, *([Code.NOT_FOUND] if deleted else []))
    assert all(item.answer == group for item in found if item.good)
    assert len(arena.driver.snapshots()) == (0 if deleted else 2)
    assert settle(lambda: delete_group(arena.driver, group)).good
    assert arena.driver.snapshots() == []
    arena.delete(*volumes)


def blocks_against_delete(arena: Arena) -> None:
    """Read all of a snapshot, or nothing."""
    if arena.kind in {"directory", "limited"}:
        return
    volume = arena.create(arena.name("v"))
    arena.write(volume, os.urandom(MIB))
    first, second = (arena.driver.snapshot(arena.name("s"), volume).snapshot_id for _ in range(2))
    whole, changed = arena.driver.allocated(first), arena.driver.delta(first, second)
    read, compared, deletions = arena.race(
        lambda: arena.driver.allocated(first),
        lambda: arena.driver.delta(first, second),
        lambda: arena.driver.delete_snapshot(first),
    )
    codes(deletions)
    codes(read, Code.NOT_FOUND)
    codes(compared, Code.NOT_FOUND)
    assert all(item.answer == whole for item in read if item.good)
    assert all(item.answer == changed for item in compared if item.good)
    for snapshot in (first, second):
        assert settle(partial(arena.driver.delete_snapshot, snapshot)).good
    arena.delete(volume)


PAIRS: tuple[Pair, ...] = (
    delete_against_stage,
    snapshot_against_expand,
    clone_against_delete,
    restore_against_delete,
    create_against_create,
    publish_against_unstage,
    unpublish_against_publish,
    group_against_delete,
    expand_against_delete,
    delete_against_delete,
    stage_against_stage,
    stage_against_unstage,
    inline_against_inline,
    stats_against_unpublish,
    looks_against_a_life,
    modify_against_expand,
    group_against_itself,
    blocks_against_delete,
)


def delays(ground: str) -> Iterator[float]:
    chance = random.Random(ground)  # noqa: S311  (the same every time)
    return (chance.choice((0.0, chance.uniform(0, LONGEST_DELAY))) for _ in itertools.count())


@pytest.mark.timeout(900)
def test_pairs(
    big_pool: Path,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    counted: Counter,
    thorough: bool,
) -> None:
    """However two calls meet, what they have answered is what there is, and a retry gets there."""
    driver = serve(f"default={big_pool},overcommit=10")
    arena = Arena(driver, tmp_path, delays(ground))
    kinds = [kind for kind in KINDS if kind != "limited" or ground == "btrfs"]
    for kind in kinds * (ROUNDS if thorough else 1):
        arena.kind = kind
        for pair in PAIRS:
            pair(arena)
            assert driver.snapshots() == []
            assert driver.volume_ids() == [], pair.__name__
    counted("calls raced in pairs", arena.operations)
    check_whole(driver, big_pool)
    check_unused(big_pool)
    assert "Traceback" not in driver.log
