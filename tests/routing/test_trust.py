"""Controller and nodes speak only to each other: whom else they refuse, and how they say so."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from authority import BOTH, FILES, Authority, credentials
from cluster import NodeDriver, controller
from driver import refused
from routing.conftest import create, ending
from rpc.conftest import wait_for

from pycsi.proto import csi_pb2 as csi
from pycsi.proto import exchange_pb2, groups_pb2

CONTROLLER = "DNS:controller.pycsi.storage"
NODE = "DNS:node.pycsi.storage"
TARGET = ("grpc.ssl_target_name_override", "node.pycsi.storage")

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED


@dataclasses.dataclass
class Certificates:
    """An authority with the certificates of a controller and of a node, and another authority."""

    folder: Path

    def __post_init__(self) -> None:
        self.authority = Authority(self.folder / "authority")
        self.stranger = Authority(self.folder / "stranger")
        self.controller = self.issue("controller", CONTROLLER, usage="clientAuth")
        self.node = self.issue("node", NODE, usage="serverAuth")

    def issue(self, name: str, names: str, **more: Any) -> Path:
        return self.authority.issue(self.folder / name, names, **more)

    def foreign(self, name: str, names: str, **more: Any) -> Path:
        """Return a certificate of the other authority, in a directory that trusts the first."""
        made = self.stranger.issue(self.folder / f"foreign-{name}", names, **more)
        shutil.copy(self.authority.certificate, made / "ca.crt")
        return made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def node(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeDriver]:
    """Return a node with a volume and a snapshot."""
    folder = tmp_path_factory.mktemp("node")
    with NodeDriver("a", folder, [f"default={_made(folder / 'pool')}"], certificates.folder) as run:
        run.snapshot("s", create(run, "v"))
        yield run


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def methods() -> Iterator[tuple[str, Any]]:
    """Yield the path and the descriptor of every method that any service of ours has."""
    for file in (csi.DESCRIPTOR, exchange_pb2.DESCRIPTOR, groups_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method


def called(channel: Any, path: str, method: Any, data: bytes = b"") -> tuple[grpc.StatusCode, str]:
    """Return how a call of a method ends; the request is empty."""
    if method.client_streaming:
        stream = channel.stream_stream(path)
        return ending(lambda: stream(iter([data]), timeout=30))
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    return ending(lambda: kind(path)(data, timeout=30))


def all_answers(channel: Any) -> dict[str, tuple[grpc.StatusCode, str]]:
    return {path: called(channel, path, method) for path, method in methods()}


# Who calls a node

CLIENTS: dict[str, Callable[[Certificates], Path]] = {
    "wrong authority": lambda its: its.foreign("controller", CONTROLLER),
    "expired": lambda its: its.issue("expired", CONTROLLER, days=-1),
    "a node's": lambda its: its.node,
    "for servers": lambda its: its.issue("for-servers", CONTROLLER, usage="serverAuth"),
}
"""Clients of which nothing is even read."""

NAMES = {
    "a node's, for both uses": NODE,
    "of another driver's controller": "DNS:controller.other.example",
    "of all names": "DNS:*.pycsi.storage",
    "of a name below": "DNS:controller.pycsi.storage.example",
    "of a name above": "DNS:x.controller.pycsi.storage",
    "a URI": "URI:controller.pycsi.storage",
    "an e-mail address": "email:controller.pycsi.storage",
    "only in the subject": "",
}
"""Names in certificates of our authority with which nobody may call a node."""


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_client_that_is_not_let_in(
    node: NodeDriver, certificates: Certificates, client: Callable[[Certificates], Path]
) -> None:
    """A client without a certificate for clients, of our authority, is not heard at all."""
    log = node.log
    with grpc.secure_channel(node.address, credentials(client(certificates)), [TARGET]) as channel:
        found = {code for code, _ in all_answers(channel).values()}
    assert found == {UNAVAILABLE}
    assert node.log == log


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_client_of_another_name(node: NodeDriver, certificates: Certificates, names: str) -> None:
    """A certificate that is not the controller's, by its DNS name, is refused for every call."""
    folder = certificates.issue("named", names, subject="controller.pycsi.storage")
    with grpc.secure_channel(node.address, credentials(folder), [TARGET]) as channel:
        found = all_answers(channel)
    for path, (code, details) in found.items():
        if path.startswith("/csi.v1.Node/"):
            assert code is UNIMPLEMENTED
        else:
            assert code is PERMISSION_DENIED, path
            assert "controller.pycsi.storage" in details


def test_client_without_certificate(node: NodeDriver, certificates: Certificates) -> None:
    """A client that has no certificate, or speaks plain text, is not heard at all."""
    log = node.log
    authority = (certificates.node / "ca.crt").read_bytes()
    anybody = grpc.ssl_channel_credentials(authority)
    with grpc.secure_channel(node.address, anybody, [TARGET]) as channel:
        assert {code for code, _ in all_answers(channel).values()} == {UNAVAILABLE}
    with grpc.insecure_channel(node.address) as channel:
        assert {code for code, _ in all_answers(channel).values()} == {UNAVAILABLE}
    assert node.log == log


@pytest.mark.parametrize(
    "name", [CONTROLLER, "DNS:Controller.PyCSI.storage", f"DNS:x,{CONTROLLER}"]
)
def test_controller(node: NodeDriver, certificates: Certificates, name: str) -> None:
    """The controller is served what it forwards; neither the service Node nor any other."""
    folder = certificates.issue("as-controller", name, usage=BOTH)
    with grpc.secure_channel(node.address, credentials(folder), [TARGET]) as channel:
        found = all_answers(channel)
        for path in (
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "/grpc.health.v1.Health/Check",
            "/csi.v1.Controller/NoSuchMethod",
            "/",
        ):
            assert called(channel, path, csi.DESCRIPTOR.services_by_name["Identity"].methods[0])[
                0
            ] is (UNIMPLEMENTED)
    for path, (code, _) in found.items():
        assert code is not PERMISSION_DENIED
        assert (code is UNIMPLEMENTED) is (path.startswith("/csi.v1.Node/") or "ublish" in path)


# Whom a controller calls


class Recorder(grpc.GenericRpcHandler):
    """A server that answers whatever it is asked, and remembers that it was."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.callers: list[bytes] = []

    def service(self, details: Any) -> Any:
        self.asked.append(details.method)
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, context: Any) -> bytes:
        self.callers += context.auth_context().get("x509_pem_cert", ())
        manifest = {"topology.pycsi.storage/node": "x", "pycsi-instance": "1"}
        return csi.GetPluginInfoResponse(
            name="pycsi.storage", vendor_version="1", manifest=manifest
        ).SerializeToString()


@contextlib.contextmanager
def server(folder: Path | None) -> Iterator[tuple[Recorder, str]]:
    """Serve with the certificate in a directory, or in plain text."""
    recorder = Recorder()
    made = grpc.server(ThreadPoolExecutor(4), handlers=[recorder])
    if folder:
        authority, chain, key = ((folder / name).read_bytes() for name in FILES)
        pair = grpc.ssl_server_credentials([(key, chain)], authority, True)
        port = made.add_secure_port("127.0.0.1:0", pair)
    else:
        port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    yield recorder, f"127.0.0.1:{port}"
    made.stop(None).wait()


SERVERS: dict[str, tuple[Callable[[Certificates], Path | None], str]] = {
    "wrong authority": (lambda its: its.foreign("node", NODE), "CERTIFICATE_VERIFY_FAILED"),
    "expired": (lambda its: its.issue("expired-node", NODE, days=-1), "CERTIFICATE_VERIFY_FAILED"),
    "another driver's": (
        lambda its: its.issue("other-node", "DNS:node.other.example"),
        "Hostname Verification Check failed",
    ),
    "a controller's": (
        lambda its: its.issue("controller-both", CONTROLLER),
        "Hostname Verification Check failed",
    ),
    "without a name": (
        lambda its: its.issue("nameless", "", subject="elsewhere"),
        "Hostname Verification Check failed",
    ),
    "for clients": (
        lambda its: its.issue("for-clients", NODE, usage="clientAuth"),
        "CERTIFICATE_VERIFY_FAILED",
    ),
    "plain text": (lambda _: None, "WRONG_VERSION_NUMBER"),
}


@pytest.mark.parametrize(("make", "reason"), SERVERS.values(), ids=SERVERS)
def test_server_that_is_no_node(
    certificates: Certificates,
    tmp_path: Path,
    make: Callable[[Certificates], Path | None],
    reason: str,
) -> None:
    """A server without a node's certificate is told nothing; the answer says what it lacks."""
    with (
        server(make(certificates)) as (recorder, address),
        server(certificates.node) as (right, right_address),
    ):
        nodes = (f"--node=x={address}", f"--node=y={right_address}")
        with controller(tmp_path, certificates.folder, {}, nodes) as central:
            for _ in range(2):
                code, details = ending(lambda: central.delete("v@x"))
                assert code is UNAVAILABLE
                assert reason in details, details
            wait_for(lambda: bool(right.asked))
    assert recorder.asked == []


CONTROLLERS: dict[str, tuple[Callable[[Certificates], Path], str]] = {
    "wrong authority": (
        lambda its: its.foreign("central", CONTROLLER),
        "the authority in ca.crt has not signed it",
    ),
    "expired": (lambda its: its.issue("expired-central", CONTROLLER, days=-1), "expired"),
    "for servers": (
        lambda its: its.issue("server-central", CONTROLLER, usage="serverAuth"),
        "purpose",
    ),
    "another driver's": (
        lambda its: its.issue("other-central", "DNS:controller.other.example"),
        "only that of the controller, controller.pycsi.storage, may call a node",
    ),
}


@pytest.mark.parametrize(("make", "reason"), CONTROLLERS.values(), ids=CONTROLLERS)
def test_controller_that_nodes_refuse(
    node: NodeDriver,
    certificates: Certificates,
    tmp_path: Path,
    make: Callable[[Certificates], Path],
    reason: str,
) -> None:
    """A controller with a certificate that no node takes says so, in the answer or its log."""
    folder = make(certificates)
    with controller(tmp_path, folder.parent, {"a": node}, role=folder.name) as central:
        with refused(UNAVAILABLE, "a"):
            central.delete("v@a")
        code, details = ending(central.volume_ids)
        assert code is UNAVAILABLE
        assert reason in details + central.log, details + central.log
    assert node.volume_ids() == ["v@a"]
