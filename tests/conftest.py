"""Fixtures: filesystems to make pools on, drivers that serve them, and checks for leftovers.

A test that needs root, a program or a kernel feature declares that with `needs`. On a laptop it is
skipped, with the reason. If CI is set it fails instead, since CI is root and installs the programs.
Only tests of features that the running kernel lacks are skipped there; `make test-vm` runs them in
a virtual machine.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import Driver

from pycsi.linux import kernel, loop, losetup, mount
from pycsi.linux.libc import function

IN_CI = bool(os.environ.get("CI"))
IN_VM = bool(os.environ.get("PYCSI_VM"))


def needs(reason: str, *, met: bool) -> None:
    """Skip the test unless `met`; in CI, where every requirement can be met, fail it instead."""
    if not met:
        (pytest.fail if IN_CI or IN_VM else pytest.skip)(f"needs {reason}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        action="store_true",
        help="try every point, cut and request of the reliability tests, not a share of them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a temporary directory of its own.

    pytest's default directory is shared by all runs, which delete what older runs have left, even
    through mounts that a broken test has left there.
    """
    if os.geteuid() == 0:
        _leave_mount_namespace()
    if config.option.basetemp is None:
        config.option.basetemp = tempfile.mkdtemp(prefix="pycsi-test-")


def _leave_mount_namespace() -> None:
    """Move this process, a worker of pytest-xdist or not, to a mount namespace of its own.

    Some tests start programs with a copy of all mounts, which would keep busy the mounts of other
    workers and other test runs.
    """
    clone_newns = 0x20000
    function("unshare", ctypes.c_int)(clone_newns)
    run("mount", "--make-rslave", "/")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the run's temporary directory if all tests have passed."""
    if exitstatus == pytest.ExitCode.OK:
        run("rm", "-rf", "--one-file-system", session.config.option.basetemp)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report where the files of failed tests are, and how many MiB they occupy."""
    folder = Path(terminalreporter.config.option.basetemp)
    if folder.is_dir():
        kilobytes = run("du", "--summarize", "--one-file-system", folder).split()[0]
        terminalreporter.write_line(
            f"what failed tests left: {folder} ({int(kilobytes) // 1024} MiB); delete it"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Skip tests that fail because only root can use loop devices."""
    report: Any = yield
    if os.geteuid() and call.excinfo and "it takes a loop device" in str(call.excinfo.value):
        report.outcome = "skipped"
        report.longrepr = (__file__, 0, "needs root, for loop devices")
    return report


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    """Run mount(8) with `arguments`, of which the last is the mount point; unmount at the end."""
    run("mount", *arguments)
    try:
        yield
    finally:
        run("umount", arguments[-1])


@contextlib.contextmanager
def injected(driver: Driver, call: str, fault: str, *options: str) -> Iterator[None]:
    """Have strace(1) inject a fault into a driver's system calls `call` through the `with` block.

    `fault` is in the syntax of strace's option `-e inject`. Fails if no call was affected.
    """
    needs("strace", met=shutil.which("strace") is not None)
    assert driver.process is not None
    command = ["strace", "-f", "-p", str(driver.process.pid), *options, "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:{fault}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        time.sleep(0.3)  # until strace has attached to all threads
        try:
            yield
        finally:
            strace.send_signal(signal.SIGTERM)
            said = strace.communicate()[1]
    assert ("(DELAYED)" if fault.startswith("delay") else "(INJECTED)") in said


WAYS = {
    "directory": "os.chdir(sys.argv[1])",
    "file": "file = open(sys.argv[1] + '/file')",
    "map": (
        "file = open(sys.argv[1] + '/file'); there = mmap.mmap(file.fileno(), 1, prot=1); "
        "file.close()"
    ),
    "device": "file = open(sys.argv[1])",
}


@contextlib.contextmanager
def holding(place: Path, way: str, *wrapper: str) -> Iterator[int]:
    """Run a process that keeps `place` in use, in one of `WAYS`, and yield its id."""
    script = f"import mmap, os, sys; {WAYS[way]}; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [*wrapper, sys.executable, "-c", script, place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.communicate()


def fill(path: Path) -> None:
    """Write to the file `path` until its filesystem has no room for 512 more bytes."""
    size = 1 << 20
    with path.open("wb", buffering=0) as file:
        while size >= 512:
            try:
                complete = file.write(bytes(size)) == size
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                complete = False
            if not complete:
                size //= 2
        os.fsync(file.fileno())


@pytest.fixture
def root() -> None:
    """Require root and loop devices."""
    needs("root", met=os.geteuid() == 0)
    needs("loop devices", met=Path("/dev/loop-control").exists())


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether reliability tests run in full, by the option `--thorough`."""
    return bool(request.config.getoption("--thorough"))


FilesystemFactory = Callable[..., Path]


@pytest.fixture
def filesystem(root: None, tmp_path: Path) -> Iterator[FilesystemFactory]:
    """Return a function that mounts a new filesystem of `size` bytes for the test's duration.

    It returns an empty directory on that filesystem, for a pool.
    """
    with contextlib.ExitStack() as mounted:

        def make(kind: str, size: int, *make_options: str, options: str = "") -> Path:
            needs(f"mkfs.{kind}", met=shutil.which(f"mkfs.{kind}") is not None)
            place = tmp_path / f"disk-{len(list(tmp_path.glob('disk-*.img')))}"
            image = place.with_suffix(".img")
            with image.open("wb") as file:
                file.truncate(size)
            run(f"mkfs.{kind}", "-q", *make_options, image)
            place.mkdir()
            run("mount", "-o", f"loop{',' if options else ''}{options}", image, place)
            mounted.callback(run, "umount", place)
            pool = place / "pool"
            pool.mkdir()
            return pool

        yield make


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Return a function that starts a driver on pools; the driver is stopped when the test ends."""
    with contextlib.ExitStack() as running:

        def start(
            *pools: str | Path,
            options: tuple[str, ...] = (),
            wrapper: tuple[str, ...] = (),
            **more: str,
        ) -> Driver:
            named = [f"default={pool}" if isinstance(pool, Path) else pool for pool in pools]
            number = len(list(tmp_path.glob("driver-*")))
            driver = Driver(tmp_path / f"driver-{number}", named, options, more, wrapper)
            return running.enter_context(driver)

        yield start
    _clean_up(tmp_path)


def _clean_up(folder: Path) -> None:
    """Fail if drivers have left mounts or loop devices, after removing these for later tests."""
    disks = [str(path.with_suffix("")) for path in folder.glob("disk-*.img")]
    left = [
        item.target
        for item in kernel.mountinfo()
        if item.target.startswith(f"{folder}/") and item.target not in disks
    ]
    for target in reversed(left):
        mount.umount2(Path(target))
    devices = [
        device for image in folder.rglob("volumes/*/disk.img") for device in loop.find(image)
    ]
    for device in devices:
        losetup.detach(device)
    assert not left, f"mounts were left: {left}"
    assert not devices, f"loop devices were left: {devices}"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Return an empty directory for a pool, on the filesystem of the temporary directory."""
    path = tmp_path / "pool"
    path.mkdir()
    return path


@pytest.fixture
def driver(serve: Callable[..., Driver], pool: Path) -> Driver:
    """Return a running driver with one pool."""
    return serve(pool)


def backing_files() -> Iterator[str]:
    """Yield the paths of the files that loop devices are bound to."""
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # freed since the listing
            yield entry.read_text().strip()


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves a mount or a loop device in its temporary directory."""
    yield
    here = f"{tmp_path}/"
    mounts = [item.target for item in kernel.mountinfo() if item.target.startswith(here)]
    assert not mounts, f"mounts are left: {mounts}"
    # The kernel frees a loop device a moment after its last mount is gone.
    deadline = time.monotonic() + 10
    while devices := [path for path in backing_files() if path.startswith(here)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert not devices, f"loop devices are left: {devices}"
