"""Exports and imports, there and back: byte for byte, and attribute for attribute."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trees
from conftest import FilesystemFactory, needs, run
from driver import GIB, MIB, Driver, block_capability, mount_capability
from exports import bring, export, image_of, make_volume, piped_through, same_image, scribble, to
from terminal import PYCSI, environment, piped

from pycsi.linux.punch import punch_hole

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export-format.md"
GROUNDS = ("xfs", "ext4", "btrfs")


@pytest.fixture(params=GROUNDS)
def ground(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(filesystem: FilesystemFactory, ground: str) -> Path:
    """Return an empty directory for a pool."""
    return filesystem(ground, 2 * GIB)


Serve = Callable[..., Driver]


def test_raw_block(place: Path, serve: Serve, tmp_path: Path) -> None:
    """A snapshot of a raw block volume comes back as it was, compressed or not, by file or pipe."""
    driver = serve(place)
    made = driver.create("v", 128 * MIB, capability=block_capability(), onDelete="retain")
    scribble(image_of(driver, made.volume_id))
    snapshot = driver.snapshot("s", made.volume_id)
    original = place / "snapshots" / snapshot.snapshot_id / "disk.img"
    export(driver, "s", tmp_path / "plain")
    assert (tmp_path / "plain").stat().st_size < original.stat().st_blocks * 512 + MIB
    assert not list(tmp_path.glob("*.partial"))
    same_image(original, image_of(driver, bring(driver, tmp_path / "plain", "a")))
    larger = image_of(driver, piped_through(driver, "s", "b", "--size", "256Mi"))
    assert larger.stat().st_size == 256 * MIB
    run("cmp", "-n", str(128 * MIB), original, larger)
    listed = piped("get", "volumes", "a", "-o", "json", to(driver)[0]).stdout
    assert '"onDelete": "retain"' in listed


def test_compressed(place: Path, serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    driver = serve(place)
    made = driver.create("v", 64 * MIB, capability=block_capability())
    image = image_of(driver, made.volume_id)
    with image.open("r+b") as file:
        file.write(b"much the same " * MIB)
        file.write(os.urandom(3 * MIB))
    export(driver, made.volume_id, tmp_path / "small", "--compress")
    assert (tmp_path / "small").stat().st_size < 4 * MIB
    same_image(image, image_of(driver, bring(driver, tmp_path / "small", "a")))


def test_increments(place: Path, serve: Serve, tmp_path: Path) -> None:
    """A snapshot and three increments make what the last snapshot has: data, holes, and size."""
    driver = serve(place)
    made = driver.create("v", 64 * MIB, capability=block_capability())
    image = image_of(driver, made.volume_id)
    files = []
    for number in range(4):
        if number == 2:
            driver.expand(made.volume_id, 96 * MIB)
        scribble(image, number)
        with image.open("r+b") as file:
            punch_hole(file.fileno(), number * 8 * MIB + 5000, 3 * MIB)
        driver.snapshot(f"s{number}", made.volume_id)
        files.append(tmp_path / f"export-{number}")
        since = ["--since", f"s{number - 1}"] if number else []
        export(driver, f"s{number}", files[-1], *since)
    assert files[3].stat().st_size < 12 * MIB
    for number in range(4):
        again = bring(driver, *files[: number + 1], f"w{number}")
        original = place / "snapshots" / f"s{number}@node-1" / "disk.img"
        same_image(original, image_of(driver, again))
        driver.delete(again)
    with files[3].open("rb") as last:
        command: list[Path | str] = [*PYCSI, "import", *files[:3], "-", "w", *to(driver)]
        subprocess.run(command, stdin=last, stdout=subprocess.DEVNULL, check=True)
    for each in files:
        restored(each, tmp_path / "image")
    run("cmp", tmp_path / "image", image_of(driver, "w@node-1"))
    for wrong, words in (
        ((files[1],), "is an increment on s0@node-1; give"),
        ((files[0], files[2]), "builds on s1@node-1, and the export before it is of s0@node-1"),
        ((files[0], files[0]), "is a full export"),
    ):
        done = piped("import", *wrong, "x", *to(driver))
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    other = driver.create("other", 64 * MIB, capability=block_capability())
    driver.snapshot("t", other.volume_id)
    pool = to(driver)[0]
    for base, words in (("t", "no earlier snapshot of v@node-1"), ("v", "no snapshot 'v'")):
        done = piped("export", "s1", tmp_path / "x", "--since", base, pool)
        assert (done.returncode != 0, words in done.stderr) == (True, True), done.stderr


@pytest.mark.parametrize("kind", ["block", "directory"])
def test_resumed(driver: Driver, tmp_path: Path, kind: str) -> None:
    """An export that was cut off anywhere is continued, and is what it would have been."""
    volume_id = make_volume(driver, kind, 64 * MIB)
    driver.snapshot("s", volume_id)
    export(driver, "s", tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    file, partial = tmp_path / "file", tmp_path / "file.partial"
    half = len(whole) // 2
    for there in (whole[:7], whole[:half], whole[: half - 5] + bytes(5000), whole[:-1], whole):
        partial.write_bytes(there)
        export(driver, "s", file, "--resume")
        assert file.read_bytes() == whole
        assert not partial.exists()
        file.unlink()
    driver.snapshot("t", volume_id)
    pool = to(driver)[0]
    partial.write_bytes(whole[:half])
    for name, words in (("t", "is of s@node-1"), ("v@node-1", "is of s@node-1")):
        done = piped("export", name, file, "--resume", pool)
        assert done.returncode == 1
        assert words in done.stderr or "is a volume" in done.stderr
        assert partial.read_bytes() == whole[:half]


@pytest.mark.parametrize("kind", ["block", "directory"])
def test_nobody_takes_it(driver: Driver, kind: str) -> None:
    """An export that cannot be written ends, and says why; one that nobody reads can be ended."""
    make_volume(driver, kind, 64 * MIB)
    words = ["export", "v", "-", to(driver)[0]]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PYCSI, *words], stdout=full, stderr=subprocess.PIPE, env=environment(), check=False
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert done.stderr.count(b"\n") == 1
    with subprocess.Popen(
        [*PYCSI, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as command:
        assert command.stdout
        command.stdout.read(100_000)  # it has begun, and waits for a reader
        command.send_signal(signal.SIGINT)
        assert command.wait(10) != 0
    with subprocess.Popen(
        [*PYCSI, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as command:
        assert command.stdout
        assert command.stderr
        command.stdout.read(100_000)
        command.stdout.close()
        said = command.stderr.read()
    assert command.returncode != 0
    assert b"Traceback" not in said


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_filesystem(serve: Serve, tmp_path: Path, pool: Path, root: None, kind: str) -> None:
    """An image with a filesystem is the same elsewhere; beside its source it is mounted too."""
    driver = serve(pool)
    other_pool = tmp_path / "other"
    other_pool.mkdir()
    other = serve(other_pool)
    capability = mount_capability(kind)
    made = driver.create("v", 320 * MIB, type="image", capability=capability)
    stage = tmp_path / "stage"
    driver.stage(made.volume_id, stage, capability)
    (stage / "hello").write_text("world")
    driver.unstage(made.volume_id, stage)
    export(driver, "v", tmp_path / "file")
    same_image(
        image_of(driver, made.volume_id), image_of(other, bring(other, tmp_path / "file", "v"))
    )
    beside = bring(driver, tmp_path / "file", "w")
    larger = bring(driver, tmp_path / "file", "x", "--size", "512Mi")
    with_source = tmp_path / "source"
    driver.stage(made.volume_id, with_source, capability)
    for volume_id, least in ((beside, 200), (larger, 360)):
        driver.stage(volume_id, stage, capability)
        assert (stage / "hello").read_text() == "world"
        facts = os.statvfs(stage)
        assert facts.f_blocks * facts.f_frsize > least * MIB
        driver.unstage(volume_id, stage)
    driver.unstage(made.volume_id, with_source)


@pytest.mark.parametrize("quota", ["none", "required"])
def test_directory(place: Path, serve: Serve, tmp_path: Path, ground: str, quota: str) -> None:
    """A directory comes back with all that its files have."""
    if quota == "required" and ground != "btrfs":
        pytest.skip("project quota is tried in the virtual machine")
    driver = serve(place)
    parameters = {"type": "directory", "quota": quota}
    made = driver.create("v", 256 * MIB, parameters=parameters)
    source = driver.folders[0] / "volumes" / made.volume_id / "data"
    trees.make(source, privileged=True)
    snapshot = driver.snapshot("s", made.volume_id)
    file = tmp_path / "file"
    export(driver, "s", file)
    original = trees.describe(driver.folders[0] / "snapshots" / snapshot.snapshot_id / "data")
    assert original == trees.describe(source)
    refused = piped("import", file, "w", *to(driver))
    assert refused.returncode == 1
    assert "--privileged-nodes" in refused.stderr
    made_again = bring(driver, file, "w", "--privileged-nodes")
    again = trees.describe(driver.folders[0] / "volumes" / made_again / "data")
    assert original.keys() == again.keys()
    for name, described in original.items():
        assert again[name] == described, name


def test_gnu_tar(place: Path, serve: Serve, tmp_path: Path) -> None:
    """GNU tar restores what the page's program takes out of the export of a directory."""
    driver = serve(place)
    made = driver.create("v", 256 * MIB, parameters={"type": "directory", "quota": "none"})
    source = driver.folders[0] / "volumes" / made.volume_id / "data"
    trees.make(source, privileged=True)
    export(driver, "v", tmp_path / "file")
    archive, there = tmp_path / "data.tar", place / "there"
    there.mkdir()
    restored(tmp_path / "file", archive)
    words = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf"]
    said = subprocess.run(
        ["tar", *words, archive, "-C", there],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    ignored = "Ignoring unknown extended header keyword"
    assert [line for line in said.stderr.splitlines() if ignored not in line] == []
    original, again = trees.describe(source), trees.describe(there)
    assert again["socket"][0] == original.pop("socket")[0].replace("s", "p", 1)
    for name, described in original.items():
        assert again[name] == described, name


def restored(file: Path, result: Path) -> None:
    """Restore an export with the program on the page."""
    program = re.search(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert program
    assert program[1].count("\n") <= 50
    script = result.with_name("restore.py")
    script.write_text(program[1])
    run(sys.executable, "-I", script, file, result)


@pytest.mark.parametrize("options", [(), ("--compress",)], ids=["plain", "compressed"])
def test_program_of_the_page(driver: Driver, tmp_path: Path, options: tuple[str, ...]) -> None:
    """The program on the page, which has nothing of pycsi, restores an image."""
    if options:
        pytest.importorskip("zstandard")
        needs("zstd", met=subprocess.run(["which", "zstd"], check=False).returncode == 0)
    made = driver.create("v", 64 * MIB, capability=block_capability())
    scribble(image_of(driver, made.volume_id))
    export(driver, "v", tmp_path / "file", *options)
    restored(tmp_path / "file", tmp_path / "image")
    same_image(image_of(driver, made.volume_id), tmp_path / "image")
    (tmp_path / "cut").write_bytes((tmp_path / "file").read_bytes()[:-1])
    with pytest.raises(AssertionError, match="the export is cut off"):
        restored(tmp_path / "cut", tmp_path / "image")
