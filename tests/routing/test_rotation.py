"""Certificates are read again when their files change, while RPCs go on; damaged ones are not."""

import contextlib
import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from authority import FILES, Authority, credentials, secret_lines, served_at
from cluster import NodeDriver, controller
from conftest import run
from driver import Driver
from routing.conftest import create, ending, reaches
from routing.test_trust import CONTROLLER, NODE, TARGET, UNAVAILABLE, server
from rpc.conftest import pycsi, wait_for

from pycsi.proto import csi_pb2 as csi

CHANGED = "certificates are read again"
KEPT = "new certificates cannot be used; the old ones stay"


@dataclasses.dataclass
class Secret:
    """A directory of certificates as the kubelet keeps it: links to a directory that it swaps."""

    folder: Path

    def put(self, files: dict[str, bytes]) -> None:
        """Replace all files in one step."""
        self.folder.mkdir(exist_ok=True)
        data = self.folder / f"..{time.monotonic_ns()}"
        data.mkdir()
        for name, content in files.items():
            (data / name).write_bytes(content)
        current, new = self.folder / "..data", self.folder / "..new"
        old = current.resolve() if current.exists() else None
        new.symlink_to(data.name)
        new.rename(current)
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        if old:
            shutil.rmtree(old)

    def get(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in FILES}


@dataclasses.dataclass
class Rotating:
    """A node and its controller, whose certificates can be replaced."""

    folder: Path
    authority: Authority
    secrets: dict[str, Secret]
    node: NodeDriver
    central: Driver

    def issued(self, role: str, authority: Authority | None = None) -> dict[str, bytes]:
        """Return new files for a role."""
        issuer = authority or self.authority
        name, usage = (NODE, "serverAuth") if role == "node" else (CONTROLLER, "clientAuth")
        into = issuer.issue(self.folder / f"new-{time.monotonic_ns()}", name, usage=usage)
        return {item: (into / item).read_bytes() for item in FILES}

    def replace(self, role: str, files: dict[str, bytes]) -> None:
        """Replace the files of a role, and wait until they are read."""
        driver = self.node if role == "node" else self.central
        before = driver.log.count(CHANGED)
        self.secrets[role].put(files)
        wait_for(lambda: self.looked() and driver.log.count(CHANGED) > before, 30)

    def looked(self) -> bool:
        """Have the controller look for a node, and so for certificates; and call the node anew."""
        time.sleep(0.2)
        ending(lambda: self.central.delete("x@nowhere"))
        with contextlib.suppress(OSError):
            served_at(self.node.address)
        return True


@pytest.fixture
def rotating(tmp_path: Path) -> Iterator[Rotating]:
    authority = Authority(tmp_path / "authority")
    secrets = {role: Secret(tmp_path / "tls" / role) for role in ("node", "controller")}
    (tmp_path / "tls").mkdir()
    (tmp_path / "a" / "pool").mkdir(parents=True)
    node = NodeDriver("a", tmp_path / "a", [f"default={tmp_path / 'a/pool'}"], tmp_path / "tls")
    central = controller(tmp_path, tmp_path / "tls", {"a": node})
    made = Rotating(tmp_path, authority, secrets, node, central)
    for role, secret in secrets.items():
        secret.put(made.issued(role))
    with node, central:
        yield made


@contextlib.contextmanager
def load(driver: Driver, volume_id: str) -> Iterator[list[str]]:
    """Call a driver from four threads; yield what has failed."""
    asked = csi.ControllerGetVolumeRequest(volume_id=volume_id)
    failed: list[str] = []
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            code, details = ending(lambda: driver.controller.ControllerGetVolume(asked))
            if code is not grpc.StatusCode.OK:
                failed.append(f"{code}: {details}")

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_new_certificates(rotating: Rotating) -> None:
    """New certificates are used for new connections, and no RPC fails for that."""
    with load(rotating.central, create(rotating.node, "v")) as failed:
        for _ in range(2):
            files = rotating.issued("node")
            rotating.replace("node", files)
            assert served_at(rotating.node.address) == files["tls.crt"]
            rotating.replace("controller", rotating.issued("controller"))
            assert reaches(rotating.central, "a")
    assert failed == []


def test_new_authority(rotating: Rotating) -> None:
    """An authority is replaced by way of both; then certificates of the old one are refused."""
    other = Authority(rotating.folder / "other")
    old = rotating.folder / "old"
    shutil.copytree(rotating.secrets["controller"].folder.resolve(), old)
    both = {"ca.crt": rotating.authority.certificate.read_bytes() + other.certificate.read_bytes()}
    (old / "ca.crt").write_bytes(both["ca.crt"])
    with load(rotating.central, create(rotating.node, "v")) as failed:
        for role, secret in rotating.secrets.items():
            rotating.replace(role, secret.get() | both)
        for role in rotating.secrets:
            rotating.replace(role, rotating.issued(role, other) | both)
        with grpc.secure_channel(rotating.node.address, credentials(old), [TARGET]) as channel:
            assert known(channel) is grpc.StatusCode.UNIMPLEMENTED
        for role, secret in rotating.secrets.items():
            rotating.replace(role, secret.get() | {"ca.crt": other.certificate.read_bytes()})
    assert failed == []
    with grpc.secure_channel(rotating.node.address, credentials(old), [TARGET]) as channel:
        assert known(channel) is UNAVAILABLE
    assert reaches(rotating.central, "a")


def known(channel: Any) -> grpc.StatusCode:
    """Return how a call ends that nobody serves: UNIMPLEMENTED if the caller is let in."""
    return ending(lambda: channel.unary_unary("/x.Y/Z")(b"", timeout=30))[0]


def test_controller_uses_new_certificate(rotating: Rotating) -> None:
    """The controller shows the certificate that it has read last."""
    trusted = rotating.authority.issue(rotating.folder / "server", NODE)
    with server(trusted) as (recorder, address):
        central = controller(
            rotating.folder / "again", rotating.folder / "tls", {}, (f"--node=x={address}",)
        )
        (rotating.folder / "again").mkdir()
        rotating.central = central
        with central:
            files = rotating.secrets["controller"].get()
            wait_for(lambda: files["tls.crt"] in shown(recorder.callers))
            files = rotating.issued("controller")
            rotating.replace("controller", files)
            wait_for(lambda: files["tls.crt"] in shown(recorder.callers))


def shown(certificates: list[bytes]) -> list[bytes]:
    return [item.replace(b"\r", b"") for item in certificates]


DAMAGE: dict[str, Callable[[dict[str, bytes], dict[str, bytes]], dict[str, bytes]]] = {
    "another key": lambda old, new: new | {"tls.key": old["tls.key"]},
    "empty": lambda _, new: new | {"tls.crt": b""},
    "half": lambda _, new: new | {"tls.key": new["tls.key"][:100]},
    "no authority": lambda _, new: new | {"ca.crt": b"-----BEGIN CERTIFICATE-----\n"},
    "swapped": lambda _, new: new | {"tls.key": new["tls.crt"], "tls.crt": new["tls.key"]},
}


def test_damaged_certificates(rotating: Rotating) -> None:
    """Files that cannot be used change nothing but the log; right ones are used again."""
    at_first = rotating.secrets["node"].get()
    with load(rotating.central, create(rotating.node, "v")) as failed:
        for damage in DAMAGE.values():
            for role, driver in (("node", rotating.node), ("controller", rotating.central)):
                before = driver.log.count(KEPT)
                old = rotating.secrets[role].get()
                rotating.secrets[role].put(damage(old, rotating.issued(role)))
                wait_for(lambda: rotating.looked() and driver.log.count(KEPT) > before, 30)  # noqa: B023
                rotating.secrets[role].put(old)
            assert served_at(rotating.node.address) == at_first["tls.crt"]
        assert rotating.node.log.count(CHANGED) == 0
        for secret in rotating.secrets.values():
            (secret.folder / "tls.crt").unlink()
        wait_for(lambda: rotating.looked() and "No such file" in rotating.central.log, 30)
        assert served_at(rotating.node.address) == at_first["tls.crt"]
        for secret in rotating.secrets.values():
            (secret.folder / "tls.crt").symlink_to("..data/tls.crt")
        for role in rotating.secrets:
            rotating.replace(role, rotating.issued(role))
    assert failed == []
    for driver in (rotating.node, rotating.central):
        assert all(json.loads(line) for line in driver.log.splitlines())
        for key in rotating.folder.rglob("tls.key"):
            for line in secret_lines(key.parent):
                assert line not in driver.log


def test_files_replaced_one_by_one(rotating: Rotating) -> None:
    """Files that are replaced one after the other are used when they fit together."""
    plain = {}
    with load(rotating.central, create(rotating.node, "v")) as failed:
        for role in ("node", "controller"):
            files = plain[role] = rotating.issued(role)
            folder = rotating.secrets[role].folder
            for name in FILES:
                (folder / "new").write_bytes(files[name])
                (folder / "new").rename(folder / name)
                rotating.looked()
        wait_for(
            lambda: (
                rotating.looked() and served_at(rotating.node.address) == plain["node"]["tls.crt"]
            ),
            30,
        )
        wait_for(lambda: rotating.looked() and CHANGED in rotating.central.log, 30)
    assert failed == []


# At the start


def _become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _encrypt(key: Path) -> None:
    new = key.with_name("new")
    run("openssl", "ec", "-aes128", "-passout", "pass:secret", "-in", key, "-out", new)
    new.rename(key)


def _weaken(folder: Path) -> None:
    short = ("-newkey", "rsa:512", "-nodes", "-subj", "/CN=short")
    files = ("-keyout", folder / "tls.key", "-out", folder / "tls.crt")
    run("openssl", "req", "-x509", *short, *files)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"no {name}": (lambda f, n=name: (f / n).unlink(), name) for name in FILES},  # type: ignore[misc]
    "no directory": (shutil.rmtree, "ca.crt"),
    "empty": (lambda folder: (folder / "tls.crt").write_bytes(b""), "tls.crt has no cert"),
    "directory": (lambda folder: _become_directory(folder / "ca.crt"), "ca.crt: Is a directory"),
    "another's key": (
        lambda folder: shutil.copy(folder.parent / "other" / "tls.key", folder),
        "tls.key is not the key of the certificate in",
    ),
    "authority that is none": (
        lambda folder: shutil.copy(folder / "tls.key", folder / "ca.crt"),
        "ca.crt has no certificate",
    ),
    "key with a passphrase": (
        lambda folder: _encrypt(folder / "tls.key"),
        "tls.key has no private key that can be read",
    ),
    "weak key": (_weaken, "has a key that is too short"),
}


@pytest.mark.parametrize("mode", ["node", "controller"])
@pytest.mark.parametrize(("harm", "words"), FAULTS.values(), ids=FAULTS)
def test_start(tmp_path: Path, mode: str, harm: Callable[[Path], object], words: str) -> None:
    """Without usable files the driver does not start, and one line says which file it is."""
    authority = Authority(tmp_path / "authority")
    folder = authority.issue(tmp_path / "tls", NODE)
    authority.issue(tmp_path / "other", NODE)
    keys = secret_lines(folder)
    harm(folder)
    (tmp_path / "pool").mkdir()
    options = {
        "node": ("--node-id=a", f"--pool=default={tmp_path}/pool", "--listen-address=:9"),
        "controller": ("--node=a=127.0.0.1:9",),
    }
    endpoint = f"--endpoint=unix://{tmp_path}/csi.sock"
    done = pycsi(f"--mode={mode}", endpoint, f"--tls-directory={folder}", *options[mode])
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "error"
    assert line["error"].startswith("--tls-directory: ")
    assert words in line["error"]
    assert not any(key in done.stderr for key in keys)
    assert not (tmp_path / "csi.sock").exists()
