"""Secrets in requests: wherever a call ends, they are not written down or passed on."""

import contextlib
import dataclasses
import os
import shutil
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from driver import MIB, Driver, mount_capability
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from reliability.conftest import Counter
from rpc.conftest import free_port, wait_for

from pycsi.proto import csi_pb2 as csi

MARKER = b"hunter2"
SECRETS = {
    "password": MARKER.decode(),
    "quoted": f'"{MARKER.decode()}"\n',
    "long": MARKER.decode() * 100,
    "csi.storage.k8s.io/x": f"é{MARKER.decode()}\U0001f600",
}
Code = grpc.StatusCode
SHIM = """#!/bin/sh
case $(cat "{folder}/how") in
slow) touch "{folder}/begun"
      while [ -d "{folder}" ] && [ ! -e "{folder}/go" ]; do sleep 0.02; done ;;
broken) echo "mkfs is broken" >&2; exit 1 ;;
esac
exec {real} "$@"
"""


class Shim:
    """A PATH whose mkfs.ext4 is slow, broken, or as it should be."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.become("good")
        program = folder / "mkfs.ext4"
        program.write_text(SHIM.format(folder=folder, real=shutil.which("mkfs.ext4")))
        program.chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self._folder}:{os.environ['PATH']}"

    @property
    def begun(self) -> bool:
        return (self._folder / "begun").exists()

    def become(self, how: str) -> None:
        (self._folder / "how").write_text(how)

    def go(self) -> None:
        (self._folder / "go").touch()


def secret_fields() -> dict[str, FieldDescriptor]:
    """Return all fields that the protocol marks as secret, by the name of their message."""

    def walk(kinds: list[Descriptor]) -> Iterator[FieldDescriptor]:
        for kind in kinds:
            yield from kind.fields
            yield from walk(list(kind.nested_types))

    def secret(field: FieldDescriptor) -> bool:
        marks: Any = field.GetOptions().Extensions
        return bool(marks[csi.csi_secret])

    fields = walk(list(csi.DESCRIPTOR.message_types_by_name.values()))
    return {field.full_name.split(".")[-2]: field for field in fields if secret(field)}


FIELDS = secret_fields()
SERVICE = {
    f"{method.input_type.name}": (service.full_name, method.name, method.server_streaming)
    for service in csi.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_all_secret_fields_are_known() -> None:
    """There are 22, each a map called `secrets` of a request."""
    assert len(FIELDS) == 22
    assert {field.name for field in FIELDS.values()} == {"secrets"}
    assert FIELDS.keys() <= SERVICE.keys()
    assert {type(message).__name__ for message in life(Path("/none"))} >= FIELDS.keys()


@dataclasses.dataclass
class Caller:
    """Sends requests with secrets, and keeps what comes back."""

    driver: Driver
    answers: list[str] = dataclasses.field(default_factory=list)
    ends: set[tuple[str, str]] = dataclasses.field(default_factory=set)

    def call(self, message: Any, damage: Callable[[bytes], bytes] = bytes) -> str:
        """Send a request as its bytes, damaged if wanted; return how it ended."""
        kind = type(message).__name__
        if kind in FIELDS:
            message.secrets.update(SECRETS)
        if hasattr(message, "group_snapshot_id"):
            members = [item for item in self.driver.snapshots() if item.group_snapshot_id]
            message.snapshot_ids[:] = [item.snapshot_id for item in members]
        service, method, streams = SERVICE[kind]
        channel = self.driver.channel
        path = f"/{service}/{method}"
        make: Any = (channel.unary_stream if streams else channel.unary_unary)(path)
        end = "OK"
        try:
            answer = make(damage(message.SerializeToString()), timeout=60)
            self.answers += [repr(part) for part in (answer if streams else [answer])]
        except grpc.RpcError as error:
            failure: Any = error
            end = failure.code().name
            self.answers.append(f"{failure.details()} {failure.trailing_metadata()}")
        self.ends.add((method, end))
        return end


def life(folder: Path, name: str = "v", fs: str = "ext4") -> list[Any]:
    """Return the requests of a volume's life, in which each secret field occurs."""
    volume, snapshot, group = (f"{key}@node-1" for key in (name, f"s-{name}", f"g-{name}"))
    wanted = mount_capability(fs)
    staging, target = str(folder / f"staging-{name}"), str(folder / f"target-{name}")
    at: dict[str, Any] = {"volume_id": volume, "volume_capability": wanted}
    size = csi.CapacityRange(required_bytes=16 * MIB)
    return [
        csi.CreateVolumeRequest(
            name=name, volume_capabilities=[wanted], parameters={"type": "image"},
            capacity_range=size,
        ),
        csi.ValidateVolumeCapabilitiesRequest(volume_id=volume, volume_capabilities=[wanted]),
        csi.ControllerPublishVolumeRequest(**at, node_id="node-1"),
        csi.NodeStageVolumeRequest(**at, staging_target_path=staging),
        csi.NodePublishVolumeRequest(**at, staging_target_path=staging, target_path=target),
        csi.ControllerModifyVolumeRequest(
            volume_id=volume, mutable_parameters={"onDelete": "delete"}
        ),
        csi.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=size),
        csi.NodeExpandVolumeRequest(volume_id=volume, volume_path=target),
        csi.ControllerGetVolumeHealthRequest(volume_id=volume),
        csi.ControllerListVolumeHealthRequest(),
        csi.NodeGetStorageHealthRequest(),
        csi.CreateSnapshotRequest(name=f"s-{name}", source_volume_id=volume),
        csi.ListSnapshotsRequest(source_volume_id=volume),
        csi.GetSnapshotRequest(snapshot_id=snapshot),
        csi.GetMetadataAllocatedRequest(snapshot_id=snapshot),
        csi.GetMetadataDeltaRequest(base_snapshot_id=snapshot, target_snapshot_id=snapshot),
        csi.CreateVolumeGroupSnapshotRequest(name=f"g-{name}", source_volume_ids=[volume]),
        csi.GetVolumeGroupSnapshotRequest(group_snapshot_id=group),
        csi.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group),
        csi.DeleteSnapshotRequest(snapshot_id=snapshot),
        csi.NodeUnpublishVolumeRequest(volume_id=volume, target_path=target),
        csi.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=staging),
        csi.ControllerUnpublishVolumeRequest(volume_id=volume, node_id="node-1"),
        csi.DeleteVolumeRequest(volume_id=volume),
    ]  # fmt: skip


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Look at the arguments and the environment of all processes all the time."""
    found: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            for place in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        if MARKER in (place / name).read_bytes():
                            found.append(f"{place / name}")

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def holds_marker(path: Path) -> bool:
    """Tell whether the name or the content of a file has it, or one of its attributes."""
    values = [os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path)]
    content = path.read_bytes() if path.is_file() else b""
    return any(MARKER in part for part in (os.fsencode(path), content, *values))


def in_all_ways(caller: Caller, folder: Path, name: str) -> None:
    """Send the requests of a volume's life, most of them where they cannot succeed."""
    for message in life(folder, name):
        whole = message.SerializeToString()
        for damage in (
            bytes,
            lambda data: data[:-1],
            lambda data: data + b"\x0a\x02\xff\xfe",
            lambda data: data + b"\xfa\xff\x07\x07hunter2",
        ):
            caller.call(message, damage)
        caller.call(type(message)())
        for field in message.DESCRIPTOR.fields:
            other = type(message).FromString(whole)
            other.ClearField(field.name)
            if field.name in {"starting_token", "name", "volume_id", "snapshot_id"}:
                setattr(other, field.name, "none@node-1" if "id" in field.name else "\x01")
            caller.call(other)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_secrets_stay_secret(
    serve: Callable[..., Driver],
    pool: Path,
    tmp_path: Path,
    root: None,
    log_format: str,
    counted: Counter,
) -> None:
    """Not in the log, an answer, the pool, the metrics, nor in what other programs are told."""
    shim, port = Shim(tmp_path / "bin"), free_port()
    options = (
        "--log-level=debug", f"--log-format={log_format}", "--enable-attach",
        f"--metrics-address=127.0.0.1:{port}",
    )  # fmt: skip
    driver = serve(pool, options=options, PATH=shim.path)
    caller = Caller(driver)
    (tmp_path / "staging-v").mkdir()
    with watched() as found:
        for message in life(tmp_path):
            assert caller.call(message) == "OK", caller.answers[-1]
        in_all_ways(caller, tmp_path, "none")
        while_busy(caller, shim, tmp_path)
        shim.become("broken")
        assert caller.call(life(tmp_path, "broken")[0]) == "FAILED_PRECONDITION"
        shim.become("good")
        with_damage(caller, pool, tmp_path)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        metrics = answer.read()
    written = [path for path in (pool, *pool.rglob("*")) if holds_marker(path)]
    assert found == []
    assert written == []
    assert MARKER not in metrics
    assert b"CreateVolume" in metrics
    assert not [text for text in caller.answers if MARKER.decode() in text]
    log = driver.log_file.read_bytes()
    assert MARKER not in log
    assert log.count(b"Traceback") > 1, "internal failures are told with a traceback"
    assert b"***" in log
    ends = {
        method: {end for name, end in caller.ends if name == method} for method, _ in caller.ends
    }
    for kind in FIELDS:
        method = SERVICE[kind][1]
        assert "OK" in ends[method], method
        assert len(ends[method]) > 1, f"{method} never failed"
    counted("calls with secrets", len(caller.answers))


def while_busy(caller: Caller, shim: Shim, folder: Path) -> None:
    """Send requests for a volume that is being made all the while."""
    shim.become("slow")
    message = life(folder, "slow")[0]
    thread = threading.Thread(target=caller.call, args=[message])
    thread.start()
    wait_for(lambda: shim.begun)
    shim.become("good")
    in_all_ways(caller, folder, "slow")
    shim.go()
    thread.join()
    assert ("CreateVolume", "ABORTED") in caller.ends
    assert ("CreateVolume", "OK") in caller.ends


def with_damage(caller: Caller, pool: Path, folder: Path) -> None:
    """Send requests for volumes and snapshots whose data is missing, or their record damaged."""
    first, *_ = made = life(folder, "hurt")
    caller.call(first)
    snapshot = next(item for item in made if isinstance(item, csi.CreateSnapshotRequest))
    caller.call(snapshot)
    places = [pool / "volumes/hurt@node-1", pool / "snapshots/s-hurt@node-1"]
    for place in places:
        (place / "disk.img").rename(place / "gone")
    (folder / "staging-hurt").mkdir(exist_ok=True)
    for message in made[1:]:
        if not type(message).__name__.startswith("Delete"):
            caller.call(message)
    for place, record in zip(places, ("volume.json", "snapshot.json"), strict=True):
        (place / record).write_text("{")
    caller.driver.restart()
    for message in made:
        caller.call(message)
