"""Whoever has the controller's certificate can do no more on a node than with its volumes."""

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from authority import credentials
from cluster import NodeDriver, make_certificates
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from routing.conftest import create, ending
from routing.test_trust import TARGET, UNAVAILABLE, called, methods

from pycsi.proto import csi_pb2 as csi

CANARY = "canary"

HOSTILE = [
    "../neighbour",
    "../../neighbour/canary",
    "../neighbour/volumes/v@a",
    "../neighbour@a",
    "..",
    ".",
    "@",
    "v@a/../../../neighbour",
    "{neighbour}",
    "{neighbour}@a",
    "v@b",
    "v@a\0",
    "\0",
    "v@a\n",
    "a/b",
    "~",
    "$(touch {neighbour}/new)",
    "; touch {neighbour}/new",
    "%2e%2e/neighbour",
    "\u2025/neighbour",
    "x" * 5000,
    "neighbour",
    "linked@a",
]
"""What is put where a name, an id or a path can be; `{neighbour}` lies beside the pool."""


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("hostile") / "tls")


@pytest.fixture
def node(tmp_path: Path, tls: Path) -> Iterator[NodeDriver]:
    """Return a node whose pool lies beside a directory that is none of its business."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "neighbour" / "volumes" / "v@a" / "data").mkdir(parents=True)
    for folder in (tmp_path / "neighbour", tmp_path / "neighbour" / "volumes" / "v@a"):
        (folder / CANARY).write_text("mine")
    with NodeDriver("a", tmp_path / "driver", [f"default={tmp_path / 'pool'}"], tls) as running:
        running.snapshot("s", create(running, "v"))
        (running.pool / "volumes" / "linked@a").symlink_to(tmp_path / "neighbour/volumes/v@a")
        yield running


def tree(folder: Path, *without: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is in a directory, with all that a change would change."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name) not in without]
        for name in (*folders, *files):
            path = Path(place, name)
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, content)
    return found


def filled(kind: Any, value: str) -> Message:
    """Return a message with `value` in every field that takes text, at any depth."""
    message: Any = GetMessageClass(kind)()
    for field in kind.fields:
        if field.message_type and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)["pool" if field.name == "parameters" else value] = value
        elif field.message_type and field.message_type.full_name.startswith(("csi.", "pycsi.")):
            part = filled(field.message_type, value)
            place = getattr(message, field.name)
            if field.is_repeated:
                place.append(part)
            else:
                place.CopyFrom(part)
        elif field.type == field.TYPE_STRING:
            if field.is_repeated:
                getattr(message, field.name).extend([value, value])
            else:
                setattr(message, field.name, value)
    made: Message = message
    return made


def single(kind: Any, value: str, **fields: Any) -> Iterator[Message]:
    """Yield requests with `value` in one field each, and what is needed besides in others."""
    for field in kind.fields:
        if field.type == field.TYPE_STRING and not field.is_repeated:
            given = {key: item for key, item in fields.items() if key in kind.fields_by_name}
            yield GetMessageClass(kind)(**(given | {field.name: value}))


def test_hostile_requests(node: NodeDriver, tls: Path, tmp_path: Path) -> None:
    """Nothing outside the pool is touched, whatever stands in whatever field of any request."""
    neighbour = tmp_path / "neighbour"
    outside = (node.pool, node.folder)
    before, entries = tree(tmp_path, *outside), {item.name for item in node.pool.iterdir()}
    right: dict[str, Any] = {
        "name": "n",
        "volume_id": "v@a",
        "source_volume_id": "v@a",
        "snapshot_id": "s@a",
        "base_snapshot_id": "s@a",
        "target_snapshot_id": "s@a",
        "source_volume_ids": ["v@a"],
        "volume_capabilities": [
            csi.VolumeCapability(
                mount=csi.VolumeCapability.MountVolume(),
                access_mode=csi.VolumeCapability.AccessMode(
                    mode=csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
                ),
            )
        ],
    }
    internal = []
    with grpc.secure_channel(node.address, credentials(tls / "controller"), [TARGET]) as channel:
        for (path, method), text in itertools.product(methods(), HOSTILE):
            value = text.replace("{neighbour}", str(neighbour))
            kind: Any = method.input_type
            for request in (filled(kind, value), *single(kind, value, **right)):
                code, details = called(channel, path, method, request.SerializeToString())
                if code in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}:
                    internal.append(f"{path} {request}: {details}")
    assert internal == []
    assert tree(tmp_path, *outside) == before
    assert {item.name for item in node.pool.iterdir()} == entries
    assert all("/" not in item and ".." not in item for item in node.volume_ids())
    node.reaped()
    assert (neighbour / "volumes" / "v@a" / CANARY).read_text() == "mine"


def test_requests_for_another_node(node: NodeDriver, tls: Path) -> None:
    """A request for another node is UNAVAILABLE, with both names, and changes nothing."""
    before = tree(node.pool)
    with grpc.secure_channel(node.address, credentials(tls / "controller"), [TARGET]) as channel:
        for segment in ("b", "A", "", "a ", "a@a", "../a", "sha256-a"):
            metadata = (("pycsi-node", segment),)
            for path, method in methods():
                if method.client_streaming or path.startswith("/csi.v1.Node/"):
                    continue
                kind = channel.unary_stream if method.server_streaming else channel.unary_unary
                asked: Any = kind(path)
                data = filled(method.input_type, "v@a").SerializeToString()
                code, details = ending(lambda: asked(data, metadata=metadata))  # noqa: B023
                assert code is UNAVAILABLE, (path, segment, details)
                assert "this is node a" in details
        twice = (("pycsi-node", "a"), ("pycsi-node", "b"))
        delete: Any = channel.unary_unary("/csi.v1.Controller/DeleteVolume")
        data = csi.DeleteVolumeRequest(volume_id="v@a").SerializeToString()
        assert ending(lambda: delete(data, metadata=twice))[0] is UNAVAILABLE
    assert tree(node.pool) == before


def test_ids_of_other_nodes(node: NodeDriver, tls: Path) -> None:
    """A request that is said to be for this node, but has another's id, is no other request."""
    before = tree(node.pool)
    with grpc.secure_channel(node.address, credentials(tls / "controller"), [TARGET]) as channel:
        for path, method in methods():
            if method.client_streaming:
                continue
            request = filled(method.input_type, "v@b").SerializeToString()
            code, _ = called(channel, path, method, request)
            if path.endswith(("Volume", "Snapshot", "Allocated", "Delta")):
                assert code is not grpc.StatusCode.OK, path
    assert tree(node.pool) == before
