"""The spans that a driver sends to a real OTLP receiver, for which nothing ever waits."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from driver import MIB, NODE, Driver, mount_capability, refused
from rpc.conftest import OK, code_of, free_port, on_disk, pycsi, request, wait_for

from pycsi.proto import csi_pb2 as csi

receiver = pytest.importorskip("receiver", reason="needs the extra [otel]")

Serve = Callable[..., Driver]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = f"00-{TRACE}-{PARENT}-01"
MARKER = "hunter2"
BOUND = 5.0
"""Seconds: what a receiver may cost at the end, 2, and what a loaded machine adds."""


@pytest.fixture
def spans() -> Iterator[Any]:
    """Return a running receiver, which has got nothing yet."""
    with receiver.receiving() as running:
        yield running


@pytest.fixture
def traced(serve: Serve, pool: Path, spans: Any) -> Driver:
    """Return a driver that sends its spans to `spans`."""
    return serve(pool, **spans.variables)


@pytest.fixture(scope="module")
def crowd() -> Iterator[Any]:
    """Return a running receiver for the tests that use names of their own."""
    with receiver.receiving() as running:
        yield running


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, crowd: Any) -> Iterator[Driver]:
    """Return a driver that sends its spans to `crowd`."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "pool").mkdir()
    pools = [f"default={folder / 'pool'}"]
    with Driver(folder / "driver", pools, (), dict(crowd.variables)) as driver:
        yield driver


def lines(driver: Driver, event: str) -> list[dict[str, Any]]:
    """Return the lines of a driver's log about an event."""
    found = [json.loads(line) for line in driver.log.splitlines()]
    return [line for line in found if line["event"] == event]


def enumerated(*items: Any) -> list[tuple[str, Any]]:
    """Return the items with their numbers."""
    return [(str(number), item) for number, item in enumerate(items)]


def create(driver: Driver, name: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
    return code_of(lambda: driver.controller.CreateVolume(request(name), metadata=metadata))


def test_span_of_an_rpc(traced: Driver, spans: Any) -> None:
    """It has the names of OpenTelemetry's conventions, the volume, its pool and its node."""
    traced.create("a", 4 * MIB, quota="none")
    span = spans.one("/CreateVolume")
    assert (span.name, span.kind, span.parent) == ("csi.v1.Controller/CreateVolume", "server", "")
    assert span.about == {
        "rpc.system.name": "grpc",
        "rpc.method": "csi.v1.Controller/CreateVolume",
        "rpc.response.status_code": "OK",
        "pycsi.name": "a",
        "pycsi.volume_id": f"a@{NODE}",
        "pycsi.pool": "default",
        "pycsi.node": NODE,
    }
    assert not span.failed
    assert [child.name for child in spans.below(span)] == ["make", "commit"]
    known = {"service.name": "pycsi", "pycsi.mode": "single-node", "pycsi.node": NODE}
    assert known.items() <= span.by.items()


def test_phases(root: None, traced: Driver, spans: Any, tmp_path: Path) -> None:
    """Each part that takes time is a span below that of its RPC."""
    xfs = mount_capability("xfs")
    volume_id = traced.create("a", 320 * MIB, capability=xfs).volume_id
    with traced.published(volume_id, tmp_path, xfs):
        snapshot_id = traced.snapshot("s", volume_id).snapshot_id
        traced.expand(volume_id, 400 * MIB)
        traced.node_expand(volume_id, tmp_path / f"target-{volume_id}")
    traced.delete_snapshot(snapshot_id)
    traced.delete(volume_id)

    def below(name: str) -> list[str]:
        return [child.name for child in spans.below(spans.one(name))]

    assert below("/DeleteVolume") == ["trash"]
    assert below("/CreateVolume") == ["make", "commit"]
    assert below("make") == ["mkfs", "sync"]
    assert below("/NodeStageVolume") == ["mount"]
    assert below("/NodePublishVolume") == ["mount"]
    assert below("/CreateSnapshot") == ["turn", "prepare", "write back", "freeze", "commit"]
    assert below("freeze") == ["copy"]
    assert below("/ControllerExpandVolume") == ["resize", "commit"]
    assert below("/NodeExpandVolume") == ["grow"]
    assert below("/NodeUnpublishVolume") == ["unmount"]
    assert below("/NodeUnstageVolume") == ["unmount", "detach"]
    snapshot = spans.one("/CreateSnapshot")
    for child in spans.below(snapshot):
        assert child.trace_id == snapshot.trace_id
        assert snapshot.begin <= child.begin <= child.end <= snapshot.end


def test_copies_of_other_pools(serve: Serve, tmp_path: Path, spans: Any) -> None:
    """A clone is in the pool that it is made in, and its copy is of the source's pool."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    pools = (f"{name}={tmp_path / name}" for name in ("one", "two"))
    driver = serve(*pools, **spans.variables)
    source = driver.create("a", 4 * MIB, pool="one", quota="none")
    content = csi.VolumeContentSource()
    content.volume.volume_id = source.volume_id
    driver.create("b", 4 * MIB, source=content, pool="two", quota="none")
    clone = spans.one("/CreateVolume", name="b")
    assert clone.about["pycsi.pool"] == "two"
    (copy,) = [child for child in spans.below(clone) if child.name == "copy"]
    assert copy.about["pycsi.pool"] == "one"


def test_failed_rpc(asked: Driver, crowd: Any) -> None:
    """Its code and its message are there; it is an error if the driver is to blame."""
    with refused(grpc.StatusCode.NOT_FOUND):
        asked.controller.ControllerGetVolume(
            csi.ControllerGetVolumeRequest(volume_id="none@node-1")
        )
    span = crowd.one("/ControllerGetVolume")
    assert span.about["rpc.response.status_code"] == span.about["error.type"] == "NOT_FOUND"
    ((event, facts),) = span.events
    assert (event, facts["exception.type"]) == ("exception", "NotFound")
    assert "none@node-1" in facts["exception.message"]
    assert not span.failed
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        asked.controller.ControllerPublishVolume(csi.ControllerPublishVolumeRequest())
    span = crowd.one("/ControllerPublishVolume")
    assert span.failed
    assert "capabilities" in span.message


def test_failed_phase(root: None, serve: Serve, pool: Path, tmp_path: Path, spans: Any) -> None:
    """The phase that has failed is an error, with the reason."""
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "mkfs.ext4").write_text("#!/bin/sh\necho 'mkfs is broken' >&2\nexit 1\n")
    (broken / "mkfs.ext4").chmod(0o755)
    driver = serve(pool, PATH=f"{broken}:{os.environ['PATH']}", **spans.variables)
    assert create(driver, "a") is OK
    code_of(lambda: driver.create("b", type="image"))
    span = spans.one("mkfs")
    assert span.failed
    assert "mkfs is broken" in span.message
    (made,) = [item for item in spans.named("make") if item.id == span.parent]
    assert made.failed


def test_context_of_the_caller(traced: Driver, spans: Any) -> None:
    """The span belongs to the caller's trace, whose id the log's line has."""
    assert create(traced, "a", ("traceparent", CALLER), ("tracestate", "x=1,y=2")) is OK
    span = spans.one("/CreateVolume")
    assert (span.trace_id, span.parent) == (TRACE, PARENT)
    (line,) = lines(traced, "CreateVolume")
    assert (line["trace_id"], line["span_id"]) == (TRACE, span.id)
    assert "trace_id" not in lines(traced, "serving")[0]


def test_caller_that_does_not_sample(traced: Driver, spans: Any) -> None:
    """What the caller does not record is not recorded here, but the log tells its trace."""
    assert create(traced, "a", ("traceparent", CALLER.removesuffix("01") + "00")) is OK
    assert create(traced, "b") is OK
    assert spans.one("/CreateVolume").about["pycsi.name"] == "b"
    assert lines(traced, "CreateVolume")[0]["trace_id"] == TRACE


@pytest.mark.parametrize(
    ("name", "metadata"),
    enumerated(
        [("traceparent", "")],
        [("traceparent", "x" * 4000)],
        [("traceparent", CALLER.upper())],
        [("traceparent", f"ff{CALLER[2:]}")],
        [("traceparent", f"{CALLER}-more")],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01")],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01")],
        [("traceparent", "00-%n%s\\x00-{}-01")],
        [("traceparent-bin", CALLER.encode())],
        [("tracestate", "a=1")],
    ),
)
def test_nonsense_for_a_context(
    asked: Driver, crowd: Any, name: str, metadata: list[tuple[str, str]]
) -> None:
    """Such an RPC is answered, and begins a trace of its own."""
    assert create(asked, f"nonsense-{name}", *metadata) is OK
    span = crowd.one("/CreateVolume", name=f"nonsense-{name}")
    assert span.parent == ""
    assert span.trace_id != TRACE


@pytest.mark.parametrize(
    ("name", "more"),
    enumerated(
        [("traceparent", CALLER)],
        [("tracestate", "x" * 4000)],
        [("tracestate", ",".join(f"k{number}=v" for number in range(500)))],
        [("tracestate", "=,==,a=b=c, ,")],
        [("tracestate", "a=1")] * 100,
        [("baggage", f"password={MARKER}")],
        [("baggage", "=;;,%00" * 500)],
        [("authorization", f"Bearer {MARKER}"), ("x-binary-bin", MARKER.encode())],
    ),
)
def test_more_than_a_context(
    asked: Driver, crowd: Any, name: str, more: list[tuple[str, str]]
) -> None:
    """What a caller sends besides is no reason to fail, and is sent to nobody."""
    assert create(asked, f"more-{name}", ("traceparent", CALLER), *more) is OK
    span = crowd.one("/CreateVolume", name=f"more-{name}")
    assert (span.trace_id, span.parent) == (TRACE, PARENT)
    assert MARKER.encode() not in crowd.bytes
    assert b"x" * 1000 not in crowd.bytes
    assert not [line for line in asked.log.splitlines() if '"library"' in line]


def test_secrets(asked: Driver, crowd: Any, tmp_path: Path) -> None:
    """No secret, parameter, context, token or mount flag is in what is sent."""
    secret = {"password": MARKER}
    capability = mount_capability(flags=[f"context={MARKER}"])
    context = {"csi.storage.k8s.io/serviceAccount.tokens": MARKER, "mine": MARKER}
    volume = asked.controller.CreateVolume(request("a", secrets=secret)).volume
    paths = {"staging_target_path": str(tmp_path / "s"), "volume_id": volume.volume_id}
    calls: list[tuple[Any, Any]] = [
        (asked.controller.CreateVolume, request("b", parameters=secret, secrets=secret)),
        (
            asked.controller.CreateSnapshot,
            csi.CreateSnapshotRequest(
                name="s", source_volume_id=volume.volume_id, parameters=secret, secrets=secret
            ),
        ),
        (
            asked.node.NodeStageVolume,
            csi.NodeStageVolumeRequest(
                **paths, volume_capability=capability, secrets=secret, volume_context=context
            ),
        ),
        (
            asked.node.NodePublishVolume,
            csi.NodePublishVolumeRequest(
                **paths,
                target_path=str(tmp_path / "t"),
                volume_capability=capability,
                secrets=secret,
                volume_context=context,
            ),
        ),
        (
            asked.controller.DeleteVolume,
            csi.DeleteVolumeRequest(volume_id=volume.volume_id, secrets=secret),
        ),
    ]
    for call, sent in calls:
        code_of(lambda call=call, sent=sent: call(sent))  # type: ignore[misc]
    crowd.one("/DeleteVolume", volume_id=volume.volume_id)
    assert MARKER.encode() not in crowd.bytes


def test_streams(root: None, traced: Driver, spans: Any) -> None:
    """A stream has one span, which ends with it, also if its reader goes."""
    volume_id = traced.create("a", 64 * MIB, type="image").volume_id
    snapshot_id = traced.snapshot("s", volume_id).snapshot_id
    assert traced.allocated(snapshot_id)
    assert spans.one("/GetMetadataAllocated").about["rpc.response.status_code"] == "OK"


def test_probes_are_not_traced(asked: Driver, crowd: Any) -> None:
    """Probes, which come every few seconds, have no spans unless their caller has one."""
    asked.identity.Probe(csi.ProbeRequest())
    asked.identity.Probe(csi.ProbeRequest(), metadata=[("traceparent", CALLER)])
    create(asked, "probed")
    crowd.one("/CreateVolume", name="probed")
    assert crowd.one("/Probe").parent == PARENT


def test_variables(serve: Serve, pool: Path, spans: Any) -> None:
    """The variables of OpenTelemetry name the process, and say where and how to send."""
    more = {
        "OTEL_SERVICE_NAME": "storage",
        "OTEL_RESOURCE_ATTRIBUTES": "pycsi.mode=mine,team=a",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=a",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "",
    }
    driver = serve(pool, **spans.variables, **more)
    create(driver, "a")
    by = spans.one("/CreateVolume").by
    assert {"service.name": "storage", "pycsi.mode": "mine", "team": "a"}.items() <= by.items()
    assert spans.metadata[0]["x-team"] == "a"


@pytest.mark.parametrize(
    "more",
    [
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_sent(serve: Serve, pool: Path, spans: Any, more: dict[str, str]) -> None:
    """Where the variables say so nothing is sent, and RPCs are answered."""
    driver = serve(pool, **spans.variables, **more)
    assert create(driver, "a", ("traceparent", CALLER)) is OK
    assert create(driver, "b") is OK
    assert driver.stop() == 0
    assert not spans.spans
    if "OTEL_SDK_DISABLED" not in more:
        assert lines(driver, "CreateVolume")[0]["trace_id"] == TRACE


def test_off(serve: Serve, pool: Path) -> None:
    """Without --tracing nothing of OpenTelemetry is imported, whatever its variables say."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense", "PYTHONPROFILEIMPORTTIME": "1"}
    driver = serve(pool, **variables)
    assert create(driver, "a", ("traceparent", CALLER)) is OK
    log = driver.log
    assert "import time:" in log
    assert "pycsi.server.tracing" in log
    assert "opentelemetry" not in log
    assert "trace_id" not in log


def test_not_installed(tmp_path: Path) -> None:
    """Without the extra the driver does not start, and says how to install it."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    done = pycsi(
        f"--endpoint=unix://{tmp_path}/csi.sock",
        f"--pool=default={tmp_path / 'pool'}",
        "--tracing",
        variables={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert "pip install 'pycsi-driver[otel]'" in line["error"]
    assert not (tmp_path / "pool").exists()


def test_wrong_variables(tmp_path: Path) -> None:
    """All that is wrong with them is told at once, and in plain words."""
    wrong = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "zip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "/none/ca.crt",
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "10",
        "OTEL_BSP_MAX_QUEUE_SIZE": "-1",
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "many",
    }
    done = pycsi(
        f"--endpoint=unix://{tmp_path}/csi.sock",
        f"--pool=default={tmp_path / 'pool'}",
        variables={**wrong, "PYCSI_TRACING": "true"},
    )
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    for name in set(wrong) - {"OTEL_TRACES_SAMPLER"}:
        assert f"{name}={wrong[name]!r}: " in line["error"]
    assert "Errno" not in line["error"]


def test_batches_larger_than_the_queue(tmp_path: Path) -> None:
    """The library would end with a traceback."""
    done = pycsi(
        f"--endpoint=unix://{tmp_path}/csi.sock",
        f"--pool=default={tmp_path / 'pool'}",
        "--tracing",
        variables={"OTEL_BSP_MAX_QUEUE_SIZE": "100"},
    )
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert "OTEL_BSP_MAX_EXPORT_BATCH_SIZE is 512" in line["error"]


def test_no_receiver(serve: Serve, pool: Path) -> None:
    """Nobody listens: RPCs are answered, the log says it once, and the driver stops soon."""
    more = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    driver = serve(pool, **receiver.sending_to(free_port()), **more)
    for number in range(50):
        assert create(driver, f"v{number}") is OK
    wait_for(lambda: "Failed to export traces" in driver.log)
    create(driver, "last")
    begin = time.monotonic()
    assert driver.stop() == 0
    assert time.monotonic() - begin < BOUND
    assert driver.log.count("Failed to export") <= 2
    assert "Traceback" not in driver.log


@pytest.mark.parametrize("how", ["accepts", "is stuck"])
def test_receiver_that_hangs(serve: Serve, pool: Path, spans: Any, how: str) -> None:
    """It delays no RPC, also if the queue is full, and the end of the driver by 2 seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent, spans.stuck():
        port = spans.port if how == "is stuck" else silent.getsockname()[1]
        sizes = {"OTEL_BSP_MAX_QUEUE_SIZE": "16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"}
        driver = serve(pool, **receiver.sending_to(port), **sizes)
        begin = time.monotonic()
        for number in range(100):
            assert create(driver, f"v{number}") is OK
        taken = time.monotonic() - begin
        assert taken < 10, "the receiver's time-out, which one call would have had to wait for"
        begin = time.monotonic()
        assert driver.stop() == 0
        assert time.monotonic() - begin < BOUND
    assert "Traceback" not in driver.log
    assert len(on_disk(driver)) == 100


def test_what_is_left_is_sent_at_the_end(serve: Serve, pool: Path, spans: Any) -> None:
    """A driver that is told to stop sends its last spans first."""
    driver = serve(pool, **spans.variables | {"OTEL_BSP_SCHEDULE_DELAY": "60000"})
    create(driver, "a")
    assert not spans.spans
    assert driver.stop() == 0
    assert spans.named("/CreateVolume")


def test_receiver_is_there_again(serve: Serve, pool: Path) -> None:
    """Once somebody listens, spans arrive."""
    port = free_port()
    driver = serve(pool, **receiver.sending_to(port), OTEL_EXPORTER_OTLP_TIMEOUT="1")
    create(driver, "lost")
    wait_for(lambda: "Failed to export" in driver.log)
    with receiver.receiving(port) as spans:
        wait_for(lambda: create(driver, "found") is OK and bool(spans.spans), 30)
