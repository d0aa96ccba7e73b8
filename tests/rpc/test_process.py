"""The process: its variables, and how it ends."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from driver import AS_ROOT, MIB, NODE, Driver, block_capability
from metrics import scrape
from rpc.conftest import SlowPrograms, code_of, free_port, on_disk, rpc_types, wait_for

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc


def serve_from_variables(tmp_path: Path, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    with (tmp_path / "log").open("wb") as log:
        return subprocess.Popen(
            [*AS_ROOT, sys.executable, "-m", "pycsi", "serve"],
            stdin=subprocess.DEVNULL,
            stderr=log,
            env=kept | variables,
        )


@pytest.mark.parametrize("endpoint", ["CSI_ENDPOINT", "PYCSI_ENDPOINT"])
def test_variables(tmp_path: Path, pool: Path, endpoint: str) -> None:
    """Every option can be a variable, and the endpoint is read from CSI_ENDPOINT."""
    port = free_port()
    process = serve_from_variables(
        tmp_path,
        {
            endpoint: f"unix://{tmp_path}/csi.sock",
            "PYCSI_NODE_ID": "node-7",
            "PYCSI_POOL": f"default={pool}",
            "PYCSI_DRIVER_NAME": "storage.example.org",
            "PYCSI_MODE": "node",
            "PYCSI_CSI_VERSION": "1.12",
            "PYCSI_ENABLE_ATTACH": "true",
            "PYCSI_MAX_VOLUMES_PER_NODE": "17",
            "PYCSI_METRICS_ADDRESS": f"127.0.0.1:{port}",
            "PYCSI_METRICS_VOLUMES": "0",
            "PYCSI_LOG_FORMAT": "text",
            "PYCSI_LOG_LEVEL": "debug",
        },
    )
    try:
        with grpc.insecure_channel(f"unix://{tmp_path}/csi.sock") as channel:
            grpc.channel_ready_future(channel).result(30)
            identity = csi_pb2_grpc.IdentityStub(channel)  # type: ignore[no-untyped-call]
            node = csi_pb2_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]
            controller = csi_pb2_grpc.ControllerStub(channel)  # type: ignore[no-untyped-call]
            wait_for(lambda: identity.Probe(csi.ProbeRequest()).ready.value)
            info = node.NodeGetInfo(csi.NodeGetInfoRequest())
            assert (info.node_id, info.max_volumes_per_node) == ("node-7", 17)
            assert dict(info.accessible_topology.segments) == {
                "topology.storage.example.org/node": "node-7"
            }
            assert identity.GetPluginInfo(csi.GetPluginInfoRequest()).name == "storage.example.org"
            assert "PUBLISH_UNPUBLISH_VOLUME" in rpc_types(controller)
            assert code_of(
                lambda: controller.ControllerListVolumeHealth(
                    csi.ControllerListVolumeHealthRequest()
                )
            ) is (grpc.StatusCode.UNIMPLEMENTED)
            found = scrape(port).names
            assert "csi_plugin_operations_seconds_count" in found
            assert "pycsi_volume_info" not in found
        assert "event=Probe" in (tmp_path / "log").read_text()
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end(driver: Driver, number: int) -> None:
    """A signal ends the process with status 0 and leaves no socket."""
    assert driver.stop(number) == 0
    assert not driver.socket.exists()
    assert list(driver.folder.iterdir()) == [driver.log_file]


@pytest.mark.usefixtures("root")
def test_end_lets_a_call_finish(
    serve: Callable[..., Driver], pool: Path, slow_mkfs: SlowPrograms
) -> None:
    """A call that is under way when the signal comes is answered, and its volume exists."""
    driver = serve(pool, PATH=slow_mkfs.path)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(driver.create("a", type="image")))
    thread.start()
    wait_for(lambda: slow_mkfs.started)
    assert driver.process is not None
    driver.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert driver.process.poll() is None, "it did not wait"
    slow_mkfs.go()
    thread.join(30)
    assert answers[0].volume_id == f"a@{NODE}"
    assert driver.process.wait(30) == 0
    assert (pool / "volumes" / f"a@{NODE}" / "volume.json").exists()


@pytest.mark.usefixtures("root")
def test_probe_answers_beside_a_long_call(
    serve: Callable[..., Driver], pool: Path, slow_mkfs: SlowPrograms
) -> None:
    """While a volume is made its name is ABORTED, and everything else goes on."""
    driver = serve(pool, PATH=slow_mkfs.path)
    thread = threading.Thread(target=lambda: driver.create("a", type="image"))
    thread.start()
    wait_for(lambda: slow_mkfs.started)
    assert code_of(lambda: driver.create("a", type="image")) is grpc.StatusCode.ABORTED
    delete = csi.DeleteVolumeRequest(volume_id=f"a@{NODE}")
    assert code_of(lambda: driver.controller.DeleteVolume(delete)) is grpc.StatusCode.ABORTED
    assert driver.identity.Probe(csi.ProbeRequest()).ready.value
    assert driver.volume_ids() == [], "a volume is listed before it is whole"
    driver.create("b", quota="none")
    driver.delete(f"b@{NODE}")
    slow_mkfs.go()
    thread.join(30)
    assert driver.create("a", type="image").volume_id == f"a@{NODE}"


@pytest.mark.usefixtures("root")
def test_crash_while_a_volume_is_made(
    serve: Callable[..., Driver], pool: Path, slow_mkfs: SlowPrograms
) -> None:
    """After kill -9 in the middle nothing half made is listed, and the retry succeeds."""
    driver = serve(pool, PATH=slow_mkfs.path)
    thread = threading.Thread(target=lambda: code_of(lambda: driver.create("a", type="image")))
    thread.start()
    wait_for(lambda: slow_mkfs.started)
    assert [place.rpartition(".")[0] for place in on_disk(driver)] == [f"tmp/a@{NODE}"]
    assert driver.process is not None
    driver.process.kill()
    driver.process.wait(30)
    thread.join(30)
    os.kill(slow_mkfs.pid, signal.SIGKILL)
    slow_mkfs.go()
    driver.restart(signal.SIGKILL)
    assert driver.volume_ids() == []
    assert on_disk(driver) == set()
    assert driver.create("a", type="image").volume_id == f"a@{NODE}"


def processors(pid: int) -> list[set[int]]:
    """Return the processors that each thread of a process may run on."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended since it was listed
            found.append(os.sched_getaffinity(int(thread.name)))
    return found


ALL_PROCESSORS = os.sched_getaffinity(0)
several_processors = pytest.mark.skipif(len(ALL_PROCESSORS) < 2, reason="there is one processor")


@pytest.mark.usefixtures("root")
@several_processors
def test_processors(serve: Callable[..., Driver], pool: Path, slow_mkfs: SlowPrograms) -> None:
    """All that is Python's runs on one processor, but the reaper; a program on any."""
    driver = serve(pool, PATH=slow_mkfs.path)
    assert driver.process is not None
    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        list(clients.map(lambda number: driver.create(f"v{number}", quota="none"), range(64)))
        making = clients.submit(driver.create, "image", type="image")
        wait_for(lambda: slow_mkfs.started)
        waiting = processors(driver.process.pid)
        assert processors(slow_mkfs.pid) == [ALL_PROCESSORS]
        slow_mkfs.go()
        making.result(30)
    after = processors(driver.process.pid)
    assert waiting.count(ALL_PROCESSORS) == 2, "the reaper, and who waits for the program"
    assert after.count(ALL_PROCESSORS) == 1, "the reaper"
    shared = [found for found in after if found != ALL_PROCESSORS]
    assert len(shared) > 4
    assert all(found == shared[0] and len(found) == 1 for found in shared)


@pytest.mark.usefixtures("root")
@several_processors
def test_processors_of_a_copy(driver: Driver, pool: Path) -> None:
    """Data is copied on any processor: sixteen copies must not share one."""
    volume = driver.create(
        "v", 256 * MIB, capability=block_capability(), allocation="thick"
    )  # so that its copy has blocks of its own
    image = pool / "volumes" / volume.volume_id / "disk.img"
    image.write_bytes(os.urandom(MIB) * 256)
    assert driver.process is not None
    most = 0
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        copying = client.submit(driver.snapshot, "s", volume.volume_id)
        while not copying.done():
            most = max(most, processors(driver.process.pid).count(ALL_PROCESSORS))
        copying.result()
    assert most == 2, "the reaper, and who copies"
    assert processors(driver.process.pid).count(ALL_PROCESSORS) == 1


@several_processors
@pytest.mark.parametrize(
    "how", [{"options": ("--all-cpus",)}, {"PYCSI_ONE_CPU": "false"}], ids=["option", "variable"]
)
def test_all_processors(serve: Callable[..., Driver], pool: Path, how: dict[str, Any]) -> None:
    """Who wants it has the driver on all processors."""
    driver = serve(pool, **how)
    driver.create("v", quota="none")
    assert driver.process is not None
    assert set(map(frozenset, processors(driver.process.pid))) == {frozenset(ALL_PROCESSORS)}


@several_processors
def test_processors_that_are_allowed(serve: Callable[..., Driver], pool: Path) -> None:
    """No thread ever gets a processor that the driver was not started on."""
    allowed = {max(ALL_PROCESSORS)}
    os.sched_setaffinity(0, allowed)
    try:
        driver = serve(pool)
    finally:
        os.sched_setaffinity(0, ALL_PROCESSORS)
    driver.create("v", quota="none")
    assert driver.process is not None
    assert set(map(frozenset, processors(driver.process.pid))) == {frozenset(allowed)}


@pytest.mark.usefixtures("root")
@several_processors
@pytest.mark.parametrize("options", [(), ("--all-cpus",)], ids=["one", "all"])
def test_processors_that_somebody_chose_since(
    serve: Callable[..., Driver], slow_mkfs: SlowPrograms, pool: Path, options: tuple[str, ...]
) -> None:
    """Where an operator has sent the driver since (taskset), its programs run as well."""
    driver = serve(pool, options=options, PATH=slow_mkfs.path)
    driver.create("v", quota="none")
    assert driver.process is not None
    shared = min(processors(driver.process.pid), key=len)
    chosen = {max(ALL_PROCESSORS - shared or ALL_PROCESSORS)}
    for thread in Path(f"/proc/{driver.process.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), chosen)
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        making = client.submit(driver.create, "image", type="image")
        wait_for(lambda: slow_mkfs.started)
        programs = processors(slow_mkfs.pid)
        slow_mkfs.go()
        making.result(30)
    assert programs == [chosen]
    assert set(map(frozenset, processors(driver.process.pid))) == {frozenset(chosen)}


@pytest.mark.usefixtures("root")
def test_log_that_nobody_reads(tmp_path: Path, pool: Path) -> None:
    """A broken standard error costs the log, never an answer."""
    reading, writing = os.pipe()
    endpoint, pool_option = f"unix://{tmp_path}/csi.sock", f"--pool=default={pool}"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pycsi",
            "serve",
            "--endpoint",
            endpoint,
            "--node-id=n",
            pool_option,
        ],
        stderr=writing,
    )
    os.close(writing)
    try:
        with grpc.insecure_channel(endpoint) as channel:
            grpc.channel_ready_future(channel).result(30)
            identity = csi_pb2_grpc.IdentityStub(channel)  # type: ignore[no-untyped-call]
            controller = csi_pb2_grpc.ControllerStub(channel)  # type: ignore[no-untyped-call]
            wait_for(lambda: identity.Probe(csi.ProbeRequest()).ready.value)
            os.close(reading)
            list_all = csi.ListVolumesRequest()
            assert code_of(lambda: controller.ListVolumes(list_all)) is grpc.StatusCode.OK
            bad = csi.ListVolumesRequest(starting_token="x")  # noqa: S106
            assert code_of(lambda: controller.ListVolumes(bad)) is grpc.StatusCode.ABORTED
    finally:
        process.terminate()
        process.wait(30)


def test_end_at_any_moment_of_the_start(driver: Driver) -> None:
    """SIGTERM ends the driver cleanly, however soon after its start it comes."""
    for delay in range(8):
        driver.stop()
        driver.launch()
        assert driver.process is not None
        while not driver.socket.exists():
            assert driver.process.poll() is None
        time.sleep(delay / 100)
        assert driver.stop() == 0
        assert not driver.socket.exists()
        driver.start()
