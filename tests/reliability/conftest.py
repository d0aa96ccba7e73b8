"""What the reliability tests share: a pool of each kind, a look for what is left, and counts."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest
from conftest import FilesystemFactory, run
from driver import GIB, Driver
from reliability.canary import ETC, etc_of_our_own

from pycsi.linux import kernel, loop

GROUNDS = ("ext4", "xfs", "btrfs")
COUNTED = "counted "

Counter = Callable[[str, int], None]


@pytest.fixture(params=GROUNDS)
def ground(request: pytest.FixtureRequest) -> str:
    """Return the kind of filesystem that the pool lies on."""
    return str(request.param)


@pytest.fixture
def big_pool(filesystem: FilesystemFactory, ground: str) -> Path:
    """Return an empty pool of 6 GiB."""
    return filesystem(ground, 6 * GIB)


@pytest.fixture
def own_etc(tmp_path: Path) -> Iterator[Path]:
    """Return /etc, which nobody but this test and what it starts can change."""
    with etc_of_our_own(tmp_path / "etc"):
        yield ETC


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Counter:
    """Return a function that counts what was tried; the end of the run tells the sums."""
    return lambda what, number: record_property(f"{COUNTED}{what}", number)


_SHARE = 10
_MANY = {"test_kill.py", "test_errors.py"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --thorough leave out what is marked so, and most of what differs by a parameter."""
    if config.getoption("--thorough"):
        return

    def is_left_out(item: pytest.Item) -> bool:
        if item.path.name in _MANY and "[" in item.name:
            return crc32(item.name.encode()) % _SHARE > 0
        return item.get_closest_marker("thorough") is not None

    left_out = [item for item in items if is_left_out(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    sums: dict[str, int] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for what, number in report.user_properties if report.when == "call" else []:
            if what.startswith(COUNTED):
                key = what.removeprefix(COUNTED)
                sums[key] = sums.get(key, 0) + int(str(number))
    if sums:
        terminalreporter.section("tried")
    for what, number in sorted(sums.items()):
        terminalreporter.write_line(f"{number:8} {what}")


def trash(pool: Path, command: str, *arguments: str) -> str:
    """Run `pycsi trash` on a pool; return what it says."""
    words = ["trash", command, *(["--yes"] if command == "empty" else [])]
    return run(sys.executable, "-m", "pycsi", *words, f"--pool=default={pool}", *arguments)


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def check_whole(driver: Driver, pool: Path, unfinished: str = "never") -> None:
    """Check that what is listed is what there is, and that nothing half made or unused is left.

    Mounts, devices and inline volumes are not looked for: see `check_unused`. A condition that
    begins with `unfinished` is that of a volume on which an RPC has not been repeated yet.
    """
    driver.reaped()
    listed = driver.volume_ids()
    assert len(listed) == len(set(listed))
    inline = {name for name in names_in(pool / "volumes") if name.startswith("ephemeral-")}
    assert names_in(pool / "volumes") - inline == set(listed)
    snapshots = driver.snapshots()
    assert names_in(pool / "snapshots") == {item.snapshot_id for item in snapshots}
    groups = {item.group_snapshot_id for item in snapshots if item.group_snapshot_id}
    assert names_in(pool / "groups") == {f"{group}.json" for group in groups}
    for folder in ("tmp", "frozen", "trash"):
        assert names_in(pool / folder) == set(), f"{folder} is not empty"
    for volume_id in listed:
        condition = driver.condition(volume_id)
        well = not condition.abnormal or condition.message.startswith(unfinished)
        assert well, f"{volume_id}: {condition.message}"


def check_unused(pool: Path) -> None:
    """Check that no inline volume, no mount of a part of the pool and no loop device is left."""
    assert not [name for name in names_in(pool / "volumes") if name.startswith("ephemeral-")]
    disk = kernel.mount_under(pool)
    left = [
        item.target
        for item in kernel.mountinfo()
        if item.device == disk.device and item.target != disk.target
    ]
    assert left == []
    for image in pool.glob("*/*/disk.img"):
        assert loop.find(image) == [], f"a loop device is on {image}"
