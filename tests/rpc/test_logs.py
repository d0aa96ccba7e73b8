"""The log: one line for each call, and nothing sensitive in any of them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from driver import MIB, Driver, mount_capability
from rpc.conftest import OK, code_of, pycsi, request

from pycsi.proto import csi_pb2 as csi

MARKER = "hunter2"
TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"
SERVICES = {"controller": "Controller", "node": "Node"}


def lines(driver: Driver) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in driver.log.splitlines()]
    return [line for line in found if "request_id" in line]


def test_line_of_a_call(driver: Driver) -> None:
    """A call is one line of JSON: method, id, code, duration, and a number of its own."""
    start = len(lines(driver))
    driver.controller.CreateVolume(request("a\nb"))
    code_of(lambda: driver.controller.CreateVolume(request("")))
    driver.delete("none@node-1")
    code_of(lambda: driver.stats("v@node-1", Path("/none")))
    driver.identity.Probe(csi.ProbeRequest())
    found = lines(driver)[start:]
    assert [(line["event"], line["code"]) for line in found] == [
        ("CreateVolume", "OK"),
        ("CreateVolume", "INVALID_ARGUMENT"),
        ("DeleteVolume", "OK"),
        ("NodeGetVolumeStats", "NOT_FOUND"),
    ], "a successful Probe is no news"
    assert found[0]["name"] == "a\nb"
    assert found[2]["volume_id"] == "none@node-1"
    assert "error" in found[1]
    assert "error" not in found[0]
    assert len({line["request_id"] for line in found}) == len(found)
    for line in found:
        assert line["duration_ms"] >= 0
        assert line["timestamp"].endswith("Z")
        assert line["level"] == ("info" if line["code"] == "OK" else "warning")
        assert list(line)[:3] == ["timestamp", "level", "event"]


def test_text(serve: Callable[..., Driver], pool: Path) -> None:
    """The text format, too, has one line for each call, whatever the names are."""
    driver = serve(pool, options=("--log-format=text",))
    names = ["a\nb", "a\rb", 'a=b "c"', "\U0001f600", "a\u2028b", "\\n"]
    for name in names:
        driver.controller.CreateVolume(request(name))
    text = driver.log_file.read_bytes().decode()
    assert text.count("event=CreateVolume") == len(names)
    first = r"timestamp=\S+ level=\w+ event="
    assert all(re.match(first, line) for line in text.rstrip("\n").split("\n"))
    assert "\r" not in text


@pytest.mark.parametrize(("level", "logged"), [("warning", 1), ("error", 0)])
def test_level(serve: Callable[..., Driver], pool: Path, level: str, logged: int) -> None:
    """A refused call is a warning; one that succeeds is not."""
    driver = serve(pool, options=(f"--log-level={level}",))
    driver.create("a", quota="none")
    code_of(lambda: driver.create(""))
    assert [line["code"] for line in lines(driver)] == ["INVALID_ARGUMENT"] * logged


@pytest.mark.parametrize("level", ["debug", "error"])
def test_refusal_to_start_in_text(tmp_path: Path, level: str) -> None:
    """Why the driver does not start is told in the format of the log, whatever the level."""
    endpoint = f"--endpoint=unix://{tmp_path}/csi.sock"
    options = ("--node-id=n", f"--pool=default={tmp_path}/none,require-pool")
    done = pycsi(endpoint, *options, "--log-format=text", f"--log-level={level}")
    assert done.returncode == 1
    assert re.fullmatch(
        r'timestamp=\S+ level=error event="the driver cannot start" error="pool default: .+"\n',
        done.stderr,
    )


def test_what_nobody_handles() -> None:
    """What libraries log, and what fails without being handled, is in the log's format too."""
    script = """
import logging, threading
from pycsi.server import logs
logs.configure("json", "info")
logging.getLogger("grpc").warning("50 %% of %s", "it")
logging.getLogger("grpc").info("no news")
thread = threading.Thread(target=lambda: [][0], name="worker")
thread.start()
thread.join()
raise ValueError("a\\nb")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    library, thread, failure = map(json.loads, done.stderr.splitlines())
    assert (library["level"], library["event"]) == ("warning", "50 % of it")
    assert (thread["level"], thread["thread"]) == ("critical", "worker")
    assert thread["exception"].endswith("IndexError: list index out of range")
    assert failure["exception"].endswith("ValueError: a\nb")
    assert [list(line)[:3] for line in (library, thread, failure)] == [
        ["timestamp", "level", "event"]
    ] * 3


PLAUSIBLE: dict[str, Any] = {
    "mode": csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER,
    "volume_id": "a@node-1",
    "source_volume_id": "a@node-1",
    "staging_target_path": "/none/such/path",
    "target_path": "/none/such/path",
    "volume_path": "/none/such/path",
    "required_bytes": 16 * MIB,
    "limit_bytes": 16 * MIB,
}


def fill(message: Any, depth: int = 3) -> None:
    """Set everything sensitive in a request to the marker, and the rest to something plausible."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        if field.name == "secrets":
            for number in range(20):
                value[f"key-{number}"] = MARKER
        elif entry:
            value[TOKENS] = MARKER
        elif field.name == "mount_flags":
            value.extend([MARKER, f"pass={MARKER}", f"ro,{MARKER}"])
        elif field.message_type is not None and depth:
            part = value.add() if field.is_repeated else value
            part.SetInParent()
            fill(part, depth - 1)
        elif field.name in PLAUSIBLE:
            setattr(message, field.name, PLAUSIBLE[field.name])


METHODS = [
    (attribute, method.name)
    for attribute, service in SERVICES.items()
    for method in csi.DESCRIPTOR.services_by_name[service].methods
]


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a driver that logs all it may, with a volume of each kind."""
    folder = tmp_path_factory.mktemp("talkative")
    (folder / "pool").mkdir()
    options = ("--log-level=debug", "--enable-attach")
    with Driver(folder / "driver", [f"default={folder / 'pool'}"], options) as driver:
        driver.create("a", 16 * MIB, quota="none")
        driver.create("d", 16 * MIB, quota="none")
        driver.create("i", 16 * MIB, type="image")
        yield driver


@pytest.mark.parametrize(("attribute", "method"), METHODS)
@pytest.mark.parametrize(("name", "fs_type"), [("", ""), ("new", "ext4"), ("a", "")])
def test_nothing_sensitive_is_logged(
    talkative: Driver, attribute: str, method: str, name: str, fs_type: str
) -> None:
    """At debug level the whole request is logged, without secrets, flags and tokens."""
    input_type = csi.DESCRIPTOR.services_by_name[SERVICES[attribute]].methods_by_name[method]
    message = getattr(csi, input_type.input_type.name)()
    fill(message)
    if hasattr(message, "name"):
        message.name = name
    for field in ("volume_capability", "volume_capabilities"):
        if found := getattr(message, field, None):
            (found if field == "volume_capability" else found[0]).mount.fs_type = fs_type
    if hasattr(message, "volume_content_source"):
        message.ClearField("volume_content_source")
    before = len(talkative.log)
    answer: list[Any] = []
    code = code_of(lambda: answer.append(getattr(getattr(talkative, attribute), method)(message)))
    logged = talkative.log[before:]
    assert MARKER not in logged
    assert MARKER not in str(answer)
    assert f'"code": "{code.name}"' in logged
    assert logged.count("\n") == 1


@pytest.mark.parametrize(
    ("volume_id", "flags"),
    [
        ("d@node-1", [f"pass={MARKER}"]),
        ("d@node-1", [MARKER]),
        ("i@node-1", [f"pass={MARKER}"]),
        ("i@node-1", [MARKER]),
        ("i@node-1", [f"data={MARKER}"]),
        ("i@node-1", [f"errors={MARKER}", "noatime"]),
        ("i@node-1", [f"commit={MARKER}"]),
        ("i@node-1", ["x" * 3000 + MARKER]),
    ],
)
def test_mount_flag_that_is_refused_is_not_logged(
    root: None, talkative: Driver, tmp_path: Path, volume_id: str, flags: list[str]
) -> None:
    """A flag that driver or kernel refuse is in neither the answer nor the log."""
    before = len(talkative.log)
    capability = mount_capability(flags=flags)
    with pytest.raises(grpc.RpcError) as caught:
        talkative.stage(volume_id, tmp_path / "staging", capability)
    failure: Any = caught.value
    assert MARKER not in failure.details()
    assert MARKER not in talkative.log[before:]
    assert failure.code() in {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
    assert code_of(lambda: talkative.stage(volume_id, tmp_path / "staging")) is OK
    talkative.unstage(volume_id, tmp_path / "staging")
