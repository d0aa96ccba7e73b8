"""One trace of an RPC: from its caller through the controller to the node, and group snapshots."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import Cluster, cluster
from driver import MIB, mount_capability
from routing.conftest import create, ending, killed, requirement
from rpc.conftest import request, wait_for

from pycsi.proto import csi_pb2 as csi

receiver = pytest.importorskip("receiver", reason="needs the extra [otel]")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = ("traceparent", f"00-{TRACE}-{PARENT}-01")
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def spans() -> Iterator[Any]:
    """Return a running receiver."""
    with receiver.receiving() as running:
        yield running


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, spans: Any) -> Iterator[Cluster]:
    """Return two nodes and their controller, which all send their spans to the receiver."""
    with pytest.MonkeyPatch.context() as variables:
        for name, value in spans.variables.items():
            variables.setenv(name, value)
        with cluster(tmp_path_factory.mktemp("traced"), "a", "b") as running:
            yield running


def test_one_trace(pair: Cluster, spans: Any) -> None:
    """The node's span is a child of what the controller sends, and that of the controller's."""
    asked = request("one", accessibility_requirements=requirement(preferred=("b",)))
    pair.controller.controller.CreateVolume(asked, metadata=(CALLER, ("tracestate", "x=1")))
    wait_for(lambda: len(spans.named("/CreateVolume", name="one")) == 2)
    served, answered = sorted(spans.named("/CreateVolume", name="one"), key=lambda span: span.begin)
    (sent,) = spans.below(served)
    assert (served.kind, sent.kind, answered.kind) == ("server", "client", "server")
    assert (served.parent, sent.parent, answered.parent) == (PARENT, served.id, sent.id)
    assert {served.trace_id, sent.trace_id, answered.trace_id} == {TRACE}
    assert (sent.about["pycsi.node"], answered.about["pycsi.node"]) == ("b", "b")
    assert sent.about["rpc.response.status_code"] == "OK"
    assert (served.by["pycsi.mode"], answered.by["pycsi.mode"]) == ("controller", "node")
    assert [child.name for child in spans.below(answered)] == ["make", "commit"]


def test_placement(pair: Cluster, spans: Any) -> None:
    """All that the controller asks the nodes for one RPC belongs to it."""
    create(pair.controller, "two")
    wait_for(lambda: len(spans.named("/CreateVolume", name="two")) == 2)
    served = min(spans.named("/CreateVolume", name="two"), key=lambda span: span.begin)
    sent = [span.name.rpartition("/")[2] for span in spans.below(served)]
    assert sent == ["ControllerGetVolume", "ControllerGetVolume", "CreateVolume"]


def test_failure(pair: Cluster, spans: Any) -> None:
    """A node's refusal is an error for who has asked, with the node's code and message."""
    code, message = ending(
        lambda: pair.controller.controller.ControllerGetVolume(
            csi.ControllerGetVolumeRequest(volume_id="none@a")
        )
    )
    assert code is Code.NOT_FOUND
    wait_for(lambda: len(spans.named("/ControllerGetVolume", volume_id="none@a")) == 2)
    served = min(
        spans.named("/ControllerGetVolume", volume_id="none@a"), key=lambda span: span.begin
    )
    (sent,) = spans.below(served)
    assert sent.failed
    assert sent.about["rpc.response.status_code"] == "NOT_FOUND"
    assert sent.message in message
    assert not served.failed
    assert served.about["error.type"] == "NOT_FOUND"


def test_node_that_is_away(pair: Cluster, spans: Any) -> None:
    """It is told which node has not answered."""
    with killed(pair, "b"):
        asked = csi.ControllerGetVolumeRequest(volume_id="away@b")
        code, _ = ending(lambda: pair.controller.controller.ControllerGetVolume(asked, timeout=20))
        assert code is Code.UNAVAILABLE
    served = spans.one("/ControllerGetVolume", volume_id="away@b")
    assert served.failed
    sent = spans.below(served)
    assert {span.about["pycsi.node"] for span in sent} <= {"b"}
    assert all(span.failed for span in sent)


def test_group_over_nodes(pair: Cluster, spans: Any) -> None:
    """The parts that the nodes take are below the span of the group's RPC."""
    names = ("a", "b")
    sources = [
        create(pair.controller, f"g{at}", accessibility_requirements=requirement(preferred=(at,)))
        for at in names
    ]
    pair.controller.snapshot_group("both", *sources)
    served = spans.one("/CreateVolumeGroupSnapshot")
    wait_for(lambda: len(spans.named("/TakePart")) == 4)
    sent = [span for span in spans.below(served) if span.name.endswith("/TakePart")]
    assert [span.about["pycsi.node"] for span in sent] == [*names]
    for span, at in zip(sent, names, strict=True):
        assert span.kind == "client"
        assert not span.failed
        (part,) = spans.below(span)
        assert part.about["pycsi.node"] == at
        phases = [child.name for child in spans.below(part)]
        assert phases == ["turn", "prepare", "wait", "wait", "copy", "wait", "commit", "wait"]


def test_refused_group(pair: Cluster, spans: Any) -> None:
    """A take that fails tells on which node, and why."""
    source = create(pair.controller, "r", accessibility_requirements=requirement(preferred=("a",)))
    code, message = ending(lambda: pair.controller.snapshot_group("refused", source, "none@b"))
    assert code is Code.NOT_FOUND
    wait_for(lambda: bool(spans.named("/CreateVolumeGroupSnapshot", name="refused")))
    served = spans.one("/CreateVolumeGroupSnapshot", name="refused")
    wait_for(lambda: any(span.failed for span in spans.below(served)))
    failed = [span for span in spans.below(served) if span.failed]
    assert {span.about["pycsi.node"] for span in failed} == {"b"}
    assert failed[0].message in message


def test_streams(pair: Cluster, spans: Any, root: None) -> None:
    """A stream through the controller is one trace too."""
    asked = request(
        "s",
        parameters={"type": "image"},
        capacity_range=csi.CapacityRange(required_bytes=64 * MIB),
        volume_capabilities=[mount_capability()],
        accessibility_requirements=requirement(preferred=("a",)),
    )
    volume_id = pair.controller.controller.CreateVolume(asked).volume.volume_id
    snapshot_id = pair.controller.snapshot("s", volume_id).snapshot_id
    assert pair.controller.allocated(snapshot_id)
    wait_for(lambda: len(spans.named("/GetMetadataAllocated")) == 3)
    kinds = [span.kind for span in sorted(spans.named("Allocated"), key=lambda span: span.begin)]
    assert kinds == ["server", "client", "server"]


def test_background_has_no_spans(pair: Cluster, spans: Any) -> None:
    """What the controller asks the nodes now and then is nobody's RPC."""
    assert not spans.named("/ListPrepared")


def test_caller_is_told_to_the_node_without_tracing(tmp_path: Path, spans: Any) -> None:
    """A controller without tracing passes on the caller's context, so that nodes can trace."""
    with pytest.MonkeyPatch.context() as variables:
        for name, value in spans.variables.items():
            variables.setenv(name, value)
        variables.delenv("PYCSI_TRACING")
        with cluster(tmp_path, "c") as running:
            node = running.nodes["c"]
            node.own_options = (*node.own_options, "--tracing")
            node.restart()
            asked = request("through", accessibility_requirements=requirement(preferred=("c",)))
            wait_for(
                lambda: (
                    ending(
                        lambda: running.controller.controller.CreateVolume(
                            asked, metadata=(CALLER,)
                        )
                    )[0]
                    is Code.OK
                )
            )
            wait_for(lambda: bool(spans.named("/CreateVolume", name="through")))
    assert {span.parent for span in spans.named("/CreateVolume", name="through")} == {PARENT}
