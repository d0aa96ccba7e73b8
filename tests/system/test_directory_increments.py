"""Increments of directories: what they make is what the later snapshot has, and nothing else."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trees
from conftest import FilesystemFactory
from driver import GIB, MIB, Driver
from exports import bring, export, to
from terminal import piped

from pycsi.linux.punch import punch_hole
from pycsi.transfer import pax
from pycsi.transfer.manifest import Manifest, VolumeKind
from pycsi.transfer.writer import StreamWriter


def data_of(driver: Driver, name: str, folder: str = "volumes") -> Path:
    return driver.folders[0] / folder / f"{name}@node-1" / "data"


def change(root: Path) -> None:
    """Change something of every kind, and let times that can be set back hide it."""
    before = (root / "large").stat()
    with (root / "large").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    os.utime(root / "large", ns=(before.st_atime_ns, before.st_mtime_ns))
    with (root / "holes").open("r+b") as file:
        punch_hole(file.fileno(), 5 << 20, MIB)
    with (root / "deep/er/file 3").open("ab") as file:
        file.write(b"more")
    os.truncate(root / "deep/er/file 19", 5)
    (root / "deep/er/file 4").unlink()
    (root / "deep/er/file 5").chmod(0o600)
    os.chown(root / "deep/er/file 6", 7, 8)
    os.setxattr(root / "deep/er/file 7", "user.new", b"1")
    os.removexattr(root / "deep", "user.a=b%c")
    os.removexattr(root / "deep/er", "system.posix_acl_default")
    os.removexattr(root / "empty", "system.posix_acl_access")
    os.utime(root / "deep/er/file 8", ns=(1, 2))
    shutil.rmtree(root / ("d" * 200))
    (root / "deep/er").rename(root / "moved")
    os.link(root / "moved/file 9", root / "another name")
    (root / "a first name of holes").unlink()
    (root / "a first name of holes").write_text("of its own")
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    (root / "dangling").unlink()
    (root / "dangling").mkdir()
    (root / "dangling/inside").write_text("of a new directory")
    (root / "null").unlink()
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (root / "setuid").chmod(0o755)
    (root / "able").unlink()
    (root / "able").symlink_to("setuid")


def change_again(root: Path) -> None:
    shutil.rmtree(root / "dangling")
    (root / "dangling").symlink_to("moved")
    (root / "moved").rename(root / "deep/er")
    os.setxattr(root / "deep", "system.posix_acl_default", trees.ACL)
    (root / "deep/new").write_text("below an access control list")
    (root / "another name").unlink()
    (root / "a first name of holes").unlink()
    os.link(root / "holes", root / "a first name of holes")
    (root / "empty").write_text("no more")


@pytest.mark.parametrize("ground", ["xfs", "ext4", "btrfs"])
def test_chain(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path, ground: str
) -> None:
    """A full export and its increments make the last snapshot, attribute for attribute."""
    driver = serve(filesystem(ground, 2 * GIB))
    driver.create("v", 256 * MIB, parameters={"type": "directory", "quota": "none"})
    root, files = data_of(driver, "v"), [tmp_path / f"export-{number}" for number in range(4)]
    trees.make(root, privileged=True)
    (root / "kept").write_bytes(os.urandom(8 * MIB))
    os.link(root / "kept", root / "deep/kept too")
    for number, step in enumerate((lambda _: None, change, lambda _: None, change_again)):
        step(root)
        driver.snapshot(f"s{number}", "v@node-1")
        since = ["--since", f"s{number - 1}"] if number else []
        export(driver, f"s{number}", files[number], *since)
    sizes = [file.stat().st_size for file in files]
    assert sizes[1] < sizes[0] - 8 * MIB
    assert sizes[2] < 4096
    for number in (1, 3):
        bring(driver, *files[: number + 1], "w", "--privileged-nodes")
        original = trees.describe(data_of(driver, f"s{number}", "snapshots"))
        again = trees.describe(data_of(driver, "w"))
        assert original.keys() == again.keys()
        for name, described in original.items():
            assert again[name] == described, name
        driver.delete("w@node-1")
    for wrong, words in (
        ((files[0], files[3]), "builds on s2@node-1"),
        ((files[1],), "is an increment on s0@node-1"),
        (files[:2], "--privileged-nodes"),
    ):
        done = piped("import", *wrong, "x", *to(driver))
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert driver.volume_ids() == ["v@node-1"]


ROOT = pax.Entry(path=b"./", type=pax.FileType.DIRECTORY, mode=stat.S_IFDIR | 0o755)
REGULAR, LINK = pax.FileType.REGULAR, pax.FileType.SYMLINK


def crafted(path: Path, *entries: pax.Entry, data: bytes = b"", base: str = "") -> Path:
    """Write an export of a directory with these entries, the last of which has the data."""
    archive = b"".join(map(pax.header, (ROOT, *entries))) + pax.padded(data)
    fields: dict[str, Any] = dict.fromkeys(
        ("filesystem", "volume", "snapshot", "pool", "base_snapshot", "program"), ""
    )
    manifest = Manifest(
        **fields, kind=VolumeKind.DIRECTORY, size=MIB, thick=False, mkfs_options=(), created=1,
        parameters={"quota": "none"}, point="2" if base else "1", base=base,
    )  # fmt: skip
    with path.open("wb") as file:
        writer = StreamWriter(lambda written: void(file.write(written)))
        writer.manifest(manifest)
        writer.data(0, archive + bytes(2 * pax.BLOCK))
        writer.end(len(archive) + 2 * pax.BLOCK)
    return path


def void(_: object) -> None:
    """Return nothing."""


def removed(path: bytes) -> pax.Entry:
    return pax.Entry(path=path, type=REGULAR, records={pax.TYPE: pax.REMOVED})


def test_hostile(driver: Driver, tmp_path: Path) -> None:
    """No increment reaches what is outside the new volume, also through what came before it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    link = pax.Entry(path=b"./l", type=LINK, link=os.fsencode(outside))
    full = crafted(tmp_path / "full", link, pax.Entry(path=b"./f", type=REGULAR))
    below = pax.Entry(path=b"./l/file", type=REGULAR)
    for number, (entries, data, words) in enumerate((
        ((below,), b"", "no such directory before it"),
        ((removed(b"./l/file"),), b"", "no such directory before it"),
        ((removed(b"./../x"),), b"", "leads out of it"),
        ((removed(b"./absent"),), b"", "which is not there"),
        ((removed(b"./"),), b"", "twice"),
        ((pax.Entry(path=b"./h", type=pax.FileType.LINK, link=b"l/file"),), b"", "cannot be made"),
        ((pax.Entry(path=b"./f", type=REGULAR, mode=0o4755),), b"", "--privileged-nodes"),
        ((pax.Entry(path=b"./f", type=REGULAR, size=2 * MIB),), bytes(2 * MIB), "--size"),
    )):  # fmt: skip
        bad = crafted(tmp_path / f"bad-{number}", *entries, data=data, base="1")
        done = piped("import", full, bad, "w", *to(driver))
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert driver.volume_ids() == []
        assert not any((driver.folders[0] / "tmp").iterdir())
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "untouched"
    replaced = pax.Entry(path=b"./l", type=pax.FileType.DIRECTORY, mode=stat.S_IFDIR | 0o700)
    good = crafted(tmp_path / "good", removed(b"./f"), replaced, below, base="1")
    bring(driver, full, good, "w")
    assert sorted(path.name for path in data_of(driver, "w").rglob("*")) == ["file", "l"]
    assert (outside / "file").read_text() == "untouched"
    done = piped("import", crafted(tmp_path / "odd", removed(b"./f")), "x", *to(driver))
    assert "it is no increment" in done.stderr
    twice = [crafted(tmp_path / f"n{n}", file_of(n), data=b"x" * 700_000, base=b) for n, b in PAIR]
    done = piped("import", *twice, "x", *to(driver))
    assert "it holds more than the volume's size" in done.stderr


PAIR = ((0, ""), (1, "1"))


def file_of(number: int) -> pax.Entry:
    return pax.Entry(path=b"./n%d" % number, type=REGULAR, size=700_000)
