"""The driver process: open the pools, serve on a unix socket, stop cleanly on SIGTERM."""

import contextlib
import gc
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import structlog

from pycsi import __version__
from pycsi.backends import privileges
from pycsi.linux import losetup
from pycsi.linux.program import pin
from pycsi.model.config import Config, ConfigError, DriverMode
from pycsi.model.ids import NodeInfo
from pycsi.proto import csi_pb2_grpc
from pycsi.server.metrics import Metrics
from pycsi.server.rpc import Interceptor, Observer
from pycsi.services.capabilities import driver_capabilities
from pycsi.services.controller import Controller
from pycsi.services.group_controller import GroupController
from pycsi.services.identity import Identity
from pycsi.services.listing_controller import ListingController
from pycsi.services.node import Node
from pycsi.services.snapshot_controller import SnapshotController
from pycsi.services.snapshot_metadata import SnapshotMetadata
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools

log = structlog.get_logger()

WORKERS = 256
"""Maximum number of RPC threads; they are started on demand."""

SPARE = 8
"""RPC threads reserved for Identity, which must not wait for operations that take minutes."""

PROBERS = 3
"""Threads for Probe. Few, since Python runs one at a time and may switch at each system call."""

_STOPPING = {signal.SIGTERM, signal.SIGINT}

PATIENCE = 300.0
"""Seconds that a stopping driver waits for the RPCs under way."""


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; raise `ConfigError` if the configuration cannot work."""
    os.umask(0o077)  # before any thread starts: files are private unless a mode is set explicitly
    # Blocked for every thread and program from here on, and waited for below. A handler could run
    # at any instruction, and Ctrl-C in a terminal would kill a running mkfs.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    if config.one_cpu:
        pin()
    with contextlib.ExitStack() as opened:
        _refuse_served(config.socket)
        serves_pools = config.mode is not DriverMode.CONTROLLER
        if serves_pools:
            privileges.refuse_powerless()
        locks = Locks()
        pools = Pools(config.pools if serves_pools else (), config.node_id, locks)
        opened.callback(pools.close)
        pools.claim()
        ready = threading.Event()
        executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="rpc")
        probers = ThreadPoolExecutor(PROBERS, thread_name_prefix="probe")
        server = _build(config, pools, locks, ready, executor, probers=probers)
        opened.enter_context(_bound(server, config.socket))
        server.start()
        try:
            _recover(pools)
            if serves_pools:
                _remove_changed_devices()
            pools.start()
            if serves_pools:
                privileges.warn()
            ready.set()
            log.info(
                "serving", endpoint=f"unix://{config.socket}", mode=config.mode, version=__version__
            )
            signal.sigwait(_STOPPING)
            log.info("stopping: waiting for the RPCs under way to end")
        finally:
            server.stop(PATIENCE).wait()
            # Even after the timeout: a pool stays locked until the last operation on it has ended.
            executor.shutdown()
            probers.shutdown()


def _remove_changed_devices() -> None:
    """Remove loop devices that a killed driver has left with discards refused."""
    try:
        losetup.remove_refusing()
    except OSError as error:
        log.warning(
            "the loop devices that a killed driver left cannot be removed", error=str(error)
        )


def _recover(pools: Pools) -> None:
    # Thousands of records may be loaded here, and they stay in memory. Exempt them from garbage
    # collection, now and later.
    gc.disable()
    try:
        pools.recover()
        gc.freeze()
    finally:
        gc.enable()


def _build(
    config: Config,
    pools: Pools,
    locks: Locks,
    ready: threading.Event,
    executor: ThreadPoolExecutor,
    *,
    probers: ThreadPoolExecutor,
) -> grpc.Server:
    capabilities = driver_capabilities(
        config.mode, attach=config.attach, version=config.csi_version
    )
    node = NodeInfo(
        id=config.node_id,
        driver_name=config.driver_name,
        max_volumes=config.max_volumes,
    )
    server = grpc.server(executor)
    observe = _observer(config, pools)
    most = WORKERS - SPARE
    interceptor = Interceptor(
        server, capabilities.unimplemented, ready, most, observe, probers=probers
    )
    shared = (capabilities, pools, locks, node)
    parts: tuple[tuple[Callable[..., None], object], ...] = (
        (
            csi_pb2_grpc.add_IdentityServicer_to_server,
            Identity(config.driver_name, capabilities, pools, ready),
        ),
        (csi_pb2_grpc.add_ControllerServicer_to_server, Controller(*shared)),
        (csi_pb2_grpc.add_ControllerServicer_to_server, ListingController(pools, locks, node)),
        (csi_pb2_grpc.add_ControllerServicer_to_server, SnapshotController(*shared)),
        (csi_pb2_grpc.add_NodeServicer_to_server, Node(*shared)),
        (csi_pb2_grpc.add_GroupControllerServicer_to_server, GroupController(*shared)),
        (csi_pb2_grpc.add_SnapshotMetadataServicer_to_server, SnapshotMetadata(pools, locks)),
    )
    for add, part in parts:
        add(part, interceptor)
    return server


def _observer(config: Config, pools: Pools) -> Observer:
    if config.metrics is None:
        return lambda _method, _code, _seconds: None
    metrics = Metrics(pools)
    host, port = config.metrics
    try:
        metrics.serve(host, port)
    except (OSError, UnicodeError) as error:
        shown = f"[{host}]" if ":" in host else host
        raise ConfigError(
            f"--metrics-address {shown}:{port}: cannot listen there: {_reason(error)}"
        ) from None
    return metrics.observe


def _reason(error: OSError | UnicodeError) -> str:
    """Return the system's reason why an address cannot be listened on, without Python's prefix."""
    match error:
        case socket.gaierror():
            return error.strerror or str(error)
        case OSError(errno=int(number)):
            return os.strerror(number)
    return "that is no host's name"


def _refuse_served(path: Path) -> None:
    """Remove a dead socket at `path`; raise `ConfigError` if another driver serves there."""
    try:
        _remove_dead(path)
    except OSError as error:
        raise ConfigError(f"--endpoint: {error.filename}: {error.strerror}") from None


def _remove_dead(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"--endpoint: the directory {path.parent} does not exist; create it")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"--endpoint: {path} exists and is no socket; remove it")
        if _answers(path):
            raise ConfigError(f"--endpoint: another driver serves on {path}; stop it first")
        path.unlink()


def _answers(path: Path) -> bool:
    """Tell whether a process may be listening: all errors but a refused connection count as yes."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


@contextlib.contextmanager
def _bound(server: grpc.Server, path: Path) -> Iterator[None]:
    """Let the server listen at `path`; at the end remove the socket if it is still this one."""
    try:
        server.add_insecure_port(f"unix://{path}")
        ours = _identity(path)
    except (RuntimeError, OSError):
        raise ConfigError(
            f"--endpoint: cannot listen on {path}: {_why_not_bound(path)}; use another directory"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if _identity(path) == ours:
                path.unlink()


def _why_not_bound(path: Path) -> str:
    """Return the kernel's reason why `path` cannot be listened on, which gRPC does not give."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(os.fspath(path))
        except OSError as error:
            return _reason(error)
    path.unlink(missing_ok=True)
    return "for an unknown reason"


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
