"""The process: open the pools, serve the services on a unix socket, stop cleanly on SIGTERM."""

import contextlib
import gc
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import structlog

from pycsi import __version__
from pycsi.backends import privileges
from pycsi.linux import loop, processors
from pycsi.model.config import Config, ConfigError, DriverMode
from pycsi.model.topology import NodeInfo
from pycsi.proto import csi_pb2_grpc
from pycsi.server.metrics import Metrics
from pycsi.server.rpc import Interceptor, Observer
from pycsi.services.capabilities import driver_capabilities
from pycsi.services.controller import Controller
from pycsi.services.group_controller import GroupController
from pycsi.services.identity import Identity
from pycsi.services.node import Node
from pycsi.services.snapshot_metadata import SnapshotMetadata
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools

log = structlog.get_logger()

WORKERS = 256
"""Threads for RPCs, made when they are needed."""

SPARE = 8
"""How many of them only Identity may use: it must not wait for what takes minutes."""

PROBERS = 3
"""Threads for Probe: few, for Python runs one at a time, and each system call changes which."""

_STOPPING = {signal.SIGTERM, signal.SIGINT}

PATIENCE = 300.0
"""Seconds that a stopping driver gives to RPCs that are under way."""


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. `ConfigError` where the configuration cannot work."""
    os.umask(0o077)  # before any thread: what this process makes is private unless it says so
    # Blocked for every thread and program from here on, and waited for below: a handler could run
    # at any instruction, and a key pressed in a terminal would end a mkfs half way.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    if config.one_cpu:
        processors.pin()
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
            log.info("stopping: finishing what is under way")
        finally:
            server.stop(PATIENCE).wait()
            # Also where patience ran out: a pool is not left while something is made in it.
            executor.shutdown()
            probers.shutdown()


def _remove_changed_devices() -> None:
    """Remove loop devices that a driver which was killed has left refusing discards."""
    try:
        loop.remove_refusing()
    except OSError as error:
        log.warning("loop devices cannot be looked at", error=str(error))


def _recover(pools: Pools) -> None:
    # Thousands of records may be read, and stay: there is no garbage to be looked for among them,
    # now or later.
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
    capabilities = driver_capabilities(config.mode, attach=config.attach)
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
    identity = Identity(config.driver_name, capabilities, pools, ready)
    controller = Controller(capabilities, pools, locks, node)
    csi_pb2_grpc.add_IdentityServicer_to_server(identity, interceptor)  # type: ignore[no-untyped-call]
    csi_pb2_grpc.add_ControllerServicer_to_server(controller, interceptor)  # type: ignore[no-untyped-call]
    csi_pb2_grpc.add_NodeServicer_to_server(Node(capabilities, pools, locks, node), interceptor)  # type: ignore[no-untyped-call]
    csi_pb2_grpc.add_GroupControllerServicer_to_server(
        GroupController(pools, locks, node), interceptor
    )  # type: ignore[no-untyped-call]
    csi_pb2_grpc.add_SnapshotMetadataServicer_to_server(SnapshotMetadata(pools, locks), interceptor)  # type: ignore[no-untyped-call]
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
    """Return why nobody can listen somewhere, without what Python adds to it."""
    match error:
        case socket.gaierror():
            return error.strerror or str(error)
        case OSError(errno=int(number)):
            return os.strerror(number)
    return "that is no host's name"


def _refuse_served(path: Path) -> None:
    """Make sure that nobody serves at `path`, and remove a dead socket."""
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
    """Tell whether somebody may listen; only a refused connection says that nobody does."""
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
    """Let the server listen at `path`; remove its own socket at the end, not a successor's."""
    try:
        server.add_insecure_port(f"unix://{path}")
        ours = _identity(path)
    except (RuntimeError, OSError):
        raise ConfigError(
            f"--endpoint: cannot listen on {path}: {_why_deaf(path)}; use another directory"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if _identity(path) == ours:
                path.unlink()


def _why_deaf(path: Path) -> str:
    """Ask the kernel why nobody can listen at `path`, which gRPC does not say."""
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
