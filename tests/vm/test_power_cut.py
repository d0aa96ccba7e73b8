"""The power is cut while encrypted volumes live: what was acknowledged is there, all is whole."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import IN_VM, FilesystemFactory, needs
from driver import GIB, MIB, Driver
from reliability.conftest import check_unused, check_whole
from reliability.history import Make, Story
from reliability.lives import Life
from reliability.power import Cut, Disk
from reliability.recovery import Recovery

from pycsi.linux import luks

LUKS = {"type": "image", "encryption": "luks2"}
SECRETS = {"encryptionPassphrase": "correct horse battery staple"}
MAKES = {
    "image": Make(32 * MIB, "ext4", parameters=LUKS, secrets=SECRETS),
    "block": Make(16 * MIB, block=True, parameters=LUKS, secrets=SECRETS),
}

_PAUSE = 1.0
"""Seconds between two cuts while something is under way; making a header takes several of them."""

_MOST = 8
"""How many of the cuts at rest, and of the others, are looked at: each takes up to a minute."""


class Power:
    """Cuts the power of a disk: when a step was acknowledged, and while one is under way."""

    def __init__(self, disk: Disk) -> None:
        self.at_rest: list[Cut] = []
        self.under_way: list[Cut] = []
        self._disk = disk
        self._one_at_a_time = threading.Lock()

    def acknowledged(self) -> None:
        with self._one_at_a_time:
            self.at_rest.append(self._disk.cut())

    def fail(self) -> None:
        with self._one_at_a_time:
            self.under_way.append(self._disk.cut())


def driver_on(pool: Path, folder: Path) -> Driver:
    return Driver(folder, [f"default={pool},overcommit=20"])


def live(life: Life, make: Make) -> None:
    """Take every step that there is for a volume whose data does not outlive its deletion."""
    first = life.create("a", make)
    with life.published(first) as target:
        life.write(first, target)
        taken = life.snapshot("s", first)
        life.write(first, target)
    life.expand(first)
    life.use(first)
    copies = [life.create("c", make, first), life.create("r", make, taken)]
    for copy in copies:
        life.use(copy)
    group = life.group("g", first, copies[0])
    for thing in (taken, first, group, *copies):
        life.delete(thing)


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", MAKES)
def test_power_cut(
    filesystem: FilesystemFactory,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    kind: str,
) -> None:
    """After each step, and in the midst of some: the volumes stage, with what was synced."""
    refusal = luks.refusal()
    if refusal and not IN_VM:
        pytest.skip(f"{refusal}; make test-vm has it")
    needs(refusal or "", met=refusal is None)
    disk = Disk(filesystem("xfs", 40 * GIB) / "disk.img", tmp_path / "pool-disk", "xfs", 6 * GIB)
    power, published = Power(disk), tmp_path / "published"
    published.mkdir()
    with disk.mounted(disk.file) as pool, driver_on(pool, tmp_path / "before") as driver:
        story = Story(driver, power.acknowledged)
        chance = random.Random(kind)  # noqa: S311  (the same every time)
        life = Life(story, published, chance, shares=True)
        with ThreadPoolExecutor(1) as thread:
            living = thread.submit(live, life, MAKES[kind])
            while not living.done():
                time.sleep(_PAUSE)
                power.fail()
            living.result()
        check_whole(driver, pool)
        check_unused(pool)
    retried = 0
    at_rest = chance.sample(power.at_rest, min(_MOST, len(power.at_rest)))
    under_way = chance.sample(power.under_way, min(_MOST, len(power.under_way)))
    for cut in (*at_rest, *under_way):
        with disk.mounted(cut.left) as pool, driver_on(pool, tmp_path / "after") as driver:
            recovery = Recovery(driver, pool, published, [story], cut)
            recovery.check()
            retried += recovery.retried
        disk.check(cut.left)
        cut.left.unlink()
    assert retried, "no cut was in the midst of a step"
    record_property("cuts at rest", len(at_rest))
    record_property("cuts under way", len(under_way))
    record_property("steps repeated", retried)
