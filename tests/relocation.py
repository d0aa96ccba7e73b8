"""A volume that moves from one node to another, for tests."""

from pathlib import Path
from typing import Any

import trees
from cluster import Cluster, NodeDriver
from exports import make_volume, scribble
from relay import Relayed

from pycsi.proto import transfers_pb2 as transfers
from pycsi.proto import transfers_pb2_grpc


def move(nodes: Cluster | Relayed, volume_id: str, node: str, **more: Any) -> Any:
    """Have the controller move a volume; return what it tells of it at the end."""
    stub = transfers_pb2_grpc.TransfersStub(nodes.controller.channel)  # type: ignore[no-untyped-call]
    wanted = transfers.MoveRequest(volume_id=volume_id, to_node=node, **more)
    return list(stub.Move(wanted, timeout=60))[-1].ended.moved


def cancel(nodes: Cluster | Relayed, volume_id: str, node: str) -> None:
    """Have the controller give up a move."""
    stub = transfers_pb2_grpc.TransfersStub(nodes.controller.channel)  # type: ignore[no-untyped-call]
    stub.CancelMove(transfers.CancelMoveRequest(volume_id=volume_id, to_node=node), timeout=60)


def content_of(node: NodeDriver, volume_id: str) -> Path:
    """Return the image of a volume, or its directory."""
    return data_in(node.pool / "volumes" / volume_id)


def data_in(place: Path) -> Path:
    """Return the image, or the directory of files, in the directory of a volume."""
    return place / "data" if (place / "data").exists() else place / "disk.img"


def look(content: Path) -> object:
    """Return all that is in an image or a directory."""
    return trees.describe(content) if content.is_dir() else content.read_bytes()


class Traveller:
    """The volume v, of a kind, on the node a."""

    def __init__(self, nodes: Cluster | Relayed, kind: str, size: int) -> None:
        self.at(nodes)
        self.id = make_volume(self.a, kind, size)
        self.before = look(self.content)

    def at(self, nodes: Cluster | Relayed) -> None:
        """Look for the volume on these nodes from now on."""
        self.nodes = nodes
        self.a, self.b = nodes.nodes["a"], nodes.nodes["b"]

    @property
    def content(self) -> Path:
        return content_of(self.a, self.id)

    def change(self, number: int) -> None:
        """Change the volume, which is not in use, so that an earlier copy is not what it is."""
        content = self.content
        if content.is_dir():
            (content / f"file {number - 1}").unlink(missing_ok=True)
            (content / f"file {number}").write_bytes(bytes([number % 256]) * 70_000)
            (content / "deep" / "er" / "file 7").write_text(f"{number}")
        else:
            scribble(content, number)
        self.before = look(content)

    def move(self, **more: Any) -> Any:
        return move(self.nodes, self.id, "b", **more)

    def cancel(self) -> None:
        cancel(self.nodes, self.id, "b")

    def arrived(self) -> None:
        """Check that it is on the node b, whole, and on a in the trash only."""
        assert look(content_of(self.b, "v@b")) == self.before
        assert self.b.volume_ids() == ["v@b"]
        assert self.a.volume_ids() == []
        assert not self.a.snapshots()
        (kept,) = (self.a.pool / "trash").glob(f"{self.id}.*.kept.*")
        assert not [*(self.a.pool / "leaving").iterdir(), *(self.b.pool / "arriving").iterdir()]
        assert look(data_in(kept)) == self.before
        condition = self.b.condition("v@b")
        assert not condition.abnormal, condition.message
