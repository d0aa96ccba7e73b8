"""`pycsi doctor` beside a busy driver, which it takes for well, and killed while it mends."""

import contextlib
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver import MIB, Driver, block_capability, mount_capability
from reliability.conftest import Counter, check_whole
from reliability.faults import CHANGING, some
from reliability.scenes import EXT4, Scene
from reliability.test_kill_commands import KILL, on, run_traced
from terminal import piped

_RUNS = 50
_SHARE = 6

Work = Callable[[Driver, Path, str], None]


@pytest.fixture
def served(big_pool: Path, serve: Callable[..., Driver]) -> Driver:
    """Return a driver on a pool of each kind."""
    return serve(big_pool)


def come_and_go(driver: Driver, folder: Path, name: str) -> None:
    """Make volumes of each kind, expand and delete them."""
    for kind in ("directory", "image"):
        more = {"quota": "none"} if kind == "directory" else {}
        made = driver.create(f"{name}-{kind}", 16 * MIB, parameters={"type": kind} | more).volume_id
        driver.expand(made, 24 * MIB)
        driver.delete(made)


def grow_in_use(driver: Driver, folder: Path, name: str) -> None:
    """Expand a volume while it is written to, and take snapshots of it, which freeze it."""
    capability = mount_capability("ext4")
    made = driver.create(name, 32 * MIB, capability=capability, type="image").volume_id
    with driver.published(made, folder, capability) as target:
        for number in range(3):
            (target / f"f{number}").write_bytes(bytes(MIB))
            taken = driver.snapshot(f"{name}-{number}", made).snapshot_id
            driver.expand(made, (40 + 8 * number) * MIB)
            driver.delete_snapshot(taken)
    driver.delete(made)


def group(driver: Driver, folder: Path, name: str) -> None:
    """Take group snapshots of two volumes in use."""
    capability = mount_capability("ext4")
    made = [
        driver.create(f"{name}-{number}", 32 * MIB, capability=capability, type="image").volume_id
        for number in range(2)
    ]
    with contextlib.ExitStack() as stack:
        for item in made:
            stack.enter_context(driver.published(item, folder, capability))
        for number in range(3):
            taken = driver.snapshot_group(f"{name}-{number}", *made)
            members = [item.snapshot_id for item in taken.snapshots]
            driver.delete_group(taken.group_snapshot_id, *members)
    for item in made:
        driver.delete(item)


def attach(driver: Driver, folder: Path, name: str) -> None:
    """Stage and publish a raw block volume, and undo that."""
    made = driver.create(name, 8 * MIB, capability=block_capability()).volume_id
    with driver.published(made, folder, block_capability()):
        pass
    driver.delete(made)


WORK: tuple[Work, ...] = (come_and_go, grow_in_use, group, attach)


@contextlib.contextmanager
def busy(driver: Driver, folder: Path) -> Iterator[list[BaseException]]:
    """Keep a driver busy with everything at once for the block; yield what went wrong."""
    done = threading.Event()
    failures: list[BaseException] = []

    def repeat(work: Work) -> None:
        for number in itertools.count():
            if done.is_set():
                return
            try:
                work(driver, folder, f"{work.__name__.replace('_', '-')}-{number}")
            except BaseException as error:
                failures.append(error)
                raise

    threads = [threading.Thread(target=repeat, args=(work,)) for work in WORK]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_beside_a_busy_driver(
    served: Driver, tmp_path: Path, thorough: bool, counted: Counter
) -> None:
    """What a driver is just doing is never taken for something that is wrong."""
    option = f"--pool={served.pools[0]}"
    runs = _RUNS if thorough else _SHARE
    with busy(served, tmp_path) as failures:
        for _ in range(runs):
            done = piped("doctor", "-o", "json", option)
            assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, [], "")
            assert failures == []
    counted("looks of pycsi doctor at a busy pool", runs)


def test_killed_while_it_mends(
    served: Driver, big_pool: Path, ground: str, tmp_path: Path, thorough: bool, counted: Counter
) -> None:
    """Killed at any system call that changes something, `--fix` leaves nothing worse behind."""
    log, option = tmp_path / "strace.log", f"--pool={served.pools[0]}"
    command = ["doctor", "--fix", "--yes", option]
    scene = Scene(served, ground, tmp_path, "s", EXT4)
    scene.make_filled()
    served.create("raw", 8 * MIB, capability=block_capability())
    raw = big_pool / "volumes/raw@node-1"

    def leave() -> None:
        """Leave what killed drivers leave, a loop device, and notes that nobody can read."""
        if served.process and served.process.poll() is not None:
            served.start()
        served.stage("raw@node-1", tmp_path / "staging-raw", block_capability())
        taken = served.snapshot_group("g", scene.volume("v"))
        served.stop(signal.SIGKILL)
        (big_pool / "tmp/litter").mkdir(exist_ok=True)
        (big_pool / "tmp/litter/disk.img").write_bytes(b"half made")
        (big_pool / "frozen" / scene.volume("v")).touch()
        (big_pool / "groups" / f"{taken.group_snapshot_id}.json").unlink()
        (big_pool / "volumes" / scene.volume("v") / "node.json").write_text("{")
        (raw / "node.json").write_text('{"schema":2,"staged":{},"published":{}}')

    leave()
    run_traced(command, log, "-e", f"trace={CHANGING}")
    found = on(big_pool, log)
    assert piped(*command).returncode == 0
    chosen = found if thorough else some(found, _SHARE, len(tmp_path.name))
    assert chosen
    for point in chosen:
        leave()
        if run_traced(command, log, *point.inject(KILL)) == -signal.SIGKILL:
            done = piped(*command)
            assert done.returncode == 0, done.stdout + done.stderr
        served.channel.close()
        served.start()
        check_whole(served, big_pool)
        assert served.snapshots() == []
        scene.check_filled("v")
    served.delete("raw@node-1")
    scene.delete("v")
    counted("kills in pycsi doctor --fix", len(chosen))
