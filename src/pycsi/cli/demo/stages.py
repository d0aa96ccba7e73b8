"""The stages of the demo: which volumes are shown depends on the pools and on this machine."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from pycsi.cli.demo import lives, services
from pycsi.cli.demo.lives import Proofs
from pycsi.cli.demo.scratch import DemoPool, lacking, loops_available
from pycsi.cli.demo.volume import Plan, Volume
from pycsi.model.size import MIB, show


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The life of one volume.

    `lacks` is what this machine lacks for the stage, None if it can be shown. `remark` is printed
    below the title.
    """

    title: str
    plan: Plan
    life: Callable[[Volume, Proofs], None]
    lacks: str | None = None
    remark: str | None = None


def stages(pools: Sequence[DemoPool], root: Path, *, as_root: bool) -> list[Stage]:
    """Return the stages in order; root's include those for which this machine lacks something."""
    limited = next((pool for pool in pools if pool.limiter), None)
    directory = _directory(limited) if limited else _unlimited_directory(pools[0])
    if not as_root:
        return [directory, _copied_directory(directory.plan), _retained(directory.plan)]
    if limited is None and (lacks := _lacking("btrfs", root)):
        how = f"It would be limited on btrfs, or by project quota; for btrfs: {lacks}"
        directory = dataclasses.replace(directory, remark=how)
    sharing = next((pool for pool in pools if pool.shares), None)
    return [
        directory,
        _image(pools[0], "ext4", 64 * MIB, root, online=False),
        _image(pools[0], "xfs", 320 * MIB, root, online=True),
        _raw_block(pools[0]),
        _inline(limited or pools[0], root),
        _copied_directory(directory.plan),
        _copied_image(sharing or pools[0], root),
        _grouped(sharing or pools[0], root),
        _compared(sharing, pools[0], root),
        _retained(directory.plan),
    ]


def _directory(pool: DemoPool) -> Stage:
    plan = Plan(
        name="directory",
        made_of=f"directory, {pool.limiter}",
        pool=pool,
        size=64 * MIB,
        larger=128 * MIB,
        parameters={"pool": pool.name, "type": "directory"},
    )
    title = f"Directory volume, limited to {show(plan.size)} by {pool.limiter}"
    return Stage(title=title, plan=plan, life=lives.mounted)


def _unlimited_directory(pool: DemoPool) -> Stage:
    plan = dataclasses.replace(
        _directory(pool).plan,
        made_of="directory, quota: none",
        parameters={"pool": pool.name, "type": "directory", "quota": "none"},
        enforced=False,
    )
    title = f"Directory volume, {show(plan.size)}; quota: none, so the size is not enforced"
    return Stage(title=title, plan=plan, life=lives.mounted)


def _image(pool: DemoPool, kind: str, size: int, root: Path, *, online: bool) -> Stage:
    plan = Plan(
        name=kind,
        made_of=f"image with {kind}",
        pool=pool,
        size=size,
        larger=2 * size,
        parameters={"pool": pool.name, "type": "image"},
        filesystem=kind,
        online=online,
    )
    title = f"Image with {kind}, {show(size)}, expanded {'in use' if online else 'while unmounted'}"
    return Stage(title=title, plan=plan, life=lives.mounted, lacks=_lacking(kind, root))


def _raw_block(pool: DemoPool) -> Stage:
    plan = Plan(
        name="block",
        made_of="image, raw block",
        pool=pool,
        size=64 * MIB,
        larger=128 * MIB,
        parameters={"pool": pool.name},
        block=True,
    )
    title = f"Raw block volume, {show(plan.size)}, expanded in use"
    return Stage(title=title, plan=plan, life=lives.raw_block, lacks=_lacking(None, Path("/")))


def _inline(pool: DemoPool, root: Path) -> Stage:
    kind = None if pool.limiter else "ext4"
    plan = Plan(
        name="inline",
        made_of=f"image with {kind}" if kind else f"directory, {pool.limiter}",
        pool=pool,
        size=32 * MIB,
        larger=32 * MIB,
        parameters={"pool": pool.name, "type": "image" if kind else "directory"},
        filesystem=kind,
    )
    title = f"Inline ephemeral volume, {show(plan.size)}, which comes and goes with its pod"
    lacks = _lacking(kind, root) if kind else None
    return Stage(title=title, plan=plan, life=lives.inline, lacks=lacks)


def _copied_directory(directory: Plan) -> Stage:
    plan = dataclasses.replace(directory, name="tree")
    title = f"Directory volume, {show(plan.size)}: snapshot, restore and clone in use"
    return Stage(title=title, plan=plan, life=services.copied)


def _copied_image(pool: DemoPool, root: Path) -> Stage:
    plan = dataclasses.replace(
        _image(pool, "ext4", 128 * MIB, root, online=False).plan, name="disk"
    )
    title = f"Image with ext4, {show(plan.size)}: snapshot, restore and clone in use"
    return Stage(title=title, plan=plan, life=services.copied, lacks=_lacking("ext4", root))


def _grouped(pool: DemoPool, root: Path) -> Stage:
    image = _image(pool, "ext4", 32 * MIB, root, online=False).plan
    plan = dataclasses.replace(image, name="group", made_of="two images with ext4")
    title = "Two images with ext4: group snapshot while both are written to"
    return Stage(title=title, plan=plan, life=services.grouped, lacks=_lacking("ext4", root))


def _compared(sharing: DemoPool | None, other: DemoPool, root: Path) -> Stage:
    plan = dataclasses.replace(_raw_block(sharing or other).plan, name="changes")
    lacks = _lacking(None, root)
    if sharing is None:
        btrfs = _lacking("btrfs", root)
        lacks = lacks or f"a device in use needs a pool that shares blocks; for btrfs: {btrfs}"
    title = f"Raw block volume, {show(plan.size)}: two snapshots in use, and what changed between"
    return Stage(title=title, plan=plan, life=services.compared, lacks=lacks)


def _retained(directory: Plan) -> Stage:
    plan = dataclasses.replace(directory, name="trash")
    title = "Directory volume with onDelete: retain, deleted and brought back"
    return Stage(title=title, plan=plan, life=services.retained)


def _lacking(kind: str | None, root: Path) -> str | None:
    if not loops_available():
        return "there are no loop devices here; load the kernel's module: modprobe loop"
    return lacking(kind, root) if kind else None
