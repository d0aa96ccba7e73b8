"""The files in deploy/nomad, and the requests that Nomad makes of them."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import grpc
import hcl2
import pytest
from conftest import needs, run
from driver import GIB, MIB, NODE, Driver, Mode, refused
from hcl2.utils import SerializationOptions

from pycsi import __version__
from pycsi.cli import main
from pycsi.proto import csi_pb2 as csi

FILES = Path(__file__).parents[2] / "deploy/nomad"
ALLOCATION = "5b6f1a52-9f6c-4f0e-8d0f-3c1f0a7c9e11"


def read(name: str) -> dict[str, Any]:
    options = SerializationOptions(
        with_comments=False, explicit_blocks=False, strip_string_quotes=True
    )
    return hcl2.loads((FILES / name).read_text(), serialization_options=options)


def at(data: Any, *steps: str) -> Any:
    """Follow keys and labels through blocks, of which there has to be one each."""
    for step in steps:
        if isinstance(data, list):
            (data,) = data
        data = data[step]
    return data


def defaults() -> dict[str, str]:
    """Return the plugin's variables; "" for those that have to be given."""
    pairs = [pair for block in read("plugin.nomad.hcl")["variable"] for pair in block.items()]
    return {name: variable.get("default", "") for name, variable in pairs}


def plugin(node: str = NODE, **variables: str) -> dict[str, Any]:
    """Return the plugin's job as Nomad reads it for a node."""
    given = defaults() | {"node": node} | variables

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        if isinstance(value, str):
            return re.sub(r"\$\{var\.(\w+)\}", lambda match: str(given[match[1]]), value)
        return value

    job: dict[str, Any] = filled(at(read("plugin.nomad.hcl"), "job", "pycsi"))
    return job


def task_of(job: dict[str, Any]) -> dict[str, Any]:
    task: dict[str, Any] = at(job, "group", "pycsi", "task", "pycsi")
    return task


# The plugin


def test_task_may_do_what_the_driver_does() -> None:
    task = task_of(plugin())
    assert task["driver"] == "docker"
    assert at(task, "config", "image") == f"localhost/pycsi:{__version__}"
    assert at(task, "config", "privileged") is True
    assert at(task, "csi_plugin", "type") == "monolith"
    assert at(task, "csi_plugin", "mount_dir") == "/csi"


def test_pool_is_the_directory_on_the_node() -> None:
    task = task_of(plugin(data_dir="/srv/pool"))
    assert at(task, "config", "mount") == [
        {
            "type": "bind",
            "source": "/srv/pool",
            "target": "/srv/pool",
            "bind_options": [{"propagation": "rshared"}],
        }
    ]
    assert defaults()["data_dir"] == "/var/lib/pycsi"


def test_each_node_has_a_plugin_of_its_own() -> None:
    assert not defaults()["node"], "the node has to be given"
    for node in ("node-1", "node-2"):
        job = plugin(node)
        assert job["type"] == "system"
        assert job["id"] == f"pycsi-{node}"
        assert at(job, "constraint") == [{"attribute": "${node.unique.name}", "value": node}]
        assert at(task_of(job), "csi_plugin", "id") == f"pycsi-{node}"
        assert f"--node-id={node}" in at(task_of(job), "config", "args")


def test_arguments_are_the_driver_s() -> None:
    name, *arguments = at(task_of(plugin()), "config", "args")
    command = main.commands[name]
    try:
        given = command.make_context(name, list(arguments)).params
    except click.UsageError as error:
        pytest.fail(error.format_message())
    assert given["node_id"] == NODE
    assert given["mode"] == "single-node"
    assert [pool.path for pool in given["pools"]] == [Path("/var/lib/pycsi")]
    assert not any(item.startswith("--endpoint") for item in arguments), "Nomad says where"


# The volumes

VOLUMES = ("volume.hcl", "block.hcl")


def capability(volume: dict[str, Any], *, options: bool = True) -> csi.VolumeCapability:
    """Return the volume's capability, with its mount options where Nomad sends them."""
    mode = at(volume, "capability", "access_mode").upper().replace("-", "_")
    wanted = csi.VolumeCapability(access_mode=Mode(mode=mode))
    if at(volume, "capability", "attachment_mode") == "block-device":
        wanted.block.SetInParent()
        return wanted
    wanted.mount.SetInParent()
    if options and "mount_options" in volume:
        wanted.mount.fs_type = at(volume, "mount_options", "fs_type")
        wanted.mount.mount_flags.extend(at(volume, "mount_options", "mount_flags"))
    return wanted


def parameters_of(volume: dict[str, Any]) -> dict[str, str]:
    (parameters,) = volume.get("parameters", [{}])
    return dict(parameters)


def size_of(volume: dict[str, Any]) -> int:
    return int(volume["capacity_min"].removesuffix("GiB")) * GIB


def create(driver: Driver, volume: dict[str, Any]) -> csi.Volume:
    """Create a volume as `nomad volume create` does."""
    request = csi.CreateVolumeRequest(
        name=volume["name"],
        capacity_range=csi.CapacityRange(required_bytes=size_of(volume)),
        volume_capabilities=[capability(volume)],
        parameters=parameters_of(volume),
    )
    # Nomad always sends requirements, if only empty ones.
    request.accessibility_requirements.SetInParent()
    if "topology_request" in volume:
        segments = at(volume, "topology_request", "required", "topology", "segments")
        request.accessibility_requirements.requisite.add(segments=segments)
    if "snapshot_id" in volume:
        request.volume_content_source.snapshot.snapshot_id = volume["snapshot_id"]
    created: csi.Volume = driver.controller.CreateVolume(request).volume
    return created


def validate(driver: Driver, volume: dict[str, Any], created: csi.Volume) -> bool:
    """Ask for a volume's capabilities as `nomad volume register` does."""
    answer = driver.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(
            volume_id=created.volume_id,
            volume_context=created.volume_context,
            volume_capabilities=[capability(volume, options=False)],
            parameters=parameters_of(volume),
        )
    )
    return bool(answer.HasField("confirmed"))


def test_driver_can_what_nomad_asks_plugins_for(driver: Driver) -> None:
    rpc = csi.ControllerServiceCapability.RPC
    answer = driver.controller.ControllerGetCapabilities(csi.ControllerGetCapabilitiesRequest())
    assert {
        rpc.CREATE_DELETE_VOLUME,
        rpc.LIST_VOLUMES,
        rpc.CREATE_DELETE_SNAPSHOT,
        rpc.LIST_SNAPSHOTS,
        rpc.CLONE_VOLUME,
        rpc.EXPAND_VOLUME,
    } <= {item.rpc.type for item in answer.capabilities}
    information = driver.node.NodeGetInfo(csi.NodeGetInfoRequest())
    assert information.accessible_topology.segments == {"topology.pycsi.storage/node": NODE}


@pytest.mark.parametrize("name", [*VOLUMES, "clone.hcl"])
def test_volume_names_the_plugin_of_its_node(name: str) -> None:
    volume = read(name)
    assert volume["type"] == "csi"
    assert volume["plugin_id"] == at(task_of(plugin()), "csi_plugin", "id")
    assert volume["name"] == volume["id"], "Nomad's ids are unique, its names are not"


@pytest.mark.parametrize("name", VOLUMES)
def test_volume_is_created_expanded_and_deleted(name: str, driver: Driver) -> None:
    volume = read(name)
    created = create(driver, volume)
    assert created.capacity_bytes == size_of(volume)
    assert create(driver, volume) == created
    assert validate(driver, volume, created)
    larger = size_of(volume) + 64 * MIB
    assert driver.expand(created.volume_id, larger).capacity_bytes == larger
    driver.delete(created.volume_id)
    assert driver.volume_ids() == []


@pytest.mark.parametrize("name", VOLUMES)
def test_volume_is_refused_by_other_nodes(
    name: str, pool: Path, serve: Callable[..., Driver]
) -> None:
    other = serve(pool, options=("--node-id=node-2",))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "node-2"):
        create(other, read(name))


@pytest.mark.parametrize("name", VOLUMES)
def test_volume_for_each_allocation(name: str, driver: Driver) -> None:
    """With `per_alloc` there are brackets in the names."""
    volume = read(name)
    created = [
        create(driver, volume | {"name": f"{volume['name']}[{number}]"}) for number in (0, 1)
    ]
    assert driver.volume_ids() == sorted(item.volume_id for item in created)
    assert len(driver.volume_ids()) == 2


def test_clone_is_made_from_a_snapshot(driver: Driver) -> None:
    clone, source = read("clone.hcl"), create(driver, read("volume.hcl"))
    name = clone["snapshot_id"].removesuffix(f"@{NODE}")
    assert driver.snapshot(name, source.volume_id).snapshot_id == clone["snapshot_id"]
    restored = create(driver, clone)
    assert restored.content_source.snapshot.snapshot_id == clone["snapshot_id"]
    assert restored.capacity_bytes == source.capacity_bytes
    driver.delete_snapshot(clone["snapshot_id"])


def test_app_claims_what_the_volume_offers() -> None:
    group, volume = at(read("app.nomad.hcl"), "job", "app", "group", "app"), read("volume.hcl")
    claim = at(group, "volume", "data")
    assert claim["type"] == "csi"
    assert claim["source"] == volume["id"]
    for mode in ("access_mode", "attachment_mode"):
        assert claim[mode] == at(volume, "capability", mode)
    mounted = at(group, "task", "app", "volume_mount")
    assert mounted == [{"volume": "data", "destination": "/data"}]


# On the node


@pytest.fixture
def task(root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Return the driver in the task of the plugin's job: its arguments, and Nomad's mounts.

    What is `nomad` outside is `local` in the task, where it has mounts of its own.
    """
    pool, nomad, local = (tmp_path / name for name in ("pool", "nomad", "local"))
    sockets, csi_dir = tmp_path / "sockets", tmp_path / "csi"
    for folder in (pool, nomad, local, sockets, csi_dir):
        folder.mkdir()
    command = [sys.executable, "-m", "pycsi"]
    command += at(task_of(plugin(data_dir=str(pool))), "config", "args")
    container = tmp_path / "container"
    container.write_text(
        "#!/bin/sh\n"
        "exec unshare --mount --propagation unchanged sh -ec '\n"
        f'mount --make-private "$(findmnt --noheadings --output TARGET --target {tmp_path})"\n'
        f"mount --rbind {nomad} {local}\n"
        f"mount --rbind {sockets} {csi_dir}\n"
        f"mount --rbind {pool} {pool}\n"
        f"exec {shlex.join(command)}'\n"
    )
    container.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(container))
    run("mount", "--bind", nomad, nomad)
    run("mount", "--make-shared", nomad)
    try:
        endpoint = {"CSI_ENDPOINT": f"unix://{csi_dir}/csi.sock"}
        with Driver(sockets, [f"default={pool}"], environment=endpoint) as driver:
            yield driver
    finally:
        run("umount", "--recursive", nomad)


def requests(
    volume: dict[str, Any], created: csi.Volume, folder: Path
) -> tuple[csi.NodeStageVolumeRequest, csi.NodePublishVolumeRequest]:
    """Return what Nomad asks of a node for an allocation, and make the directories it makes."""
    modes = [at(volume, "capability", key) for key in ("attachment_mode", "access_mode")]
    usage = "-".join(["rw", *modes])
    staging = Path("staging/default", volume["id"], usage)
    target = Path("per-alloc", ALLOCATION, volume["id"], usage)
    for made in (staging, target.parent):
        (folder / "nomad" / made).mkdir(0o700, parents=True)
    common: dict[str, Any] = {
        "volume_id": created.volume_id,
        "staging_target_path": str(folder / "local" / staging),
        "volume_capability": capability(volume),
        "volume_context": created.volume_context,
    }
    stage = csi.NodeStageVolumeRequest(**common)
    return stage, csi.NodePublishVolumeRequest(**common, target_path=str(folder / "local" / target))


def outside(path: str, folder: Path) -> Path:
    """Return where a path in the task is on the node."""
    return folder / "nomad" / Path(path).relative_to(folder / "local")


@pytest.mark.parametrize("name", VOLUMES)
def test_volume_reaches_an_allocation(name: str, task: Driver, tmp_path: Path) -> None:
    """What is mounted in the task is so on the node, also while the task is replaced."""
    volume = read(name)
    volume |= {key: f"{volume[key]}[0]" for key in ("id", "name")}
    created = create(task, volume)
    stage, publish = requests(volume, created, tmp_path)
    staging = outside(stage.staging_target_path, tmp_path)
    target = outside(publish.target_path, tmp_path)
    for _ in range(2):
        task.node.NodeStageVolume(stage)
        task.node.NodePublishVolume(publish)
        assert os.path.ismount(target)
        task.restart()
    file = target if target.is_block_device() else target / "file"
    file.write_bytes(b"written on the node")
    assert not task.condition(created.volume_id).abnormal
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "in use"):
        task.delete(created.volume_id)
    task.unpublish(created.volume_id, Path(publish.target_path))
    assert not target.exists()
    task.unstage(created.volume_id, Path(stage.staging_target_path))
    assert not os.path.ismount(staging)
    task.delete(created.volume_id)


def test_volume_grows_while_it_is_used(task: Driver, tmp_path: Path) -> None:
    volume = read("volume.hcl")
    needs("mkfs.xfs", met=shutil.which("mkfs.xfs") is not None)
    # A mounted ext4 grows by CAP_SYS_RESOURCE, which privileged tasks have, but not every test.
    volume["mount_options"] = [{"fs_type": "xfs", "mount_flags": []}]
    created = create(task, volume)
    stage, publish = requests(volume, created, tmp_path)
    task.node.NodeStageVolume(stage)
    task.node.NodePublishVolume(publish)
    larger = size_of(volume) + GIB
    assert task.expand(created.volume_id, larger).node_expansion_required
    task.node.NodeExpandVolume(
        csi.NodeExpandVolumeRequest(
            volume_id=created.volume_id,
            volume_path=publish.target_path,
            staging_target_path=publish.staging_target_path,
            capacity_range=csi.CapacityRange(required_bytes=larger),
            volume_capability=capability(volume, options=False),
        )
    )
    facts = os.statvfs(outside(publish.target_path, tmp_path))
    assert facts.f_blocks * facts.f_frsize > size_of(volume)
    task.unpublish(created.volume_id, Path(publish.target_path))
    task.unstage(created.volume_id, Path(stage.staging_target_path))
