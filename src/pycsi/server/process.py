"""The driver process: open the pools, serve on a unix socket, stop cleanly on SIGTERM."""

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import grpc
import structlog

from pycsi import __version__
from pycsi.backends import privileges
from pycsi.backends.throttle import Throttle
from pycsi.linux import losetup
from pycsi.linux.program import pin
from pycsi.model.config import Config
from pycsi.model.ids import NodeInfo
from pycsi.model.observer import Observer, Unobserved
from pycsi.model.trace import Tracer
from pycsi.proto import (
    csi_pb2_grpc,
    exchange_pb2_grpc,
    groups_pb2_grpc,
    transfers_pb2_grpc,
)
from pycsi.routing.certificates import Certificates, node_name
from pycsi.server.metrics.durations import DurationMetrics
from pycsi.server.metrics.endpoint import Check
from pycsi.server.metrics.endpoint import serve as serve_metrics
from pycsi.server.metrics.pools import PoolCollector
from pycsi.server.metrics.process import registry_for
from pycsi.server.metrics.rpcs import RpcMetrics
from pycsi.server.metrics.volumes import VolumeCollector
from pycsi.server.report import Reporter
from pycsi.server.rpc import Admission, Guard, Interceptor
from pycsi.server.socket import bound, refuse_served
from pycsi.server.tls import SERVER_OPTIONS, bind, controller_only
from pycsi.server.tracing import tracer_for
from pycsi.services.capabilities import driver_capabilities
from pycsi.services.controller import Controller
from pycsi.services.exchange import Exchange
from pycsi.services.group_controller import GroupController
from pycsi.services.group_parts import GroupParts
from pycsi.services.identity import Identity
from pycsi.services.listing_controller import ListingController
from pycsi.services.node import Node
from pycsi.services.snapshot_controller import SnapshotController
from pycsi.services.snapshot_metadata import SnapshotMetadata
from pycsi.services.transfers import Transfers
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
        tracer = tracer_for(config)
        if tracer:
            opened.callback(tracer.close)
        refuse_served(config.socket)
        privileges.refuse_powerless()
        locks = Locks()
        throttle = Throttle(config.cgroup_root)
        pools = Pools(config.pools, config.node_id, locks, throttle)
        opened.callback(pools.close)
        pools.claim()
        ready = threading.Event()
        services = _Services(config, pools, locks, ready, tracer)
        servers = _servers(config, services, opened)
        for server in servers:
            server.start()
        try:
            _recover(pools)
            _remove_changed_devices()
            pools.start()
            privileges.warn()
            _warn_of_unlimited(config, throttle)
            ready.set()
            _log_serving(config)
            signal.sigwait(_STOPPING)
            services.stopping.set()
            log.info("stopping: waiting for the RPCs under way to end")
        finally:
            stopped = [server.stop(PATIENCE) for server in servers]
            for event in stopped:
                event.wait()
            # Even after the timeout: a pool stays locked until the last operation on it has ended.
            services.close()


def _log_serving(config: Config) -> None:
    log.info(
        "serving",
        endpoint=f"unix://{config.socket}",
        mode=config.mode,
        version=__version__,
        **({"listen": str(config.listen)} if config.listen else {}),
    )


def _remove_changed_devices() -> None:
    """Remove loop devices that a killed driver has left with discards refused."""
    try:
        losetup.remove_refusing()
    except OSError as error:
        log.warning(
            "the loop devices that a killed driver left cannot be removed", error=str(error)
        )


def _warn_of_unlimited(config: Config, throttle: Throttle) -> None:
    if config.cgroup_root and (fault := throttle.fault()):
        log.warning("volumes that limit I/O are refused", error=fault)


def _recover(pools: Pools) -> None:
    # Thousands of records may be loaded here, and they stay in memory. Exempt them from garbage
    # collection, now and later.
    gc.disable()
    try:
        pools.recover()
        gc.freeze()
    finally:
        gc.enable()


class _Services:
    """The services of this process, and how they are added to its servers."""

    def __init__(
        self,
        config: Config,
        pools: Pools,
        locks: Locks,
        ready: threading.Event,
        tracer: Tracer | None,
    ) -> None:
        self._config = config
        self.capabilities = driver_capabilities(
            config.mode, attach=config.attach, version=config.csi_version
        )
        node = NodeInfo(
            id=config.node_id,
            driver_name=config.driver_name,
            max_volumes=config.max_volumes,
        )
        self.stopping = threading.Event()
        self.executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="rpc")
        self._probers = ThreadPoolExecutor(PROBERS, thread_name_prefix="probe")
        self._admission = Admission(ready, WORKERS - SPARE)
        identity = Identity(self.capabilities, pools, node, ready)
        self._reporter = Reporter(_observer(config, pools, locks, identity.check), tracer)
        shared = (self.capabilities, pools, locks, node)
        self._central: tuple[_Part, ...] = (
            (csi_pb2_grpc.add_IdentityServicer_to_server, identity),
            (csi_pb2_grpc.add_ControllerServicer_to_server, Controller(*shared)),
            (csi_pb2_grpc.add_ControllerServicer_to_server, ListingController(pools, locks, node)),
            (csi_pb2_grpc.add_ControllerServicer_to_server, SnapshotController(*shared)),
            (csi_pb2_grpc.add_GroupControllerServicer_to_server, GroupController(*shared)),
            (csi_pb2_grpc.add_SnapshotMetadataServicer_to_server, SnapshotMetadata(pools, locks)),
        )
        self._between: tuple[_Part, ...] = (
            (groups_pb2_grpc.add_GroupPartsServicer_to_server, GroupParts(*shared)),
            (exchange_pb2_grpc.add_ExchangeServicer_to_server, Exchange(*shared, self.stopping)),
        )
        self._local: tuple[_Part, ...] = (
            (csi_pb2_grpc.add_NodeServicer_to_server, Node(*shared)),
            (transfers_pb2_grpc.add_TransfersServicer_to_server, Transfers(*shared, self.stopping)),
        )

    def add_to_socket(self, server: grpc.Server) -> None:
        """Add all services to the server of the unix socket."""
        self._add(server, (*self._central, *self._local), None)

    def add_to_port(self, server: grpc.Server) -> None:
        """Add to the server of the TCP port what the controller forwards, and let only it call."""
        only = controller_only(self._config.driver_name, self._config.node_id)
        self._add(server, (*self._central, *self._between), only)

    def _add(self, server: grpc.Server, parts: Iterable["_Part"], guard: Guard | None) -> None:
        interceptor = Interceptor(
            server,
            self.capabilities.unimplemented,
            self._admission,
            self._reporter,
            probers=self._probers,
            guard=guard,
        )
        for add, part in parts:
            add(part, interceptor)

    def close(self) -> None:
        """Wait until the last operation has ended."""
        self.executor.shutdown()
        self._probers.shutdown()


_Part = tuple[Callable[..., None], object]
"""A part of a service, and the generated function that adds it to a server."""


def _servers(
    config: Config, services: _Services, opened: contextlib.ExitStack
) -> list[grpc.Server]:
    """Return the servers of the unix socket and, if the driver listens on one, of the TCP port."""
    server = grpc.server(services.executor)
    services.add_to_socket(server)
    opened.enter_context(bound(server.add_insecure_port, config.socket))
    if not config.listen or not config.tls:
        return [server]
    port = grpc.server(services.executor, options=SERVER_OPTIONS)
    services.add_to_port(port)
    certificates = Certificates(config.tls, node_name(config.driver_name))
    bind(port, config.listen, certificates)
    return [server, port]


def _observer(config: Config, pools: Pools, locks: Locks, check: Check) -> Observer:
    """Return what counts the RPCs; serve it and the other metrics, if that is asked for."""
    if config.metrics is None:
        return Unobserved()
    registry = registry_for(config)
    rpcs = RpcMetrics(config.driver_name, registry)
    registry.register(PoolCollector(pools))
    registry.register(VolumeCollector(pools, locks, config.metrics_volumes))
    durations = DurationMetrics(registry)
    pools.froze, pools.removed = durations.froze, durations.removed
    serve_metrics(config.metrics, registry, check)
    return rpcs
