"""Snapshots restored on another node, between pools on different filesystems."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trees
from cluster import Cluster, cluster
from conftest import FilesystemFactory
from driver import GIB, MIB, from_snapshot, mount_capability
from rpc.conftest import TOPOLOGY

from pycsi.proto import csi_pb2 as csi

SIZE = 320 * MIB
KINDS = ("ext4", "xfs", "btrfs")


@pytest.fixture(params=[("xfs", "btrfs"), ("btrfs", "ext4"), ("ext4", "xfs")], ids="-".join)
def nodes(
    request: pytest.FixtureRequest, filesystem: FilesystemFactory, tmp_path: Path
) -> Iterator[Cluster]:
    """Return two nodes, with pools on these filesystems."""
    pools = [filesystem(kind, 4 * GIB) for kind in request.param]
    with cluster(tmp_path / "cluster", "a", "b", pools=pools) as running:
        yield running


def restore(
    nodes: Cluster, name: str, snapshot_id: str, fs_type: str = "", size: int = SIZE, **more: str
) -> csi.Volume:
    asked = csi.CreateVolumeRequest(
        name=name,
        capacity_range=csi.CapacityRange(required_bytes=size),
        volume_capabilities=[mount_capability(fs_type)],
        parameters={"restoreAnywhere": "true", **more},
        volume_content_source=from_snapshot(snapshot_id),
        accessibility_requirements=csi.TopologyRequirement(
            preferred=[csi.Topology(segments={TOPOLOGY: "b"})]
        ),
    )
    made: csi.Volume = nodes.controller.controller.CreateVolume(asked).volume
    assert nodes.controller.controller.CreateVolume(asked).volume == made
    return made


@pytest.mark.parametrize("fs_type", KINDS)
def test_image(nodes: Cluster, tmp_path: Path, fs_type: str) -> None:
    """A snapshot of a volume in use is restored with all its files, thrice, also larger."""
    a, b = nodes.nodes["a"], nodes.nodes["b"]
    origin = a.create("v", SIZE, capability=mount_capability(fs_type), parameters={"type": "image"})
    with contextlib.ExitStack() as used:
        target = used.enter_context(a.published(origin.volume_id, tmp_path))
        (target / "tree").mkdir()
        trees.make(target / "tree")
        before = trees.describe(target / "tree")
        snapshot = nodes.controller.snapshot("s", origin.volume_id).snapshot_id
        (target / "later").touch()
        for name, size in (("one", SIZE), ("two", SIZE), ("three", 2 * SIZE)):
            made = restore(nodes, name, snapshot, fs_type, size)
            assert made.volume_id == f"{name}@b"
            # All beside each other: each has an identity of its own.
            copy = used.enter_context(b.published(made.volume_id, tmp_path))
            assert trees.describe(copy / "tree") == before
            assert not (copy / "later").exists()
            total = b.stats(made.volume_id, copy).usage[0].total
            assert total > size * 0.7


def test_directory(nodes: Cluster, tmp_path: Path) -> None:
    """A directory is restored with every attribute."""
    check_directory(nodes, tmp_path, type="directory", quota="none")


def test_limited_directory(filesystem: FilesystemFactory, tmp_path: Path) -> None:
    """A directory with a limit has one where it is restored."""
    pools = [filesystem("btrfs", 2 * GIB) for _ in range(2)]
    with cluster(tmp_path / "cluster", "a", "b", pools=pools) as nodes:
        check_directory(nodes, tmp_path, type="directory")
        b = nodes.nodes["b"]
        with b.published("copy@b", tmp_path) as copy:
            with pytest.raises(OSError, match="quota"):
                fill(copy / "large", 2 * SIZE)
            assert b.stats("copy@b", copy).usage[0].total == SIZE


def fill(file: Path, size: int) -> None:
    with file.open("wb") as opened:
        for _ in range(size // MIB):
            opened.write(os.urandom(MIB))
        os.fsync(opened.fileno())


def check_directory(nodes: Cluster, tmp_path: Path, **parameters: Any) -> None:
    a, b = nodes.nodes["a"], nodes.nodes["b"]
    origin = a.create("v", SIZE, parameters=parameters)
    with a.published(origin.volume_id, tmp_path) as target:
        trees.make(target, privileged=True)
        before = trees.describe(target)
        snapshot = nodes.controller.snapshot("s", origin.volume_id).snapshot_id
    made = restore(nodes, "copy", snapshot, **parameters)
    with b.published(made.volume_id, tmp_path) as copy:
        assert trees.describe(copy) == before


def test_thick(nodes: Cluster, tmp_path: Path) -> None:
    """A thick copy has all its blocks, whatever its source had."""
    a, b = nodes.nodes["a"], nodes.nodes["b"]
    for number, (was, will) in enumerate(itertools.product(("thin", "thick"), repeat=2)):
        origin = a.create(f"v{number}", 64 * MIB, parameters={"type": "image", "allocation": was})
        snapshot = nodes.controller.snapshot(f"s{number}", origin.volume_id).snapshot_id
        size = 64 * MIB
        made = restore(nodes, f"copy{number}", snapshot, size=size, allocation=will, type="image")
        image = b.pool / "volumes" / made.volume_id / "disk.img"
        if will == "thick":
            assert image.stat().st_blocks * 512 >= size
        with b.published(made.volume_id, tmp_path):
            pass
