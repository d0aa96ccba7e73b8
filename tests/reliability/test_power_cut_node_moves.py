"""The power of both nodes is cut while a volume moves to the other: one of the two is whole."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, cluster
from conftest import FilesystemFactory, run
from driver import GIB, MIB
from reliability.conftest import Counter, names_in
from reliability.test_groups_over_nodes import again
from reliability.test_power_cut_moves import Disks, cuts_during
from relocation import Traveller, content_of, look

_SIZE = 64 * MIB
_FEW = 3


@contextlib.contextmanager
def nodes_on(disks: Disks, left: Path, folder: Path) -> Iterator[Cluster]:
    """Run two nodes and their controller on the disks, or on what a cut has left of them."""
    folder.mkdir()
    pools = [place / "pool" for place in disks.places]
    with disks.mounted(left), cluster(folder, "a", "b", pools=pools) as nodes:
        yield nodes


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "grounds"),
    [
        ("block", ("xfs", "ext4")),
        pytest.param("directory", ("ext4", "btrfs"), marks=pytest.mark.thorough),
    ],
)
def test_cut(
    filesystem: FilesystemFactory,
    tmp_path: Path,
    kind: str,
    grounds: tuple[str, str],
    thorough: bool,
    counted: Counter,
) -> None:
    """Whatever was cut off, a repeated command ends the move, with all that the volume had."""
    chance = random.Random(kind)  # noqa: S311  (the same every time)
    disks = Disks(filesystem("xfs", 8 * GIB) / "disks.img", tmp_path, grounds)
    with nodes_on(disks, disks.file, tmp_path / "before") as nodes:
        moving = Traveller(nodes, kind, _SIZE)
        run("sync", "-f", moving.content)  # what was written is its writer's to make durable
        moving.move(prepare=True)
        moving.change(1)
        run("sync", "-f", moving.content)
        cuts = cuts_during(moving.move, disks)
        cuts.append(disks.cut())
    chosen = cuts if thorough else [*chance.sample(cuts[:-1], min(_FEW, len(cuts) - 1)), cuts[-1]]
    settled = 0
    for number, left in enumerate(chosen):
        with nodes_on(disks, left, tmp_path / f"after-{number}") as nodes:
            moving.at(nodes)
            old, new = moving.a.volume_ids(), moving.b.volume_ids()
            assert old + new in (["v@a"], ["v@b"], [])
            settled += bool(new)
            if old:
                assert look(moving.content) == moving.before
            elif new:
                assert look(content_of(moving.b, "v@b")) == moving.before
            else:
                assert names_in(moving.a.pool / "leaving") == {"v@a"}
            again(moving.move)
            moving.arrived()
        disks.check(left)
    assert settled
    counted("power cuts in pycsi move to another node", len(chosen))
