"""The power of both disks is cut while a volume moves: it is whole, in one of the pools."""

import contextlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import FilesystemFactory, mounted, run
from driver import GIB, Driver
from reliability.conftest import Counter
from reliability.power import FSCK, cut, wait_until_free
from reliability.test_kill_moves import POOLS, Moving

_SIZE = 512 << 20
_FEW = 4


class Disks:
    """Two disks that lose their power at one moment: parts of one file, which shares its blocks."""

    def __init__(self, file: Path, folder: Path, grounds: tuple[str, str]) -> None:
        self.file = file
        self.places = [folder / name for name in POOLS]
        self._grounds = grounds
        self._cuts = 0
        for place in self.places:
            place.mkdir()
        with file.open("wb") as made:
            made.truncate(2 * _SIZE)
        for number, ground in enumerate(grounds):
            new = folder / f"{number}.img"
            with new.open("wb") as made:
                made.truncate(_SIZE)
            run(f"mkfs.{ground}", "-q", new)
            run("dd", f"if={new}", f"of={file}", "bs=1M", f"seek={number * _SIZE >> 20}",
                "conv=notrunc,sparse")  # fmt: skip
            new.unlink()

    @property
    def pools(self) -> list[str]:
        """The values of --pool."""
        return [f"{name}={place}/pool" for name, place in zip(POOLS, self.places, strict=True)]

    @contextlib.contextmanager
    def mounted(self, file: Path) -> Iterator[None]:
        """Mount the disks, or what a cut has left of them, through the `with` block."""
        with contextlib.ExitStack() as disks:
            for number, (place, ground) in enumerate(zip(self.places, self._grounds, strict=True)):
                options = f"loop,offset={number * _SIZE},sizelimit={_SIZE}"
                # What was mounted before has the same UUID, and may live on somewhere.
                options += ",nouuid" if ground == "xfs" else ""
                disks.enter_context(mounted("-o", options, file, place))
                (place / "pool").mkdir(exist_ok=True)
            yield
        wait_until_free(file)

    def cut(self) -> Path:
        """Cut the power; of these disks nobody notices. Return what is left of both."""
        self._cuts += 1
        return cut(self.file, self._cuts).left

    def check(self, file: Path) -> None:
        """Check the filesystems of both disks, which are not mounted, and change nothing."""
        for number, ground in enumerate(self._grounds):
            part = file.with_suffix(".part")
            run("dd", f"if={file}", f"of={part}", "bs=1M", f"skip={number * _SIZE >> 20}",
                f"count={_SIZE >> 20}", "conv=sparse")  # fmt: skip
            run(*FSCK[ground], part)
            part.unlink()


@pytest.fixture(params=["block", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def disks(filesystem: FilesystemFactory, tmp_path: Path, kind: str) -> Disks:
    """Return the disks of two pools: on XFS for an image, on ext4 and btrfs for a directory."""
    file = filesystem("xfs", 8 * GIB) / "disks.img"
    return Disks(file, tmp_path, ("xfs", "xfs") if kind == "block" else ("ext4", "btrfs"))


def cuts_during(act: Callable[[], object], disks: Disks) -> list[Path]:
    """Do something, and cut the power again and again until it is done."""
    cuts: list[Path] = []
    with ThreadPoolExecutor(1) as thread:
        doing = thread.submit(act)
        while not doing.done() and len(cuts) < 200:
            cuts.append(disks.cut())
        doing.result()
    return cuts


@pytest.mark.timeout(900)
def test_cut(disks: Disks, kind: str, tmp_path: Path, thorough: bool, counted: Counter) -> None:
    """Until a move has ended a repeated one ends it; then the volume is in the new pool."""
    chance = random.Random(kind)  # noqa: S311  (the same every time)
    with disks.mounted(disks.file), Driver(tmp_path / "before", disks.pools) as driver:
        moving = Moving(driver, kind)
        run("sync", "-f", moving.content)  # what was written is its writer's to make durable
        moving.call(prepare=True)
        moving.change(1)
        run("sync", "-f", moving.content)
        cuts = cuts_during(lambda: moving.call(prepare=False), disks)
        after = disks.cut()
    chosen = cuts if thorough else chance.sample(cuts, min(_FEW, len(cuts)))
    arrived = 0
    for number, left in enumerate([*chosen, after]):
        with disks.mounted(left), Driver(tmp_path / "after", disks.pools) as driver:
            moving.driver = driver
            there = [len(list((pool / "volumes").iterdir())) for pool in driver.folders]
            assert there in ([1, 0], [0, 1])
            assert there == [0, 1] or left != after
            arrived += there[1]
            moving.at = there[1]
            assert moving.look() == moving.before
            if moving.at == 0:
                moving.move()
            moving.check()
        if number % 5 == 0:
            disks.check(left)
    assert arrived
    counted("power cuts in pycsi move", len(chosen) + 1)
