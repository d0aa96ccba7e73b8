"""Exports that are damaged or hostile: they are refused, whatever is in them.

The streams are made as an export is made, and changed at random or on purpose.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import needs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycsi.transfer import pax, unpack
from pycsi.transfer.format import Codec, FrameKind, Header, StreamError, first_link, link, preface
from pycsi.transfer.manifest import Manifest, VolumeKind
from pycsi.transfer.reader import StreamReader
from pycsi.transfer.writer import StreamWriter

SIZE = 1 << 20
PIECES = [(4096, b"a" * 5000), (65536, b"b"), (100_000, bytes(range(256)) * 100)]


def manifest(kind: VolumeKind = VolumeKind.BLOCK, **more: Any) -> Manifest:
    fields: dict[str, Any] = {
        "kind": kind,
        "size": SIZE,
        "filesystem": "",
        "thick": False,
        "mkfs_options": (),
        "parameters": {"onDelete": "retain"},
        "volume": "v@node-1",
        "snapshot": "s@node-1",
        "pool": "2a1f",
        "created": 1.5,
        "point": "12",
        "base": "",
        "base_snapshot": "",
        "program": "pycsi",
    }
    return Manifest(**(fields | more))


def stream(*, end: bool = True, compress: bool = False) -> bytes:
    made: list[bytes] = []
    writer = StreamWriter(lambda data: made.append(bytes(data)), compress=compress)
    writer.manifest(manifest())
    for offset, data in PIECES:
        writer.data(offset, data)
    if end:
        writer.end(SIZE)
    return b"".join(made)


def read(data: bytes) -> bytes:
    """Return the image in a stream."""
    reader = StreamReader(io.BytesIO(data).read)
    image = bytearray(SIZE)
    for piece in reader.pieces(reader.manifest.size):
        assert piece.data is not None
        image[piece.offset : piece.offset + piece.size] = piece.data
    return bytes(image)


def refused(data: bytes, words: str) -> None:
    with pytest.raises(StreamError, match=words):
        read(data)


WHOLE = stream()
IMAGE = read(WHOLE)


def chained(*frames: tuple[Header, bytes], begin: bytes = b"") -> bytes:
    """Return a stream whose checksums agree, whatever its frames say."""
    begin = begin or preface()
    made, before = begin, first_link(begin)
    for header, data in frames:
        before = link(before, header.packed(), data)
        made += header.packed() + before + data
    return made


def frame(kind: FrameKind, offset: int, size: int, data: bytes = b"") -> tuple[Header, bytes]:
    return Header(kind, Codec.PLAIN, offset, size, len(data)), data


MANIFEST = frame(FrameKind.MANIFEST, 0, len(manifest().encoded()), manifest().encoded())


def test_there_and_back() -> None:
    assert IMAGE[4096 : 4096 + 5000] == b"a" * 5000
    assert IMAGE.count(b"\0") > SIZE - 40_000


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_change_is_seen(data: st.DataObject) -> None:
    """A stream in which anything was changed, cut or put in is refused."""
    at = data.draw(st.integers(0, len(WHOLE) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "drop", "insert", "repeat"]))
    count = data.draw(st.integers(1, 200))
    part = WHOLE[at : at + count]
    changed = {
        "flip": WHOLE[:at] + bytes([WHOLE[at] ^ (1 << count % 8)]) + WHOLE[at + 1 :],
        "cut": WHOLE[:at],
        "drop": WHOLE[:at] + WHOLE[at + count :],
        "insert": WHOLE[:at] + os.urandom(count) + WHOLE[at:],
        "repeat": WHOLE[:at] + part + WHOLE[at:],
    }[how]
    if changed != WHOLE:
        with pytest.raises(StreamError):
            read(changed)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_garbage(data: bytes) -> None:
    for begin in (b"", preface(), WHOLE[:400]):
        with pytest.raises(StreamError):
            read(begin + data)


def test_without_an_end() -> None:
    refused(stream(end=False), "cut off after")
    refused(WHOLE + b"x", "something follows its end")
    refused(WHOLE + WHOLE, "something follows its end")
    refused(b"", "no export of pycsi")
    refused(b"PK\x03\x04" * 50, "no export of pycsi")


def test_newer_version() -> None:
    newer = preface()[:11] + b"\2" + preface()[12:]
    refused(chained(MANIFEST, begin=newer), "version 2 of the format, and this pycsi reads")


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([frame(FrameKind.DATA, 0, 1, b"x")], "manifest is not where"),
        ([MANIFEST, MANIFEST], "second manifest"),
        ([MANIFEST, frame(FrameKind.DATA, SIZE, 1, b"x")], "beyond the size"),
        ([MANIFEST, frame(FrameKind.DATA, 2**64 - 1, 1, b"x")], "larger than any can be"),
        ([MANIFEST, frame(FrameKind.DATA, 5, 1, b"x"), frame(FrameKind.DATA, 5, 1, b"x")], "overl"),
        ([MANIFEST, frame(FrameKind.DATA, 9, 1, b"x"), frame(FrameKind.DATA, 5, 1, b"x")], "order"),
        ([MANIFEST, frame(FrameKind.DATA, 0, 0)], "is empty"),
        ([MANIFEST, frame(FrameKind.HOLE, 0, 4096)], "hole of an increment"),
        ([MANIFEST, frame(FrameKind.DATA, 0, 2, b"x")], "another number of bytes"),
        ([MANIFEST, frame(FrameKind.HOLE, 0, 2, b"x")], "bytes where none belong"),
        ([MANIFEST, frame(FrameKind.HOLE, 0, SIZE + 1)], "beyond the size"),
        ([MANIFEST, frame(FrameKind.END, 7, 0)], "1 frames where 7 were"),
        ([MANIFEST, (Header(FrameKind.DATA, Codec.PLAIN, 0, 2**40, 2**40), b"")], "larger than"),
    ],
)
def test_frames_that_contradict(frames: list[tuple[Header, bytes]], words: str) -> None:
    refused(chained(*frames), words)


def test_bombs() -> None:
    """What is compressed takes no more memory than it says, and says no more than a frame has."""
    zstandard = pytest.importorskip("zstandard")
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    for size, words in ((4 << 20, "another number"), (64 << 20, "larger than any")):
        header = Header(FrameKind.DATA, Codec.ZSTD, 0, size, len(bomb))
        refused(chained(MANIFEST, (header, bomb)), words)
    header = Header(FrameKind.DATA, Codec.ZSTD, 0, 5, 5)
    refused(chained(MANIFEST, (header, b"xxxxx")), "cannot be decompressed")
    assert read(stream(compress=True)) == IMAGE


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"kind": 5}', b"1" * 5000],
)
def test_manifest_that_is_none(text: bytes) -> None:
    refused(chained(frame(FrameKind.MANIFEST, 0, len(text), text)), "its manifest")


@pytest.mark.parametrize(
    "more",
    [
        {"size": 0},
        {"size": -4096},
        {"size": 2**63},
        {"size": 4097},
        {"size": True},
        {"filesystem": "ntfs"},
        {"filesystem": "ext4"},
        {"kind": "tape"},
        {"parameters": {"a": 1}},
        {"parameters": []},
        {"mkfs_options": "abc"},
        {"created": float("inf")},
        {"volume": None},
        {"volume": "x" * 5000},
        {"base_snapshot": "\x1b[31m"},
    ],
)
def test_manifest_that_cannot_be(more: dict[str, Any]) -> None:
    data = manifest(**more).encoded()
    refused(chained(frame(FrameKind.MANIFEST, 0, len(data), data)), "its manifest")


# Directories

ROOT = pax.Entry(path=b"./", type=pax.FileType.DIRECTORY, mode=stat.S_IFDIR | 0o755)
END = bytes(2 * pax.BLOCK)


def entry(path: bytes, kind: pax.FileType = pax.FileType.REGULAR, **more: Any) -> pax.Entry:
    return pax.Entry(path=path, type=kind, **{"mode": 0o644, **more})


def archive(*entries: pax.Entry | bytes) -> bytes:
    return b"".join(pax.header(item) if isinstance(item, pax.Entry) else item for item in entries)


def sparse(text: bytes, size: bytes = b"100000", data: bytes = b"") -> bytes:
    """Return an entry with holes, whose map is `text`."""
    extent_map = pax.padded(text)
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": b"./f",
        b"GNU.sparse.realsize": size,
    }
    made = entry(b"./GNUSparseFile.0/f", records=records, size=len(extent_map) + len(data))
    return pax.header(made) + extent_map + pax.padded(data)


@contextlib.contextmanager
def unpacked(tar: bytes, folder: Path, *, privileged: bool = False) -> Iterator[Path]:
    """Unpack an archive, exported as a whole, into a directory beside which others are."""
    made: list[bytes] = []
    writer = StreamWriter(lambda data: made.append(bytes(data)))
    writer.manifest(manifest(VolumeKind.DIRECTORY))
    writer.data(0, tar)
    writer.end(len(tar))
    root = folder / os.urandom(4).hex()
    root.mkdir()
    reader = StreamReader(io.BytesIO(b"".join(made)).read)
    pieces = reader.pieces(2**62)
    unpack.receive(pieces, root, lambda _: None, limit=SIZE, privileged=privileged)
    yield root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    needs("root", met=os.geteuid() == 0)
    (tmp_path / "outside").write_text("as it was")
    return tmp_path


FILE, LINK, DIRECTORY = pax.FileType.REGULAR, pax.FileType.LINK, pax.FileType.DIRECTORY
SYMLINK = pax.FileType.SYMLINK
HOSTILE: dict[str, tuple[bytes, str]] = {
    "up": (archive(ROOT, entry(b"../outside")), "leads out"),
    "up below": (archive(ROOT, entry(b"./a/../../outside")), "leads out"),
    "absolute": (archive(ROOT, entry(b"/etc/passwd")), "leads out"),
    "no root": (archive(entry(b"./a")), "begin with the directory"),
    "root twice": (archive(ROOT, ROOT), "itself twice"),
    "twice": (archive(ROOT, entry(b"./a"), entry(b"./a")), "twice"),
    "directory twice": (archive(ROOT, *[entry(b"./a/", DIRECTORY)] * 2), "twice"),
    "file below a link": (
        archive(ROOT, entry(b"./a", SYMLINK, link=b".."), entry(b"./a/outside")),
        "no such directory before it",
    ),
    "directory over a link": (
        archive(ROOT, entry(b"./a", SYMLINK, link=b".."), entry(b"./a/", DIRECTORY)),
        "twice",
    ),
    "below a file": (archive(ROOT, entry(b"./a"), entry(b"./a/b")), "no such directory"),
    "below nothing": (archive(ROOT, entry(b"./a/b")), "no such directory"),
    "link out": (archive(ROOT, entry(b"./a", LINK, link=b"../outside")), "leads out"),
    "link absolute": (archive(ROOT, entry(b"./a", LINK, link=b"/etc/passwd")), "leads out"),
    "link through a link": (
        archive(
            ROOT,
            entry(b"./a", SYMLINK, link=b".."),
            entry(b"./b", LINK, link=b"./a/outside"),
        ),
        "cannot be made",
    ),
    "link to nothing": (archive(ROOT, entry(b"./a", LINK, link=b"./b")), "cannot be made"),
    "link to a directory": (
        archive(ROOT, entry(b"./a/", DIRECTORY), entry(b"./b", LINK, link=b"./a")),
        "to a directory",
    ),
    "device": (archive(ROOT, entry(b"./a", pax.FileType.CHARACTER, device=(1, 3))), "device node"),
    "disk": (archive(ROOT, entry(b"./a", pax.FileType.BLOCK, device=(8, 0))), "device node"),
    "setuid": (archive(ROOT, entry(b"./a", mode=0o4755)), "setuid"),
    "setgid": (archive(ROOT, entry(b"./a", mode=0o2755)), "setuid or setgid"),
    "capability": (
        archive(ROOT, entry(b"./a", records={pax.XATTR + b"security.capability": b"x"})),
        "such as file capabilities",
    ),
    "long attribute": (
        archive(ROOT, entry(b"./a", records={pax.XATTR + b"user.a": b"x" * 70_000})),
        "cannot be set",
    ),
    "unknown attribute": (
        archive(ROOT, entry(b"./a", records={pax.XATTR + b"no.such": b"x"})),
        "cannot be set",
    ),
    "bad ACL": (
        archive(ROOT, entry(b"./a", records={pax.ACL_ACCESS: b"user::rwx,nobody"})),
        "ACL that cannot be read",
    ),
    "long name": (archive(ROOT, entry(b"./" + b"x" * 256)), "name that cannot be"),
    "long path": (archive(ROOT, entry(b"./" + b"x/" * 20_000)), "name that cannot be"),
    "NUL": (archive(ROOT, entry(b"./", records={b"path": b"./a\0b"})), "name that cannot be"),
    "cut": (archive(ROOT, entry(b"./a", size=5000), b"x" * 600), "cut off"),
    "no end": (archive(ROOT), "cut off"),
    "short end": (archive(ROOT) + bytes(pax.BLOCK), "cut off"),
    "NUL in a link": (archive(ROOT, entry(b"./a", SYMLINK, link=b"a\0b")), "a link that cannot be"),
    "data of a link": (archive(ROOT, entry(b"./a", SYMLINK, size=512), bytes(512)), "none belongs"),
    "padding": (archive(ROOT, entry(b"./a", size=1), b"x" * 512), "data where none belongs"),
    "too much": (archive(ROOT, entry(b"./a", size=2 * SIZE), bytes(2 * SIZE)), "volume's size"),
    "holes overlap": (archive(ROOT, sparse(b"2\n0\n10\n5\n10\n", data=b"x" * 20)), "map of holes"),
    "holes beyond": (archive(ROOT, sparse(b"1\n99999\n2\n", data=b"xx")), "map of holes"),
    "holes overflow": (
        archive(ROOT, sparse(b"1\n9223372036854775807\n9223372036854775807\n")),
        "map of holes",
    ),
    "holes of nothing": (archive(ROOT, sparse(b"1\n0\n10\n")), "map of holes"),
    "many holes": (archive(ROOT, sparse(b"99999999999999999\n")), "map of holes"),
    "no map": (archive(ROOT, sparse(b"x\n")), "a place in a file with holes"),
    "endless size": (archive(ROOT, sparse(b"0\n", size=b"9223372036854775807")), "cannot be made"),
    "unknown type": (archive(ROOT) + pax.header(entry(b"./a"))[:-512] + b"\1" * 512, "cannot be r"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archive(folder: Path, what: str) -> None:
    tar, words = HOSTILE[what]
    before = sorted(folder.iterdir())
    with pytest.raises(StreamError, match=words), unpacked(tar + END * ("end" not in what), folder):
        pass
    assert (folder / "outside").read_text() == "as it was"
    assert len(list(folder.iterdir())) == len(before) + 1


def test_privileged(folder: Path) -> None:
    tar = archive(ROOT, *(pax.header(item) for item in _privileged())) + END
    with unpacked(tar, folder, privileged=True) as root:
        assert stat.S_ISCHR((root / "null").lstat().st_mode)
        assert (root / "setuid").lstat().st_mode & 0o6000 == 0o6000


def _privileged() -> list[pax.Entry]:
    return [
        entry(b"./null", pax.FileType.CHARACTER, device=(1, 3)),
        entry(b"./setuid", mode=0o6755),
    ]


@settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_archive(folder: Path, data: st.DataObject) -> None:
    """An archive that was changed at random, with checksums that agree, never leads out."""
    tar = bytearray(_whole())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(tar) - 1))
        tar[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            _mend(tar, at // 512 * 512)
    with contextlib.suppress(StreamError), unpacked(bytes(tar), folder):
        pass
    assert (folder / "outside").read_text() == "as it was"


def _whole() -> bytes:
    return archive(
        ROOT,
        entry(b"./a/", DIRECTORY, records={pax.XATTR + b"user.a": b"b"}),
        entry(b"./a/b", size=700),
        pax.padded(b"x" * 700),
        entry(b"./a/c", LINK, link=b"./a/b"),
        sparse(b"2\n0\n10\n500\n10\n", data=b"x" * 20),
        entry(b"./l", SYMLINK, link=b"a"),
        END,
    )


def _mend(tar: bytearray, at: int) -> None:
    """Make the checksum of a header agree."""
    block = tar[at : at + 512]
    block[148:156] = b" " * 8
    tar[at + 148 : at + 156] = b"%06o\0 " % sum(block)


def test_acl(folder: Path) -> None:
    text = b"user::rwx,user:12345:r-x,group::r--,group:3000000:rw-,mask::rwx,other::---"
    with unpacked(archive(ROOT, entry(b"./a", records={pax.ACL_ACCESS: text})) + END, folder) as at:
        assert b"\x39\x30" in os.getxattr(at / "a", "system.posix_acl_access")
