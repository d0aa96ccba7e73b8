"""What the driver tells Prometheus and whoever probes it, over HTTP."""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import mounted, needs
from driver import MIB, Driver
from metrics import get, promtool, scrape
from rpc.conftest import SlowPrograms, code_of, free_port, wait_for

from pycsi import __version__
from pycsi.linux import mkfs
from pycsi.model.health import Reason
from pycsi.model.parameters import CLAIM_NAME, CLAIM_NAMESPACE
from pycsi.proto import csi_pb2 as csi

CREATE = "/csi.v1.Controller/CreateVolume"
CLAIM: dict[str, Any] = {CLAIM_NAME: 'data-"0"', CLAIM_NAMESPACE: "shop"}

Serve = Callable[..., Driver]


def soon(is_so: Callable[[], bool]) -> None:
    """Wait until the metrics say so: they are measured anew after a pause of up to 10 seconds."""
    wait_for(is_so, 60)


def serving(port: int, *options: str) -> tuple[str, ...]:
    return (f"--metrics-address=127.0.0.1:{port}", *options)


def test_rpcs(serve: Serve, pool: Path) -> None:
    """They have the names and labels that the sidecars' metrics have, and short buckets too."""
    port = free_port()
    driver = serve(pool, options=serving(port, "--driver-name=storage.example.org"))
    driver.create("a", 64 * MIB, quota="none")
    code_of(lambda: driver.create(""))
    code_of(lambda: driver.stats("none@node-1", Path("/none")))
    found = scrape(port)
    create = {"driver_name": "storage.example.org", "method_name": CREATE}
    count = "csi_plugin_operations_seconds_count"
    assert found(count, grpc_status_code="OK", **create) == 1
    assert found(count, grpc_status_code="InvalidArgument", **create) == 1
    stats = "/csi.v1.Node/NodeGetVolumeStats"
    assert found(count, grpc_status_code="NotFound", method_name=stats) == 1
    assert found("csi_plugin_operations_in_flight", **create) == 0
    buckets = found.all("csi_plugin_operations_seconds_bucket", grpc_status_code="OK", **create)
    limits = [float(labels["le"]) for labels, _ in buckets]
    assert {0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600} < {*limits}
    assert min(limits) <= 0.001


@pytest.mark.usefixtures("root")
def test_rpcs_in_flight(serve: Serve, pool: Path, slow_mkfs: SlowPrograms) -> None:
    """An RPC that is being answered is counted, until it has been."""
    port = free_port()
    driver = serve(pool, options=serving(port), PATH=slow_mkfs.path)
    thread = threading.Thread(target=lambda: driver.create("a", type="image"))
    thread.start()
    wait_for(lambda: slow_mkfs.started)
    name = "csi_plugin_operations_in_flight"
    assert scrape(port)(name, method_name=CREATE) == 1
    slow_mkfs.go()
    thread.join()
    assert scrape(port)(name, method_name=CREATE) == 0


def test_pool(serve: Serve, pool: Path) -> None:
    """A pool has its capacity and its contents, also of the trash."""
    port = free_port()
    driver = serve(f"default={pool},reserve=1Mi,retain-for=1d", options=serving(port))
    driver.create("a", 64 * MIB, quota="none")
    driver.create("b", 32 * MIB, quota="none", onDelete="retain")
    driver.snapshot("s", "a@node-1")
    driver.delete("b@node-1")
    found = scrape(port)
    facts = os.statvfs(pool)
    own = {"pool": "default"}
    assert found("pycsi_pool_up", **own) == 1
    assert found("pycsi_pool_size_bytes", **own) == facts.f_blocks * facts.f_frsize
    assert found("pycsi_pool_reserve_bytes", **own) == MIB
    committed = found("pycsi_pool_committed_bytes", **own)
    assert committed is not None
    assert 96 * MIB <= committed <= 97 * MIB
    assert found("pycsi_pool_volumes", **own) == 1
    assert found("pycsi_pool_snapshots", **own) == 1
    assert found("pycsi_pool_trash_entries", **own) == 1
    assert found("pycsi_pool_trash_bytes", **own) == 32 * MIB
    assert found("pycsi_pool_trash_overdue_seconds", **own) == 0
    for name in ("free", "limit", "unwritten"):
        assert found(f"pycsi_pool_{name}_bytes", **own) is not None
    driver.delete("a@node-1")
    soon(lambda: bool(scrape(port)("pycsi_trash_removal_seconds_count", **own)))
    assert scrape(port)("pycsi_trash_removal_failures_total", **own) == 0


@pytest.mark.usefixtures("root")
def test_trash_that_cannot_be_emptied(serve: Serve, pool: Path) -> None:
    """It is told for how long that has been so, and that attempts fail."""
    port = free_port()
    driver = serve(pool, options=serving(port))
    driver.create("a", 64 * MIB, quota="none")
    driver.stop()
    entry = pool / "trash" / f"a@node-1.{int(time.time()) - 3600}.gone.00000000"
    (pool / "volumes" / "a@node-1").rename(entry)
    own = {"pool": "default"}
    with mounted("-t", "tmpfs", "none", entry / "data"):
        driver.start()
        soon(lambda: bool(scrape(port)("pycsi_trash_removal_failures_total", **own)))
        found = scrape(port)
        overdue = found("pycsi_pool_trash_overdue_seconds", **own)
        assert overdue is not None
        assert 3600 <= overdue < 3700
        assert found("pycsi_pool_trash_bytes", **own) == 64 * MIB
        driver.stop()


def test_volumes(serve: Serve, pool: Path) -> None:
    """A volume has its size, its kind and its claim; all have their health."""
    port = free_port()
    driver = serve(pool, options=serving(port))
    driver.create("a", 64 * MIB, quota="none", **CLAIM)
    driver.create("b", 32 * MIB, quota="none")
    found = scrape(port)
    assert found.all("pycsi_volume_info", volume="a@node-1") == [
        (
            {
                "pool": "default",
                "volume": "a@node-1",
                "type": "directory",
                "filesystem": "",
                "namespace": "shop",
                "persistentvolumeclaim": 'data-"0"',
                "encryption": "",
            },
            1,
        )
    ]
    assert found("pycsi_volume_capacity_bytes", volume="b@node-1") == 32 * MIB
    assert found.all("pycsi_volume_used_bytes") == [], "what nobody counts is not told"
    assert found("pycsi_volumes_omitted") == 0
    assert found("pycsi_volumes_unexamined", pool="default") == 0
    examined = found("pycsi_volumes_examined_timestamp_seconds")
    assert examined is not None
    assert time.time() - 10 < examined <= time.time()
    statuses = {
        labels["reason"]: labels["status"] for labels, _ in found.all("pycsi_volumes_abnormal")
    }
    assert statuses == {reason.value: reason.status.name for reason in Reason}
    assert not any(number for _, number in found.all("pycsi_volumes_abnormal"))
    shutil.rmtree(pool / "volumes" / "b@node-1" / "data")
    lost = {"pool": "default", "reason": "DataMissing"}
    soon(lambda: scrape(port)("pycsi_volumes_abnormal", **lost) == 1)
    assert sum(number for _, number in scrape(port).all("pycsi_volumes_abnormal")) == 1


@pytest.mark.parametrize("most", [0, 2])
def test_number_of_volumes(serve: Serve, pool: Path, most: int) -> None:
    """No more volumes than allowed have metrics of their own; the health is that of all."""
    port = free_port()
    driver = serve(pool, options=serving(port, f"--metrics-volumes={most}"))
    for name in "abc":
        driver.create(name, MIB, quota="none")
    shutil.rmtree(pool / "volumes" / "c@node-1" / "data")
    found = scrape(port)
    assert len(found.all("pycsi_volume_info")) == most
    assert len(found.all("pycsi_volume_capacity_bytes")) == most
    assert found("pycsi_volumes_omitted") == (3 - most if most else None)
    assert found("pycsi_volumes_abnormal", reason="DataMissing") == 1


def test_pool_that_goes(serve: Serve, pool: Path, tmp_path: Path) -> None:
    """A missing pool is down, and has no other numbers; its volumes are out of reach."""
    port = free_port()
    driver = serve(pool, options=serving(port))
    driver.create("a", MIB, quota="none")
    assert scrape(port)("pycsi_pool_up", pool="default") == 1
    pool.rename(tmp_path / "away")
    soon(lambda: scrape(port)("pycsi_pool_up", pool="default") == 0)
    found = scrape(port)
    assert found("pycsi_pool_size_bytes", pool="default") is None
    soon(lambda: scrape(port)("pycsi_volumes_abnormal", reason="PoolMissing") == 1)
    (tmp_path / "away").rename(pool)
    soon(lambda: scrape(port)("pycsi_pool_up", pool="default") == 1)


def test_process(driver: Driver, serve: Serve, tmp_path: Path) -> None:
    """What runs is told, and how it fares."""
    port = free_port()
    (tmp_path / "other").mkdir()
    serve(tmp_path / "other", options=serving(port, "--csi-version=1.12", "--mode=node"))
    found = scrape(port)
    assert found("pycsi_build_info", version=__version__, csi_version="1.12", mode="node") == 1
    assert {"process_resident_memory_bytes", "process_open_fds"} <= found.names
    assert not {name for name in found.names if name.endswith("_created")}
    assert "pycsi_certificate_expiry_timestamp_seconds" not in found.names


def test_promtool(serve: Serve, pool: Path) -> None:
    """Prometheus' own linter has nothing to say."""
    port = free_port()
    driver = serve(pool, options=serving(port))
    driver.create("a", MIB, quota="none")
    code_of(lambda: driver.create(""))
    driver.snapshot("s", "a@node-1")
    driver.delete("a@node-1")
    soon(lambda: "pycsi_trash_removal_seconds_count" in scrape(port).names)
    promtool("check", "metrics", given=scrape(port).text)


def test_probes(serve: Serve, pool: Path, tmp_path: Path) -> None:
    """The process lives as long as it answers, and is ready as long as Probe says so."""
    port = free_port()
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in mkfs.KINDS["ext4"].programs:
        place = shutil.which(name)
        needs(name, met=place is not None)
        (programs / name).symlink_to(str(place))
    driver = serve(pool, options=serving(port), PATH=str(programs))
    assert get(port, "/healthz") == (200, "ok\n")
    assert get(port, "/readyz") == (200, "ok\n")
    (programs / "mkfs.ext4").unlink()
    status, text = get(port, "/readyz")
    assert status == 503
    assert "mkfs.ext4: not installed" in text
    assert code_of(lambda: driver.identity.Probe(csi.ProbeRequest())).name == "FAILED_PRECONDITION"
    assert get(port, "/healthz") == (200, "ok\n")
    assert get(port, "/")[0] == 404
    assert get(port, "/metrics", method="POST")[0] == 405


def test_clients_that_do_not_go_on(serve: Serve, pool: Path) -> None:
    """Who connects and says nothing, or breaks off, neither fills the log nor the process."""
    port = free_port()
    driver = serve(pool, options=serving(port))
    before = driver.log
    with contextlib.ExitStack() as connected:
        for _ in range(40):
            connected.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert driver.process
        tasks = Path(f"/proc/{driver.process.pid}/task")
        assert len(list(tasks.iterdir())) < 80
    soon(lambda: "pycsi_pool_up" in scrape(port).names)
    for text in (b"\x00" * 100 + b"\r\n\r\n", b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(text)
    soon(lambda: "pycsi_pool_up" in scrape(port).names)
    assert driver.log == before


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        (":{port}", ["127.0.0.1", "::1"]),
        ("[::]:{port}", ["127.0.0.1", "::1"]),
        ("[::1]:{port}", ["::1"]),
        ("localhost:{port}", ["localhost"]),
    ],
)
def test_addresses(serve: Serve, pool: Path, address: str, hosts: list[str]) -> None:
    """Metrics are served where they were asked for; without a host on IPv4 and on IPv6."""
    needs("IPv6", met=has_ipv6())
    port = free_port()
    serve(pool, options=(f"--metrics-address={address.format(port=port)}",))
    for host in hosts:
        assert "pycsi_pool_up" in scrape(port, host).names


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False
