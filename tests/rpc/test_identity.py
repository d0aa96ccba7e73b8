"""Identity: who the driver is, what it says it can do, and whether it works."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import needs
from driver import Driver, refused
from rpc.conftest import OK, code_of

from pycsi import __version__
from pycsi.linux import mkfs
from pycsi.proto import csi_pb2 as csi

FAILED = grpc.StatusCode.FAILED_PRECONDITION


def probe(driver: Driver) -> grpc.StatusCode:
    return code_of(lambda: driver.identity.Probe(csi.ProbeRequest()))


def test_info(shared: Driver) -> None:
    """Name and version are what the specification and csi-sanity want."""
    info = shared.identity.GetPluginInfo(csi.GetPluginInfoRequest())
    assert re.fullmatch(r"[a-zA-Z][A-Za-z0-9._-]{0,61}[a-zA-Z]", info.name)
    assert info.vendor_version == __version__
    assert shared.identity.Probe(csi.ProbeRequest()).ready.value


@pytest.mark.parametrize("name", ["a", "x" * 63, "My_Driver"])
def test_driver_name_makes_a_legal_topology_key(
    serve: Callable[..., Driver], pool: Path, name: str
) -> None:
    """The topology key's prefix is a DNS name of at most 63 characters, or the name is refused."""
    try:
        driver = serve(pool, options=(f"--driver-name={name}",))
    except pytest.fail.Exception:
        log = next(pool.parent.glob("driver-*/driver.log")).read_text()
        if name == "a" or "--driver-name" not in log:
            raise
        return
    assert driver.identity.GetPluginInfo(csi.GetPluginInfoRequest()).name == name
    info = driver.node.NodeGetInfo(csi.NodeGetInfoRequest())
    for key in info.accessible_topology.segments:
        prefix, _, rest = key.rpartition("/")
        label = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
        assert re.fullmatch(rf"{label}(\.{label})*", prefix)
        assert len(prefix) <= 63
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", rest)


@pytest.mark.parametrize("node", ["x" * 256, "é" * 128, "node with spaces"])
def test_odd_node_id(serve: Callable[..., Driver], pool: Path, node: str) -> None:
    """A node id is repeated as it is; ids and topology values stay legal."""
    driver = serve(pool, options=(f"--node-id={node}",))
    info = driver.node.NodeGetInfo(csi.NodeGetInfoRequest())
    assert info.node_id == node
    [value] = info.accessible_topology.segments.values()
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value)
    volume = driver.create("x" * 128, quota="none")
    assert len(volume.volume_id.encode()) <= 128
    assert volume.accessible_topology == [info.accessible_topology]
    driver.delete(volume.volume_id)
    assert driver.volume_ids() == []


@pytest.mark.usefixtures("root")
def test_probe_without_a_program(serve: Callable[..., Driver], pool: Path, tmp_path: Path) -> None:
    """A missing mkfs.ext4 is FAILED_PRECONDITION, and named."""
    programs = [name for kind in mkfs.KINDS.values() for name in kind.programs]
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in programs:
        found = shutil.which(name)
        needs(name, met=found is not None)
        (folder / name).symlink_to(os.fspath(found or ""))
    driver = serve(pool, PATH=str(folder))
    assert probe(driver) is OK
    (folder / "mkfs.ext4").unlink()
    with refused(FAILED, "mkfs.ext4"):
        driver.identity.Probe(csi.ProbeRequest())
    with refused(FAILED, "mkfs.ext4"):
        driver.create("a", type="image")
    assert driver.capacity(type="image").available_capacity == 0
    assert list((pool / "tmp").iterdir()) == []
