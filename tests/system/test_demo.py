"""`pycsi demo`: everything is proved, and nothing is left, however it ends."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FilesystemFactory, needs
from driver import GIB

import pycsi

NOBODY = 65534
DEMO = ("-m", "pycsi", "demo", "--directory")
AS_ROOT = (
    "Directory volume, limited to 64 MiB",
    "Image with ext4",
    "Image with xfs",
    "Raw block volume",
    "Inline ephemeral volume",
)


def show(directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, *DEMO, directory], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def programs(root: None) -> None:
    for kind in ("btrfs", "ext4", "xfs"):
        needs(f"mkfs.{kind}", met=shutil.which(f"mkfs.{kind}") is not None)


def driver_of(output: str) -> Path:
    """Return the driver's directory in /proc, which goes when the process does."""
    found = re.search(r"process (\d+)", output)
    assert found
    return Path("/proc") / found[1]


@contextlib.contextmanager
def demo_until(words: str, directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the demo until it has printed `words`; end it in the `with` block."""
    command = [sys.executable, *DEMO, str(directory)]
    environment = os.environ | {"TMPDIR": str(directory)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout
        output = ""
        while words not in output:
            line = demo.stdout.readline()
            assert line, output
            output += line
        yield demo, output
        demo.communicate()


def test_all_is_proved(programs: None, tmp_path: Path) -> None:
    output = show(tmp_path)
    for title in AS_ROOT:
        assert title in output
    assert "left out" not in output
    assert "All that was shown was proved" in output
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output
    assert not driver_of(output).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_any_filesystem_will_do(programs: None, filesystem: FilesystemFactory, kind: str) -> None:
    """Project quota of the directory's own filesystem is used; btrfs quotas are not switched on."""
    if kind == "xfs" and not Path("/proc/fs/xfs/xqm").exists():
        pytest.skip("needs a kernel with XFS quotas")
    directory = filesystem(kind, 4 * GIB, options="prjquota" if kind == "xfs" else "")
    output = show(directory)
    limiter = {"xfs": "project quota", "btrfs": "btrfs quota group"}[kind]
    assert f"limited to 64 MiB by {limiter}" in output
    assert "pool btrfs" not in output
    assert list(directory.iterdir()) == []


def test_missing_program_is_named(programs: None, tmp_path: Path) -> None:
    """What cannot be shown is left out with what to install; the rest is proved."""
    hide = 'for name in xfs btrfs; do mount --bind /dev/null "$(command -v mkfs.$name)"; done'
    enter = ("unshare", "--mount", "sh", "-ec")
    done = subprocess.run(
        [*enter, f'{hide}; exec "$@"', "sh", sys.executable, *DEMO, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "left out: mkfs.xfs not found; install xfsprogs" in said
    assert "mkfs.btrfs not found; install btrfs-progs" in said
    assert "All that was shown was proved" in said


def test_disproved_claim_fails(programs: None, tmp_path: Path) -> None:
    """What was expected and what was found is said, and nothing is left."""
    broken = tmp_path / "bin" / "mkfs.xfs"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho out of order\nexit 1\n")
    broken.chmod(0o755)
    directory = tmp_path / "directory"
    directory.mkdir()
    done = subprocess.run(
        [sys.executable, *DEMO, directory],
        env=os.environ | {"PATH": f"{broken.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "expected: CreateVolume answers OK" in done.stdout
    assert "out of order" in done.stdout
    assert "NOT all was as claimed" in done.stdout
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(
    programs: None, tmp_path: Path, number: signal.Signals
) -> None:
    with demo_until("the device has exactly", tmp_path) as (demo, output):
        demo.send_signal(number)
    assert demo.returncode == 128 + signal.SIGINT
    assert not driver_of(output).exists()
    assert list(tmp_path.iterdir()) == []


def test_killed_demo_takes_driver_and_mounts_along(programs: None, tmp_path: Path) -> None:
    with demo_until("Image with ext4", tmp_path) as (demo, output):
        demo.kill()
    deadline = time.monotonic() + 30
    while driver_of(output).exists() or str(tmp_path) in _loop_devices():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _loop_devices() -> str:
    return "".join(
        entry.read_text() for entry in Path("/sys/block").glob("loop*/loop/backing_file")
    )


@pytest.fixture
def directory_of_nobody() -> Iterator[Path]:
    """Return a directory of the user nobody, or of whoever runs the tests without root."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def run_as_nobody(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python without root. Where its own is closed to others, the system's has to do."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    source = str(Path(pycsi.__file__).parents[1])
    nobody = NOBODY if os.geteuid() == 0 else None
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([source, *packages])}

    def run(python: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *arguments],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            user=nobody,
            group=nobody,
            extra_groups=[] if nobody else None,
        )

    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        with contextlib.suppress(OSError):
            if run(python, "-c", "import grpc, rich, pycsi").returncode == 0:
                return run(python, *words)
    pytest.skip(f"needs a {version} with our packages that a user who is not root can run")


def user_namespaces() -> bool:
    def setting(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except FileNotFoundError:
            return ""

    return (
        setting("/proc/sys/user/max_user_namespaces") != "0"
        and setting("/proc/sys/kernel/unprivileged_userns_clone") != "0"
        and setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") != "1"
    )


def test_without_root(directory_of_nobody: Path) -> None:
    """Directories are shown in a user namespace; what root would add is said."""
    if not user_namespaces():
        pytest.skip("needs user namespaces, which this system forbids")
    done = run_as_nobody(*DEMO, directory_of_nobody)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "quota: none" in done.stdout
    assert "As root (sudo) the demo adds" in " ".join(done.stdout.split())
    assert "All that was shown was proved" in done.stdout
    assert not driver_of(done.stdout).exists()
    assert list(directory_of_nobody.iterdir()) == []


def test_without_root_and_user_namespaces(tmp_path: Path) -> None:
    """One line says what to do."""
    for program in ("setpriv", "unshare"):
        needs(program, met=shutil.which(program) is not None)
    needs("user namespaces", met=user_namespaces() or os.geteuid() == 0)
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin"
    enter = ("unshare", "--user", "--map-root-user")
    done = subprocess.run(
        [*enter, "sh", "-c", f'{forbid} "$@"', "sh", sys.executable, *DEMO, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "run it with sudo" in done.stderr
    assert list(tmp_path.iterdir()) == []
