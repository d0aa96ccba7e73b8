"""The power is cut again and again: what was acknowledged is there, and everything is whole."""

import functools
import itertools
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, needs
from driver import GIB, Driver
from reliability.conftest import Counter, check_unused, check_whole, trash
from reliability.faults import Point, Worker, traced
from reliability.history import Make, Story
from reliability.lives import Life, kept, makes
from reliability.power import Cut, Disk
from reliability.recovery import Recovery

THREADS = 6


@pytest.fixture
def disk(filesystem: FilesystemFactory, tmp_path: Path, ground: str) -> Disk:
    """Return the disk of a pool, whose power can be cut."""
    file = filesystem("xfs", 40 * GIB) / "disk.img"
    return Disk(file, tmp_path / "pool-disk", ground, 6 * GIB)


class Bench:
    """Starts drivers on a disk, and compares what cuts have left of it."""

    def __init__(self, disk: Disk, folder: Path, ground: str, counted: Counter) -> None:
        self.disk = disk
        self.makes = makes(ground)
        self.folder = folder
        self._ground = ground
        self._counted = counted
        self._cuts = 0

    def driver(self, name: str) -> Driver:
        return Driver(self.folder / name, [f"default={self.disk.pool},overcommit=20"])

    def life(self, story: Story, folder: Path, seed: str) -> Life:
        chance = random.Random(f"{self._ground} {seed}")  # noqa: S311  (the same every time)
        return Life(story, folder, chance, shares=self._ground != "ext4")

    def few(self, cuts: list[Cut]) -> list[Cut]:
        """Return one of the cuts, another one on each kind of filesystem."""
        return random.Random(self._ground).sample(cuts, 1)  # noqa: S311  (the same every time)

    def recover(self, stories: Sequence[Story], cuts: Sequence[Cut]) -> None:
        """Check what each cut has left."""
        published = self.folder / "recovered"
        published.mkdir(exist_ok=True)
        retried = 0
        for cut in cuts:
            with self.disk.mounted(cut.left) as pool, self.driver("after") as driver:
                recovery = Recovery(driver, pool, published, stories, cut)
                recovery.check()
                retried += recovery.retried
            self._cuts += 1
            if self._cuts % 5 == 1:
                self.disk.check(cut.left)
            cut.left.unlink()
        self._counted(f"power cuts on {self._ground}", len(cuts))
        self._counted("steps acknowledged before power cuts", sum(item.steps for item in stories))
        self._counted("steps under way at power cuts, and repeated", retried)


@pytest.fixture
def bench(disk: Disk, tmp_path: Path, ground: str, counted: Counter) -> Bench:
    return Bench(disk, tmp_path, ground, counted)


def busy(life: Life, name: str, bench: Bench, stopping: threading.Event) -> None:
    for number in itertools.count():
        if stopping.is_set():
            return
        life.live(f"{name}-{number}", list(bench.makes.values()))


@pytest.mark.timeout(600)
def test_under_load(bench: Bench, tmp_path: Path, ground: str, thorough: bool) -> None:
    """At any moment of many lives."""
    chance = random.Random(ground)  # noqa: S311  (the same every time)
    published = tmp_path / "published"
    published.mkdir()
    for turn in range(2 if thorough else 1):
        with bench.disk.mounted(bench.disk.file) as pool, bench.driver("before") as driver:
            stories = [Story(driver) for _ in range(THREADS)]
            stopping = threading.Event()
            with ThreadPoolExecutor(THREADS) as threads:
                running = [
                    threads.submit(
                        busy,
                        bench.life(story, published, f"{turn} {number}"),
                        f"l{turn}-{number}",
                        bench,
                        stopping,
                    )
                    for number, story in enumerate(stories)
                ]
                try:
                    cuts = []
                    for _ in range(5 if thorough else 1):
                        time.sleep(chance.uniform(0.5, 2.5 if thorough else 1.5))
                        cuts.append(bench.disk.cut())
                finally:
                    stopping.set()
                for thread in running:
                    thread.result()
            if there := kept(pool):
                trash(pool, "empty", *there.values())
            check_whole(driver, pool)
            check_unused(pool)
        bench.recover(stories, cuts)


def test_while_growing(bench: Bench, tmp_path: Path, thorough: bool) -> None:
    """While an ext4 grows, and right after that: what is written then is not undone."""
    published = tmp_path / "published"
    published.mkdir()
    with bench.disk.mounted(bench.disk.file), bench.driver("before") as driver:
        cuts: list[Cut] = []
        story = Story(driver)
        life = bench.life(story, published, "growing")
        volume = life.create("grows", bench.makes["ext4"])
        with life.published(volume) as target:
            life.write(volume, target)
        life.expand(volume)
        with ThreadPoolExecutor(1) as thread:
            using = thread.submit(life.use, volume)
            while not using.done() and len(cuts) < 20:
                cuts.append(bench.disk.cut())
                time.sleep(0.002)
            using.result()
        after = bench.disk.cut()
        life.delete(volume)
    share = cuts[::2] if thorough else cuts[len(cuts) // 2 :][:1]
    bench.recover([story], [*share, after])


class Killed:
    """Kills the driver in the middle of steps, has them repeated and cuts the power at once."""

    def __init__(self, bench: Bench, driver: Driver, published: Path) -> None:
        self.story = Story(driver)
        self.cuts: list[Cut] = []
        self.life = bench.life(self.story, published, "killed")
        self._bench = bench

    def at(self, call: str, number: int, step: Callable[[], object]) -> bool:
        """Do a step with a kill at a system call; False if it ended before that."""
        driver = self.story.driver
        kill = Point(call, number).inject("signal=KILL")
        with traced(driver, Worker.RPC, self._bench.folder / "strace.log", *kill):
            try:
                step()
            except grpc.RpcError:
                assert driver.process is not None
                assert driver.process.wait(60) == -signal.SIGKILL
            else:
                return False
        driver.channel.close()
        driver.start()
        self.story.repeat()
        self.cuts.append(self._bench.disk.cut())
        return True


STEPS: dict[str, Callable[[Life, str, Make], Callable[[], object]]] = {
    "delete": lambda life, name, make: functools.partial(life.delete, life.create(name, make)),
    "create": lambda life, name, make: lambda: life.create(name, make),
    "modify": lambda life, name, make: functools.partial(life.retain, life.create(name, make)),
    "expand": lambda life, name, make: functools.partial(life.expand, life.create(name, make)),
    "snapshot": lambda life, name, make: functools.partial(
        life.snapshot, f"{name}-s", life.create(name, make)
    ),
    "group": lambda life, name, make: functools.partial(
        life.group, f"{name}-g", life.create(name, make)
    ),
    "delete snapshot": lambda life, name, make: functools.partial(
        life.delete, life.snapshot(f"{name}-s", life.create(name, make))
    ),
    "delete group": lambda life, name, make: functools.partial(
        life.delete, life.group(f"{name}-g", life.create(name, make))
    ),
}
"""Steps to be killed in, each on a volume that is made for it."""


@pytest.mark.timeout(600)
def test_after_a_kill(
    bench: Bench,
    tmp_path: Path,
    ground: str,
    thorough: bool,
) -> None:
    """What was half done when the driver was killed, and then acknowledged, is durable."""
    needs("strace", met=shutil.which("strace") is not None)
    published = tmp_path / "published"
    published.mkdir()
    make = bench.makes["plain" if ground != "btrfs" else "limited"]
    with bench.disk.mounted(bench.disk.file), bench.driver("before") as driver:
        killed = Killed(bench, driver, published)
        for what in STEPS if thorough else ["delete"]:
            for number in itertools.count(1):
                name = f"{what.replace(' ', '-')}-{number}"
                step = STEPS[what](killed.life, name, make)
                if not killed.at("fsync", number, step) or not thorough:
                    break
    assert killed.cuts
    bench.recover([killed.story], killed.cuts)


@pytest.mark.timeout(600)
def test_at_rest(
    bench: Bench,
    tmp_path: Path,
    ground: str,
    thorough: bool,
) -> None:
    """Right after a step is acknowledged, when nothing else makes anything durable."""
    published = tmp_path / "published"
    published.mkdir()
    cuts: list[Cut] = []
    with bench.disk.mounted(bench.disk.file) as pool, bench.driver("before") as driver:
        story = Story(driver, lambda: cuts.append(bench.disk.cut()))
        life = bench.life(story, published, "at rest")
        directory = "limited" if ground == "btrfs" else "plain"
        for kind in (directory, "block", "ext4") if thorough else (directory,):
            everything(life, kind, bench.makes[kind], pool)
    bench.recover([story], cuts if thorough else bench.few(cuts))


def everything(life: Life, name: str, make: Make, pool: Path) -> None:
    """Take every step there is, one after the other."""
    first = life.create(f"{name}-a", make)
    with life.published(first) as target:
        life.write(first, target)
    taken = life.snapshot(f"{name}-s", first)
    copies = [life.create(f"{name}-c", make, first), life.create(f"{name}-r", make, taken)]
    group = life.group(f"{name}-g", first, copies[0])
    life.expand(first)
    life.retain(first)
    life.delete(first)
    life.bring_back(first, pool)
    for thing in (group, taken, *copies):
        life.delete(thing)
