"""Records on disk: they survive, and a damaged one is never mistaken for a good one."""

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycsi.linux import record as store
from pycsi.linux import tree
from pycsi.model.records import Attachment, Volume, VolumeType
from pycsi.model.request import (
    Access,
    Capability,
    CapacityRange,
    Mode,
    RecordedRequest,
    Source,
    SourceKind,
)
from pycsi.model.size import (
    BLOCK,
    round_down,
    round_up,
    show,
)

TEXT = st.text(max_size=20)
MAPS = st.dictionaries(TEXT, TEXT, max_size=3)
SIZES = st.integers(0, 2**63 - 1)
CAPABILITIES = st.builds(
    Capability,
    access=st.sampled_from(Access),
    mode=st.sampled_from(Mode),
    filesystem=st.none() | TEXT,
    mount_flags=st.lists(TEXT, max_size=3).map(tuple),
)
REQUESTS = st.builds(
    RecordedRequest,
    capabilities=st.lists(CAPABILITIES, min_size=1, max_size=3).map(tuple),
    capacity=st.none()
    | st.builds(CapacityRange, required=st.none() | SIZES, limit=st.none() | SIZES),
    parameters=MAPS,
    mutable=MAPS,
    source=st.none() | st.builds(Source, kind=st.sampled_from(SourceKind), id=TEXT),
)
VOLUMES = st.builds(
    Volume,
    id=TEXT,
    name=TEXT,
    pool=TEXT,
    pool_uuid=TEXT,
    type=st.sampled_from(VolumeType),
    reason=TEXT,
    access=st.sampled_from(Access),
    filesystem=st.none() | TEXT,
    capacity=SIZES,
    enforced=st.booleans(),
    thick=st.booleans(),
    mkfs_options=st.lists(TEXT, max_size=3).map(tuple),
    request=REQUESTS,
    settings=MAPS,
    created=st.floats(0, 2**40),
    project=st.none() | st.integers(0, 2**32 - 1),
    handle=st.none() | TEXT,
    targets=st.lists(TEXT, max_size=2).map(tuple),
    attachment=st.none()
    | st.builds(Attachment, node=TEXT, capability=CAPABILITIES, readonly=st.booleans()),
)


def read_back(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record of `data` holds beside its schema number."""
    found: dict[str, Any] = json.loads(store.encoded(data))
    del found["schema"]
    return found


@given(VOLUMES)
def test_volume_survives_its_record(volume: Volume) -> None:
    """What is read back is what was written, field by field; an attachment is apart."""
    apart, written = volume.attachment, dataclasses.replace(volume, attachment=None)
    assert Volume.from_json(read_back(volume.to_json())) == written
    if apart:
        assert Attachment.from_json(read_back(apart.to_json())) == apart


def test_record_survives(tmp_path: Path) -> None:
    """A record can be read again, replaced, and leaves no other file."""
    path = tmp_path / "a.json"
    store.write_record(path, {"name": "\U0001f600\n", "size": 2**62})
    store.write_record(path, {"name": "\U0001f600\n", "size": 2**63 - 1})
    assert store.read_record(path) == {"name": "\U0001f600\n", "size": 2**63 - 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(path.read_text())["schema"] == store.SCHEMA
    assert path.stat().st_mode & 0o077 == 0


def test_half_written_record_is_never_seen(tmp_path: Path) -> None:
    """Litter of a crash while writing does not hide the record, nor stop the next writing."""
    path = tmp_path / "a.json"
    store.write_record(path, {"n": 1})
    (tmp_path / ".a.json.new").write_text('{"schema": 1, "n"')
    assert store.read_record(path) == {"n": 1}
    store.write_record(path, {"n": 2})
    assert store.read_record(path) == {"n": 2}


@pytest.mark.parametrize("lengths", [(10, 3000), (10, 9000), (9000, 20000)], ids=str)
def test_rewritten_record_is_whole(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    """Who reads while a record is rewritten, or after its writer was killed, finds a whole one."""
    path = tmp_path / "node.json"
    records = [{"text": str(number) * length} for number, length in enumerate(lengths)]
    store.write_record(path, records[0])
    rewriting = f"""
from itertools import cycle
from pathlib import Path
from pycsi.linux import record as store
for record in cycle({records}):
    store.rewrite_record(Path({str(path)!r}), record)
"""
    for _ in range(5):
        seen: set[int] = set()
        with subprocess.Popen([sys.executable, "-c", rewriting]) as writer:
            deadline = time.monotonic() + 30
            while len(seen) < len(records) and time.monotonic() < deadline:
                seen |= {records.index(store.read_rewritten(str(path))) for _ in range(100)}
            writer.kill()
        assert store.read_rewritten(str(path)) in records
        assert len(seen) == len(records), "nothing was rewritten"


def test_reader_waits_for_the_writer(tmp_path: Path) -> None:
    """A record that is being written over is read when that is done: a part is too rare to see."""
    path = tmp_path / "node.json"
    store.rewrite_record(path, {"n": 1})
    with path.open("r+b") as writing, ThreadPoolExecutor(1) as pool:
        fcntl.flock(writing, fcntl.LOCK_EX)
        writing.write(b"#")
        writing.flush()
        reading = pool.submit(store.read_rewritten, str(path))
        with pytest.raises(TimeoutError):
            reading.result(timeout=0.2)
        os.pwrite(writing.fileno(), b"{", 0)
        fcntl.flock(writing, fcntl.LOCK_UN)
        assert reading.result(timeout=30) == {"n": 1}


def test_record_that_has_gone_is_written_anew(tmp_path: Path) -> None:
    """A record that somebody has removed is there again, and nothing else is."""
    path = tmp_path / "node.json"
    store.rewrite_record(path, {"n": 1})
    assert store.read_rewritten(str(path)) == {"n": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"schema": 0}',
        b'{"schema": "1"}',
        b'{"schema": null}',
        b'{"schema": -1}',
        b'{"schema": 3}',
        b'{"schema": 1e9}',
        b"\xff\xfe",
        b"\0" * 100,
    ],
)
def test_record_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    """A damaged record, or one of a newer version, is a RecordError that names the file."""
    path = tmp_path / "volume.json"
    path.write_bytes(content)
    with pytest.raises(store.RecordError, match=r"volume\.json"):
        store.read_record(path)


def test_missing_record(tmp_path: Path) -> None:
    """A record that is not there is told from one that is damaged."""
    with pytest.raises(FileNotFoundError):
        store.read_record(tmp_path / "none.json")


def test_publish_is_a_rename(tmp_path: Path) -> None:
    """A finished directory appears whole, and is gone from where it was built."""
    for folder in ("tmp", "volumes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tmp/a").mkdir()
    (tmp_path / "tmp/a/data").write_text("data")
    store.rename_durably(tmp_path / "tmp/a", tmp_path / "volumes/a")
    assert (tmp_path / "volumes/a/data").read_text() == "data"
    assert not list((tmp_path / "tmp").iterdir())


def test_remove_follows_no_link(tmp_path: Path) -> None:
    """Removing a tree leaves alone what a link in it points to; an absent tree is fine."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("kept")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(tmp_path / "kept")
    tree.remove(tmp_path / "tree")
    tree.remove(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "kept/file").read_text() == "kept"


def test_remove_takes_any_depth(tmp_path: Path) -> None:
    """A tree deeper than Python's stack, with names longer than any path, is removed."""
    top = tmp_path / "tree"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("directory", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        inner = os.open("directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    tree.remove(top)
    assert not top.exists()


@given(st.integers(0, 2**70))
def test_rounding(size: int) -> None:
    """Rounding ends in whole blocks, at most one block away."""
    assert round_down(size) <= size <= round_up(size) < round_down(size) + 2 * BLOCK
    assert round_up(size) % BLOCK == round_down(size) % BLOCK == 0


def test_rounding_of_what_is_overdrawn() -> None:
    """What is left is never negative."""
    assert round_down(-1) == round_down(-BLOCK * 10) == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1536, "1.5 KiB"), (2**30, "1 GiB"), (5 * 2**40, "5 TiB"), (-4096, "-4 KiB")],
)
def test_show(size: int, text: str) -> None:
    """Sizes in messages are short."""
    assert show(size) == text
