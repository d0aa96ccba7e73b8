"""Copies of trees are brought up to date, and any difference is seen."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trees

from pycsi.linux import treemirror
from pycsi.linux.fence import Fence
from pycsi.linux.treemirror import DifferenceError, Part


def update(source: Path, copy: Path, fence: Fence | None = None) -> None:
    part, since = (Part.CHANGED, fence.time) if fence else (Part.ALL, None)
    treemirror.update(source, copy, since, part, lambda: None)


def compare(source: Path, copy: Path, fence: Fence | None = None) -> None:
    part, since = (Part.CHANGED, fence.time) if fence else (Part.ALL, None)
    treemirror.compare(source, copy, since, part, lambda: None)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return a tree with some files, and a copy of it."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    (source / "folder" / "below").mkdir(parents=True)
    copy.mkdir()
    (source / "file").write_bytes(b"x" * 5000)
    (source / "folder" / "file").write_text("text")
    (source / "folder" / "below" / "file").write_text("1234")
    (source / "link").symlink_to("file")
    os.link(source / "file", source / "second")
    os.link(source / "file", source / "third")
    update(source, copy)
    compare(source, copy)
    return source, copy


def other_link(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("folder")


def no_link(root: Path) -> None:
    content = (root / "second").read_bytes()
    status = (root / "second").stat()
    (root / "second").unlink()
    (root / "second").write_bytes(content)
    os.utime(root / "second", ns=(1, status.st_mtime_ns))


def other_byte(root: Path) -> None:
    status = (root / "folder" / "file").stat()
    (root / "folder" / "file").write_text("tEXt")
    os.utime(root / "folder" / "file", ns=(1, status.st_mtime_ns))


def renamed(root: Path) -> None:
    (root / "folder").rename(root / "renamed")


DIFFERENCES: list[Callable[[Path], None]] = [
    other_link,
    no_link,
    other_byte,
    lambda root: (root / "more").touch(),
    lambda root: (root / "folder" / "file").unlink(),
    lambda root: (root / "folder" / "file").chmod(0o600),
    lambda root: (root / "folder" / "below").chmod(0o700),
    lambda root: os.utime(root / "file", ns=(1, 1)),
    lambda root: os.setxattr(root / "file", "user.more", b"1"),
    lambda root: os.truncate(root / "file", 5001),
    renamed,
]


@pytest.mark.parametrize("change", DIFFERENCES)
@pytest.mark.parametrize("where", ["source", "copy"])
def test_difference(pair: tuple[Path, Path], change: Callable[[Path], None], where: str) -> None:
    """Whatever differs is seen, and mended by an update."""
    source, copy = pair
    change(source if where == "source" else copy)
    with pytest.raises(DifferenceError):
        compare(source, copy)
    update(source, copy)
    compare(source, copy)
    assert trees.describe(source) == trees.describe(copy)


@pytest.mark.parametrize("change", DIFFERENCES)
def test_changed_since(pair: tuple[Path, Path], change: Callable[[Path], None]) -> None:
    """What changes after a fence is found without reading what does not."""
    source, copy = pair
    fence = Fence.now()
    update(source, copy)
    change(source)
    with pytest.raises(DifferenceError):
        compare(source, copy, fence)
    update(source, copy, fence)
    compare(source, copy, fence)
    assert trees.describe(source) == trees.describe(copy)


def test_directories_change_places(pair: tuple[Path, Path]) -> None:
    """Files that are old, below directories that were renamed, are not taken for those before."""
    source, copy = pair
    for name, text in (("one", "1"), ("two", "2")):
        (source / name / "below").mkdir(parents=True)
        (source / name / "below" / "file").write_text(text)
        os.utime(source / name / "below" / "file", ns=(1, 1))
    fence = Fence.now()
    update(source, copy)
    (source / "one").rename(source / "x")
    (source / "two").rename(source / "one")
    (source / "x").rename(source / "two")
    update(source, copy, fence)
    assert (copy / "one" / "below" / "file").read_text() == "2"
    compare(source, copy)


def test_what_is_old_is_not_read(pair: tuple[Path, Path]) -> None:
    """Without a change since the fence a file is passed over, though the copy differs."""
    source, copy = pair
    time.sleep(0.1)  # the clock of a fence may lag behind the times of what was just written
    fence = Fence.now()
    (copy / "folder" / "file").write_text("tEXt")
    update(source, copy, fence)
    compare(source, copy, fence)
    assert (copy / "folder" / "file").read_text() == "tEXt"
    with pytest.raises(DifferenceError):
        treemirror.compare(source, copy, fence.time, Part.UNCHANGED, lambda: None)


def test_fence() -> None:
    """A fence does not hold after another boot, or once the clock was set back."""
    fence = Fence.now()
    assert fence.holds
    assert fence.time < time.time_ns()
    assert not Fence(time=fence.time, boot="another", ahead=fence.ahead).holds
    assert not Fence(time=fence.time, boot=fence.boot, ahead=fence.ahead + 10**9).holds
