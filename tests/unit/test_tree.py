"""Deleting trees: what is mounted in one is never reached into."""

import errno
from pathlib import Path

import pytest

from pycsi.linux import mount, tree


@pytest.mark.parametrize("inside", ["", "data", "data/deep"])
@pytest.mark.parametrize("name", ["plain", "space \\ backslash", "new\nline"])
def test_mount_in_a_tree(root: None, tmp_path: Path, name: str, inside: str) -> None:
    """Where something is mounted in a tree, or at it, nothing of the tree is deleted: EBUSY."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = tmp_path / name
    (top / "data/deep").mkdir(parents=True)
    (top / "first").touch()
    mount.bind(kept, top / inside)
    try:
        with pytest.raises(OSError, match="mounted") as refusal:
            tree.remove(top)
        assert refusal.value.errno == errno.EBUSY
        assert (kept / "file").exists()
    finally:
        mount.umount2(top / inside)
    assert (top / "first").exists()
    tree.remove(top)
    assert not top.exists()
    tree.remove(top)
