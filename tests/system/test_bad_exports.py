"""Exports that cannot be imported: each is refused with its reason, and nothing is left."""

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driver import GIB, MIB, Driver, block_capability
from exports import bring, export, image_of, scribble, to
from rpc.conftest import limited_pool
from terminal import on_terminal, piped

from pycsi.transfer import pax
from pycsi.transfer.manifest import Manifest, VolumeKind
from pycsi.transfer.writer import StreamWriter

ROOT = pax.Entry(path=b"./", type=pax.FileType.DIRECTORY, mode=stat.S_IFDIR | 0o755)


@pytest.fixture
def driver(pool: Path, serve: Callable[..., Driver]) -> Driver:
    """Return a driver whose pool offers the same, whatever else fills the disk."""
    return serve(limited_pool("default", pool, GIB))


def refused(driver: Driver, file: Path | str, *words: str, status: int = 1) -> None:
    """Expect an import to be refused, in one line that has these words, and to leave nothing."""
    before, pool = driver.capacity(), driver.folders[0]
    volumes = driver.volume_ids()
    done = piped("import", file, "refused", *to(driver))
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("pycsi: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert driver.volume_ids() == volumes
    assert list((pool / "tmp").iterdir()) == []
    after = driver.capacity()
    assert abs(after.available_capacity - before.available_capacity) < 8 * MIB


def crafted(path: Path, tar: bytes = b"", **more: Any) -> Path:
    """Write a whole export of a directory, or of what `more` says, in a file."""
    fields: dict[str, Any] = {
        "kind": VolumeKind.DIRECTORY,
        "size": 64 * MIB,
        "filesystem": "",
        "thick": False,
        "mkfs_options": (),
        "parameters": {"quota": "none"},
        **dict.fromkeys(
            ("volume", "snapshot", "pool", "point", "base", "base_snapshot", "program"), ""
        ),
        "created": 1,
    }
    with path.open("wb") as file:
        writer = StreamWriter(lambda data: void(file.write(data)))
        writer.manifest(Manifest(**(fields | more)))
        if tar:
            writer.data(0, tar)
        writer.end(len(tar))
    return path


def void(_: object) -> None:
    """Return nothing."""


def tar(*entries: pax.Entry) -> bytes:
    return b"".join(map(pax.header, (ROOT, *entries))) + bytes(2 * pax.BLOCK)


def test_damaged(driver: Driver, tmp_path: Path) -> None:
    made = driver.create("v", 32 * MIB, capability=block_capability())
    scribble(image_of(driver, made.volume_id))
    file, bad = tmp_path / "file", tmp_path / "bad"
    export(driver, "v", file)
    whole = file.read_bytes()
    for change, words in (
        (whole[: len(whole) // 2], "is cut off after"),
        (whole[:-1], "is cut off after"),
        (whole[:20], "is cut off after"),
        (b"", "is no export of pycsi"),
        (whole[: 1 << 20] + b"\0" + whole[(1 << 20) + 1 :], "is damaged before byte"),
        (whole[:11] + b"\7" + whole[12:], "has version 7 of the format"),
        (whole + whole, "something follows its end"),
    ):
        bad.write_bytes(change)
        refused(driver, bad, words)
    refused(driver, tmp_path / "none", "No such file")
    refused(driver, tmp_path, "Is a directory")
    bring(driver, file, "refused")
    again = piped("import", file, "refused", *to(driver))
    assert (again.returncode, again.stdout) == (1, "")
    assert "a volume 'refused' exists" in again.stderr


def test_hostile(driver: Driver, tmp_path: Path) -> None:
    """What would lead out of the volume, or give rights on the node; and lies about what it is."""
    file = tmp_path / "bad"
    regular, link = pax.FileType.REGULAR, pax.FileType.SYMLINK
    out = pax.Entry(path=b"./l", type=link, link=os.fsencode(tmp_path))
    through = pax.Entry(path=b"./l/x", type=regular)
    for entries, words in (
        ([pax.Entry(path=b"../../x", type=regular)], "leads out of it"),
        ([pax.Entry(path=b"/x", type=regular)], "leads out of it"),
        ([out, through], "no such directory before it"),
        ([pax.Entry(path=b"./d", type=pax.FileType.BLOCK, device=(8, 0))], "--privileged-nodes"),
        ([pax.Entry(path=b"./s", type=regular, mode=0o4755)], "--privileged-nodes"),
    ):
        refused(driver, crafted(file, tar(*entries)), words)
    refused(driver, crafted(file, size=2**60), "wanted", "left of")
    filesystem: dict[str, Any] = {"kind": VolumeKind.IMAGE, "filesystem": "xfs", "parameters": {}}
    refused(driver, crafted(file, b"x" * 512, **filesystem, size=GIB), "holds no filesystem")
    refused(
        driver, crafted(file, parameters={"type": "image"}), "a volume of type directory", status=2
    )
    refused(driver, crafted(file, base="12", base_snapshot="s@n"), "is an increment on s@n")
    assert not (tmp_path / "x").exists()
    bring(driver, crafted(file, tar()), "fine")


def test_export_that_cannot_be(driver: Driver, tmp_path: Path) -> None:
    """What is in use is not exported, and no file is replaced."""
    made = driver.create("v", 32 * MIB, capability=block_capability())
    pool = to(driver)[0]
    file = tmp_path / "file"
    file.write_text("precious")
    done = piped("export", "v", file, pool)
    assert (done.returncode, file.read_text()) == (1, "precious")
    assert "exists; give another name" in done.stderr
    file.unlink()
    none = piped("export", "nobody", file, pool)
    assert (none.returncode, "no snapshot or volume 'nobody'" in none.stderr) == (3, True)
    full = piped("export", "v", "/dev/full", pool)
    assert (full.returncode, "No space left" in full.stderr) == (1, True)
    status, said = on_terminal(80, "export", "v", "-", pool)
    assert status == 2
    assert "no text for a terminal" in " ".join(said)
    status, said = on_terminal(80, "export", "v", str(tmp_path / "shown"), pool)
    assert (status, [line for line in said if "rror" in line]) == (0, [])
    (tmp_path / "shown").unlink()
    driver.stage(made.volume_id, tmp_path / "stage", block_capability())
    used = piped("export", "v", file, pool)
    assert (used.returncode, "is in use at /dev/loop" in used.stderr) == (1, True)
    driver.unstage(made.volume_id, tmp_path / "stage")
    assert list(tmp_path.glob("file*")) == []


_BEFORE_DATA = 16 * 1024
"""More bytes than an export has before its data."""


def slowly(driver: Driver, name: str, file: Path, act: Callable[[], None]) -> str:
    """Call `act` while an export is under way; return what the export says."""
    said: list[str] = []

    def run() -> None:
        done = piped("export", name, file, to(driver)[0], "--rate-limit", "1Mi")
        said.append(f"{done.returncode} {done.stderr}")

    thread = threading.Thread(target=run)
    thread.start()
    partial = Path(f"{file}.partial")
    # What comes first is not of the data, and before that was begun a change is no fault.
    while not (partial.exists() and partial.stat().st_size > _BEFORE_DATA):
        assert thread.is_alive()
        time.sleep(0.01)
    act()
    thread.join()
    assert list(file.parent.glob(f"{file.name}*")) == []
    return said[0]


@pytest.mark.parametrize("kind", ["block", "directory"])
def test_changed_meanwhile(driver: Driver, tmp_path: Path, kind: str) -> None:
    """An export of what changes under it, or is deleted, has no end and leaves no file."""
    if kind == "block":
        made = driver.create("v", 32 * MIB, capability=block_capability())
        data = image_of(driver, made.volume_id)
        scribble(data)
    else:
        made = driver.create("v", 32 * MIB, parameters={"type": "directory", "quota": "none"})
        data = driver.folders[0] / "volumes" / made.volume_id / "data" / "file"
        data.write_bytes(os.urandom(8 * MIB))
    driver.snapshot("s", made.volume_id)
    file = tmp_path / "file"

    def write() -> None:
        with data.open("r+b") as opened:
            opened.write(b"changed")

    assert " while it was exported" in slowly(driver, "v", file, write)

    def delete() -> None:
        driver.delete_snapshot("s@node-1")

    assert "1 pycsi: s@node-1 " in slowly(driver, "s@node-1", file, delete)
