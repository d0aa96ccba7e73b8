"""Exports and imports by the command line, and images to export."""

import random
import subprocess
from pathlib import Path

import trees
from conftest import run
from driver import MIB, Driver, block_capability
from terminal import PYCSI, environment, piped


def image_of(driver: Driver, volume_id: str) -> Path:
    return driver.folders[0] / "volumes" / volume_id / "disk.img"


def scribble(path: Path, seed: int = 1) -> None:
    """Write random data into an image, with holes between."""
    chance = random.Random(seed)  # noqa: S311
    with path.open("r+b") as file:
        for _ in range(50):
            file.seek(chance.randrange(path.stat().st_size // 4096 - 100) * 4096)
            file.write(chance.randbytes(chance.randrange(1, 300_000)))


def make_volume(driver: Driver, kind: str, size: int) -> str:
    """Make the volume v, a `block` or a `directory` one, with data; return its id."""
    if kind == "block":
        made = driver.create("v", size, capability=block_capability())
        scribble(image_of(driver, made.volume_id))
    else:
        made = driver.create("v", size, parameters={"type": "directory", "quota": "none"})
        trees.make(driver.folders[0] / "volumes" / made.volume_id / "data")
    return made.volume_id


def to(driver: Driver) -> tuple[str, str]:
    return f"--pool=default={driver.folders[0]}", f"--endpoint={driver.socket}"


def export(driver: Driver, name: str, file: Path, *options: str) -> None:
    done = piped("export", name, file, f"--pool=default={driver.folders[0]}", *options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def bring(driver: Driver, *words: Path | str) -> str:
    """Import files under a name, with options; return the id of the new volume."""
    done = piped("import", *words, *to(driver))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def piped_through(driver: Driver, name: str, new: str, *options: str) -> str:
    """Export to a pipe, and import from it; return the id of the new volume."""
    from_one, into = [*PYCSI, "export", name, "-", to(driver)[0]], [*PYCSI, "import", "-", new]
    with subprocess.Popen(from_one, stdout=subprocess.PIPE, env=environment()) as writer:
        made = subprocess.run(
            [*into, *to(driver), *options],
            stdin=writer.stdout,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
            check=True,
        )
    assert writer.returncode == 0
    return made.stdout.strip()


def same_image(one: Path, other: Path) -> None:
    """Compare an image and its copy byte by byte, and their holes."""
    assert one.stat().st_size == other.stat().st_size
    run("cmp", one, other)
    assert other.stat().st_blocks * 512 <= one.stat().st_blocks * 512 + MIB
    there = trees.holes(other)
    for start, end in trees.holes(one):
        assert any(first <= start and end <= last for first, last in there), (start, end)
