"""Commands, and the start of the driver, killed before every system call that changes something."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import FilesystemFactory
from driver import GIB, MIB, NODE, Driver
from leftovers import content, fill
from reliability.conftest import Counter, check_whole
from reliability.faults import CHANGING, Point, points, some
from reliability.scenes import EXT4, Scene
from terminal import piped

from pycsi.linux import kernel

_SHARE = 8
_FEW = 10
"""How many points of an adoption are tried."""
_ADOPTED = {"ext4": "image", "xfs": "directory", "btrfs": "directory"}
"""What is adopted on each ground, of which only a share is tried."""

KILL = "signal=KILL"


def run_traced(command: Sequence[str], log: Path, *options: str) -> int:
    """Run a command under strace and return its exit status."""
    strace = ["strace", "-y", "-s", "64", "-o", str(log), *options]
    done = subprocess.run(
        [*strace, sys.executable, "-m", "pycsi", *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode


def on(pool: Path, log: Path) -> list[Point]:
    """Return the points of a recording at which something on the pool is changed."""
    return [point for point in points(log, asking=False) if str(pool) in point.text]


@pytest.fixture
def served(big_pool: Path, serve: Callable[..., Driver]) -> Driver:
    """Return a driver on a pool of each kind."""
    return serve(big_pool)


def retained(driver: Driver, ground: str, folder: Path, tag: str) -> tuple[Scene, str]:
    """Delete a volume that is retained; return its scene and its entry in the trash."""
    scene = Scene(driver, ground, folder, tag, EXT4)
    scene.make_filled()
    driver.modify(scene.volume("v"), onDelete="retain")
    scene.delete("v")
    (entry,) = driver.folders[0].joinpath("trash").glob(f"{scene.volume('v')}.*")
    return scene, entry.name


def delete(scene: Scene) -> None:
    scene.driver.modify(scene.volume("v"), onDelete="delete")
    scene.delete("v")


@pytest.mark.parametrize("what", ["restore", "empty"])
def test_trash(
    served: Driver,
    big_pool: Path,
    ground: str,
    tmp_path: Path,
    thorough: bool,
    counted: Counter,
    what: str,
) -> None:
    """A volume is restored or deleted, whole, when the command is given again."""
    log = tmp_path / "strace.log"
    pool = f"--pool={served.pools[0]}"
    words = ["trash", what, *(["--yes"] if what == "empty" else [])]
    scene, entry = retained(served, ground, tmp_path, "r")
    run_traced([*words, pool, entry], log, "-e", f"trace={CHANGING}")
    found = on(big_pool, log)
    chosen = found if thorough else some(found, _SHARE, len(tmp_path.name))
    assert chosen
    if what == "restore":
        delete(scene)
    for number, point in enumerate(chosen):
        scene, entry = retained(served, ground, tmp_path, f"k{number}")
        killed = run_traced([*words, pool, entry], log, *point.inject(KILL))
        assert killed == -signal.SIGKILL, f"{point} was not reached"
        left = [path for path in (big_pool / "trash").iterdir() if path.name == entry]
        if left:
            assert run_traced([*words, pool, entry], log, "-e", f"trace={point.name}") == 0
        if what == "restore":
            assert scene.is_listed("v")
            scene.check_filled("v")
            delete(scene)
        else:
            assert not scene.is_listed("v")
            served.restart()  # what was begun is ended with the next start, if not before
    check_whole(served, big_pool)
    counted(f"kills in pycsi trash {what}", len(chosen))


@pytest.mark.parametrize("what", ["mount", "unmount"])
def test_mount(served: Driver, tmp_path: Path, thorough: bool, counted: Counter, what: str) -> None:
    """A volume is mounted or unmounted, wholly, when the command is given again."""
    log, state, there = tmp_path / "strace.log", tmp_path / "state", tmp_path / "mnt"
    there.mkdir()
    there.chmod(0o751)
    made = served.create("v", parameters={"type": "image"}).volume_id
    common = [f"--endpoint={served.socket}", f"--run-directory={state}"]
    mount, unmount = ["mount", made, str(there), *common], ["unmount", str(there), *common]

    def prepare() -> None:
        shutil.rmtree(state, ignore_errors=True)
        if what == "unmount":
            assert piped(*mount).returncode == 0

    def is_clean() -> bool:
        left = [*(state / "mounts").glob("*.json"), *(state / "staging").iterdir()]
        return not left and stat.S_IMODE(there.stat().st_mode) == 0o751 and not there.is_mount()

    command = mount if what == "mount" else unmount
    prepare()
    run_traced(command, log, "-e", f"trace={CHANGING}")
    found = [point for point in points(log, asking=False) if str(tmp_path) in point.text]
    assert found
    piped(*unmount)
    chosen = found if thorough else some(found, _SHARE, len(tmp_path.name))
    for point in chosen:
        prepare()
        assert run_traced(command, log, *point.inject(KILL)) == -signal.SIGKILL
        again = piped(*command)
        assert again.returncode == 0 or "no volume is mounted" in again.stderr
        if what == "mount":
            assert there.is_mount()
            assert piped(*unmount).returncode == 0
        assert is_clean(), point
    served.delete(made)
    counted(f"kills in pycsi {what}", len(chosen))


class Leftover:
    """What somebody has left beside a pool, a directory or an image, and where it may be."""

    def __init__(self, pool: Path, what: str) -> None:
        self.what = what
        self.pool = pool
        self.source = pool.parent / "left" / what
        self.id = f"{what}@{NODE}"
        self.source.parent.mkdir(exist_ok=True)
        if what == "directory":
            self.source.mkdir()
            fill(self.source)
        else:
            self.source.write_bytes(os.urandom(MIB + 5))
        self.before = self.look(self.source)

    def look(self, place: Path) -> object:
        return content(place) if self.what == "directory" else place.read_bytes()[: MIB + 5]

    def check(self) -> None:
        """Check that it is whole, in its old place or in the pool, and only in one if moved."""
        name = "data" if self.what == "directory" else "disk.img"
        inside = [self.pool / folder / self.id / name for folder in ("adoptions", "volumes")]
        there = [place for place in (self.source, *inside) if place.exists()]
        assert there
        assert [self.look(place) for place in there] == [self.before] * len(there)
        copied = self.what == "directory" and kernel.mount_under(self.pool).fstype == "btrfs"
        assert self.source in there if copied else len(there) == 1


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", ["adopt", "undo"])
def test_adopt(
    served: Driver,
    big_pool: Path,
    ground: str,
    tmp_path: Path,
    thorough: bool,
    counted: Counter,
    command: str,
) -> None:
    """What is adopted or given back is whole throughout, and a repeated command gets there."""
    for what in ("directory", "image"):
        if thorough or _ADOPTED[ground] == what:
            left = Leftover(big_pool, what)
            kill_while_adopting(served, left, tmp_path, command, thorough=thorough, counted=counted)
    assert piped("trash", "empty", "--all", "--yes", f"--pool={served.pools[0]}").returncode == 0
    check_whole(served, big_pool)


def kill_while_adopting(
    served: Driver, left: Leftover, folder: Path, command: str, *, thorough: bool, counted: Counter
) -> None:
    log = folder / "strace.log"
    pool = (f"--pool={served.pools[0]}", f"--node-id={NODE}")
    how = ("--layout=bare", "--no-limit", "--size=64Mi", "--yes")
    adopt = ["adopt", f"--from={left.source}", *how, *pool]
    adopt += ["--block"] if left.what == "image" else []
    undo = ["adopt", "--undo", left.id, *pool]
    words, opposite = (adopt, undo) if command == "adopt" else (undo, adopt)
    if command == "undo":
        assert piped(*adopt).returncode == 0
    run_traced(words, log, "-e", f"trace={CHANGING}")
    found = on(left.pool, log)
    chosen = found if thorough else some(found, max(1, len(found) // _FEW), len(folder.name))
    assert chosen
    for number, point in enumerate(chosen):
        assert piped(*opposite).returncode == 0
        assert run_traced(words, log, *point.inject(KILL)) == -signal.SIGKILL, point
        left.check()
        if number % 2:
            served.restart()
            left.check()
        again = piped(*words)
        nothing_left = command == "undo" and "there is no volume" in again.stderr
        assert again.returncode == 0 or nothing_left, (point, again.stderr)
        left.check()
        assert served.volume_ids() == ([left.id] if command == "adopt" else []), point
        assert left.source.exists() or command == "adopt"
        assert list((left.pool / "adoptions").glob("*@*")) == [], point
    if command == "adopt":
        served.delete(left.id)
    counted(f"kills in pycsi adopt{' --undo' if command == 'undo' else ''}", len(chosen))


@pytest.mark.parametrize("what", ["directory", "image"])
def test_copy_goes_on(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    thorough: bool,
    counted: Counter,
    what: str,
) -> None:
    """A copy from another filesystem that was killed goes on, and is what is there by then."""
    other, pool = filesystem("ext4", GIB), filesystem("xfs", GIB)
    driver, log = serve(pool), tmp_path / "strace.log"
    source, volume_id = other / what, f"{what}@{NODE}"
    data = pool / "volumes" / volume_id / ("data" if what == "directory" else "disk.img")
    files = [source / f"file {number}" for number in range(4)]
    if what == "directory":
        source.mkdir()
        fill(source)
        for file in files:
            file.write_bytes(os.urandom(2 * MIB + 5))
    else:
        source.write_bytes(os.urandom(8 * MIB))
    option = f"--pool={driver.pools[0]}"
    how = ("--layout=bare", "--no-limit", "--size=64Mi", "--yes", option, f"--node-id={NODE}")
    adopt = ["adopt", f"--from={source}", *how, *(["--block"] if what == "image" else [])]

    def look(place: Path) -> object:
        return content(place) if what == "directory" else place.read_bytes()[: 8 * MIB]

    def undo() -> None:
        assert piped("adopt", "--undo", volume_id, option).returncode == 0
        assert piped("trash", "empty", "--all", "--yes", option).returncode == 0

    run_traced(adopt, log, "-e", f"trace={CHANGING}")
    found = on(pool, log)
    copying = [point for point in found if point.name == "pwrite64"]
    whole = written(log)
    assert whole > 7 * MIB
    every = found if thorough else [copying[-1], *some(found, max(1, len(found) // 8), len(what))]
    for number, point in enumerate(every):
        undo()
        before = look(source)
        assert run_traced(adopt, log, *point.inject(KILL)) == -signal.SIGKILL, point
        assert look(source) == before
        if number % 2:
            driver.restart()
        if what == "directory" and point is every[-1]:
            files[0].write_bytes(os.urandom(MIB))
            os.setxattr(files[1], "user.late", b"")
            shutil.rmtree(source / "deep/er")
            (source / "deep/later").mkdir()
        # A whole copy is the volume from then on: a driver that starts would complete it.
        begun = pool / "adoptions" / volume_id / data.name
        completed = data.exists() or begun.exists()
        run_traced(adopt, log, "-e", "trace=pwrite64,copy_file_range")
        same = look(data) == (before if completed else look(source))
        assert same, point  # what differs may be megabytes
        if not number:
            assert written(log) < whole / 2
    undo()
    driver.stop()
    counted("kills in pycsi adopt of another filesystem", len(every))


def written(log: Path) -> int:
    """Return how many bytes a traced command has written into a pool's copy."""
    lines = [line for line in log.read_text().splitlines() if ".part" in line]
    return sum(int(line.rpartition("= ")[2]) for line in lines if "pwrite64(" in line)


def test_start(
    served: Driver, big_pool: Path, ground: str, tmp_path: Path, thorough: bool, counted: Counter
) -> None:
    """A driver that is killed while it starts on what another has left is started again."""
    log = tmp_path / "strace.log"
    scene = Scene(served, ground, tmp_path, "s", EXT4)
    scene.make_filled()

    def leave() -> None:
        """Leave what killed drivers leave: litter, a marker, and members without their group."""
        taken = served.snapshot_group("g", scene.volume("v"))
        served.stop(signal.SIGKILL)
        (big_pool / "tmp/litter").mkdir(exist_ok=True)
        (big_pool / "tmp/litter/disk.img").write_bytes(b"half made")
        (big_pool / "frozen" / scene.volume("v")).touch()
        (big_pool / "groups/.g@node-1.json.new").touch()
        (big_pool / "groups" / f"{taken.group_snapshot_id}.json").unlink()

    def start(*options: str) -> int | None:
        """Start a driver whose first thread is traced; return how it has ended, if so."""
        served.channel.close()
        served.wrapper = ("strace", "-D", "-y", "-s", "64", "-o", str(log), *options)
        try:
            served.launch()
            served.wait_until_ready()
        except pytest.fail.Exception:
            return served.process.wait(10) if served.process else None
        finally:
            served.wrapper = ()
        return None

    leave()
    assert start("-e", f"trace={CHANGING}") is None
    found = on(big_pool, log)
    chosen = found if thorough else some(found, _SHARE, len(tmp_path.name))
    killed = 0
    for point in chosen:
        leave()
        if start(*point.inject(KILL)) is not None:
            killed += 1
            served.channel.close()
            served.start()
        check_whole(served, big_pool)
        assert served.snapshots() == []
        scene.check_filled("v")
    scene.delete("v")
    assert killed >= len(chosen) / 2
    counted("kills at the start", killed)
