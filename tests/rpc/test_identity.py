"""Identity: who the driver is, what it says it can do, and whether it works."""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import needs
from driver import Driver, refused
from rpc.conftest import OK, code_of

from pycsi import __version__
from pycsi.linux import filesystem
from pycsi.linux.descriptor import closing
from pycsi.proto import csi_pb2 as csi
from pycsi.store import read_record, write_record

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


def test_probe_without_the_pool(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """While a pool's directory is away nothing works on it, and all is well when it is back."""
    volume = driver.create("a", quota="none")
    image = driver.create("i", type="image")
    pool.rename(tmp_path / "away")
    with refused(FAILED, "default", str(pool)):
        driver.identity.Probe(csi.ProbeRequest())
    stage = tmp_path / "staging"
    calls: list[Callable[[], object]] = [
        lambda: driver.create("b", quota="none"),
        lambda: driver.expand(volume.volume_id, 2**30),
        lambda: driver.expand(image.volume_id, 2**30),
        lambda: driver.delete(volume.volume_id),
        lambda: driver.delete(image.volume_id),
        lambda: driver.stage(volume.volume_id, stage),
        lambda: driver.stage(image.volume_id, stage),
        lambda: driver.publish(volume.volume_id, stage, tmp_path / "target"),
    ]
    assert [code_of(call) for call in calls] == [FAILED] * len(calls)
    assert driver.capacity(quota="none").available_capacity == 0
    (tmp_path / "away").rename(pool)
    assert probe(driver) is OK
    driver.delete(volume.volume_id)
    assert driver.volume_ids() == [image.volume_id]


def test_probe_with_an_empty_directory_in_place(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """An empty directory, as below a disk that is not mounted, is not begun as a new pool."""
    pool.rename(tmp_path / "away")
    pool.mkdir()
    assert probe(driver) is FAILED
    assert code_of(lambda: driver.create("a", quota="none")) is FAILED
    assert list(pool.iterdir()) == []
    pool.rmdir()
    (tmp_path / "away").rename(pool)
    assert probe(driver) is OK


@pytest.mark.parametrize("content", ['{"schema": 1}', "{"])
def test_probe_with_a_damaged_pool_in_place(
    driver: Driver, pool: Path, tmp_path: Path, content: str
) -> None:
    """A directory whose record cannot be read is not the pool."""
    pool.rename(tmp_path / "away")
    pool.mkdir()
    (pool / "pool.json").write_text(content)
    assert probe(driver) is FAILED


def test_probe_with_another_pool_in_place(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """Another pool at the same path is recognised by its UUID, and left alone."""
    pool.rename(tmp_path / "away")
    pool.mkdir()
    write_record(pool / "pool.json", {"uuid": str(uuid.uuid4())})
    with refused(FAILED, "default"):
        driver.identity.Probe(csi.ProbeRequest())
    assert code_of(lambda: driver.create("a", quota="none")) is FAILED
    assert [entry.name for entry in pool.iterdir()] == ["pool.json"]


def test_probe_with_another_uuid(driver: Driver, pool: Path) -> None:
    """A pool whose record is replaced is no longer the pool that was opened."""
    record = read_record(pool / "pool.json")
    write_record(pool / "pool.json", record | {"uuid": str(uuid.uuid4())})
    assert probe(driver) is FAILED
    write_record(pool / "pool.json", record)
    assert probe(driver) is OK


def test_probe_with_a_moved_pool(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """The same pool in another directory, as after a new mount, is found again and is locked."""
    volume = driver.create("a", quota="none")
    shutil.copytree(pool, tmp_path / "copy")
    pool.rename(tmp_path / "away")
    (tmp_path / "copy").rename(pool)
    assert probe(driver) is OK
    driver.delete(volume.volume_id)
    assert list((pool / "volumes").iterdir()) == []
    assert [entry.name for entry in (tmp_path / "away/volumes").iterdir()] == [volume.volume_id]


def test_probe_with_a_pool_that_comes_back(driver: Driver, pool: Path, tmp_path: Path) -> None:
    """Whichever directory the pool is in now, as when a disk comes and goes, is the locked one."""
    assert probe(driver) is OK
    away, copy = tmp_path / "away", tmp_path / "copy"
    shutil.copytree(pool, copy)
    for last, now in ((away, copy), (copy, away), (away, copy)):
        pool.rename(last)
        now.rename(pool)
        assert probe(driver) is OK
        with closing(os.open(pool, os.O_RDONLY)) as fd, pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_probe_without_a_program(serve: Callable[..., Driver], pool: Path, tmp_path: Path) -> None:
    """A missing mkfs.ext4 is FAILED_PRECONDITION, and named."""
    programs = [name for kind in filesystem.KINDS.values() for name in kind.programs]
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
