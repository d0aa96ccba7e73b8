"""The process in mode controller: answers sidecars on a unix socket, and forwards to the nodes."""

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import BoolValue

from pycsi import __version__
from pycsi.linux.program import pin
from pycsi.model.config import Config
from pycsi.model.errors import ConfigError
from pycsi.model.ids import NodeInfo
from pycsi.model.observer import Observer, Unobserved
from pycsi.model.trace import Tracer
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import transfers_pb2 as transfers
from pycsi.routing.certificates import Certificates
from pycsi.routing.link import Call
from pycsi.routing.nodes import Nodes, Whereabouts, running
from pycsi.routing.router import Router
from pycsi.routing.settling import settling
from pycsi.server.metrics.controller import NodeCollector
from pycsi.server.metrics.endpoint import serve as serve_metrics
from pycsi.server.metrics.process import registry_for
from pycsi.server.metrics.rpcs import NodeRpcMetrics, RpcMetrics
from pycsi.server.report import Reporter
from pycsi.server.rpc import refuse
from pycsi.server.socket import bound, refuse_served
from pycsi.server.tracing import tracer_for
from pycsi.services import reply
from pycsi.services.capabilities import driver_capabilities

log = structlog.get_logger()

_SERVICES = ("Identity", "Controller", "GroupController", "SnapshotMetadata")
_TRANSFERS = ("Move", "CancelMove")
"""The methods of the service Transfers that it answers."""

_PATIENCE = 20.0
"""Seconds that a stopping controller waits for the RPCs under way: Kubernetes kills it after 30."""


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; raise `ConfigError` if the configuration cannot work."""
    os.umask(0o077)
    if config.one_cpu:
        pin()
    tracer = tracer_for(config)
    try:
        refuse_served(config.socket)
        asyncio.run(_serve(config, tracer))
    finally:
        if tracer:
            tracer.close()


async def _serve(config: Config, tracer: Tracer | None) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    if config.tls is None:
        raise ConfigError("--tls-directory is missing")
    certificates = Certificates(config.tls, None)
    key = NodeInfo(id="", driver_name=config.driver_name, max_volumes=0).topology_key
    places = Whereabouts(service=config.node_service, fixed=config.nodes)
    nodes = Nodes(places, certificates, config.driver_name, key)
    served, forwarded = _observers(config, nodes)
    server = grpc.aio.server()
    router = Router(nodes, key, forwarded)
    _Services(config, router, Reporter(served, tracer)).add_to(server)
    with bound(server.add_insecure_port, config.socket):
        async with (
            running(nodes.run()),
            settling(router.groups.settling),
            router.exchange.ending(),
        ):
            await server.start()
            log.info(
                "serving", endpoint=f"unix://{config.socket}", mode=config.mode, version=__version__
            )
            await stopping.wait()
            log.info("stopping: waiting for the RPCs under way to end")
            await server.stop(_PATIENCE)


def _observers(config: Config, nodes: Nodes) -> tuple[Observer, Observer]:
    """Return what counts the RPCs that are served, and those that are forwarded."""
    if config.metrics is None:
        return Unobserved(), Unobserved()
    registry = registry_for(config)
    found = NodeCollector(nodes)
    registry.register(found)
    served, forwarded = RpcMetrics(config.driver_name, registry), NodeRpcMetrics(registry)
    serve_metrics(config.metrics, registry, found.check)
    return served, forwarded


class _Services:
    """The services of the controller, each method with the report that every RPC gets."""

    def __init__(self, config: Config, router: Router, reporter: Reporter) -> None:
        self._router = router
        self._reporter = reporter
        found = driver_capabilities(config.mode, attach=config.attach, version=config.csi_version)
        self._unimplemented = found.unimplemented
        self._own: dict[str, bytes] = {
            name: message.SerializeToString()
            for name, message in (
                ("GetPluginInfo", reply.plugin_info(config.driver_name, {})),
                ("GetPluginCapabilities", reply.plugin_capabilities(found)),
                ("Probe", csi.ProbeResponse(ready=BoolValue(value=True))),
                ("ControllerGetCapabilities", reply.controller_capabilities(found)),
                ("GroupControllerGetCapabilities", reply.group_controller_capabilities()),
            )
        }

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add all services to a server."""
        for service in _SERVICES:
            self._add(server, csi.DESCRIPTOR.services_by_name[service].methods)
        moves = transfers.DESCRIPTOR.services_by_name["Transfers"].methods_by_name
        self._add(server, [moves[name] for name in _TRANSFERS])

    def _add(self, server: grpc.aio.Server, methods: Sequence[Any]) -> None:
        """Add methods of one service."""
        server.add_registered_method_handlers(
            methods[0].containing_service.full_name,
            {method.name: self._handler(method) for method in methods},
        )

    def _handler(self, method: Any) -> Any:
        path = f"/{method.containing_service.full_name}/{method.name}"
        decode = GetMessageClass(method.input_type).FromString
        if method.server_streaming:
            streams = functools.partial(self._stream, method.name, path, decode)
            return grpc.unary_stream_rpc_method_handler(streams)
        answers = functools.partial(self._answer, method.name, path, decode)
        return grpc.unary_unary_rpc_method_handler(answers)

    async def _answer(
        self,
        name: str,
        path: str,
        decode: Callable[[bytes], Message],
        data: bytes,
        context: Any,
    ) -> bytes:
        begun = self._reporter.begin(path, context)
        request = None
        try:
            request = decode(data)
            if name in self._unimplemented:
                refuse(name)
            if name in self._own:
                answer = self._own[name]
            else:
                answer = await self._router.answer(name, _call(path, request, data, context))
        except asyncio.CancelledError as error:
            self._reporter.report(begun, request, error)
            raise
        except Exception as error:
            await context.abort(*self._reporter.report(begun, request, error))
            raise
        self._reporter.report(begun, request)
        return answer

    async def _stream(
        self,
        name: str,
        path: str,
        decode: Callable[[bytes], Message],
        data: bytes,
        context: Any,
    ) -> AsyncGenerator[bytes, None]:
        begun = self._reporter.begin(path, context)
        request = None
        try:
            request = decode(data)
            if name in self._unimplemented:
                refuse(name)
            call = _call(path, request, data, context)
            async with contextlib.aclosing(self._router.stream(name, call)) as parts:
                async for part in parts:
                    yield part
        except (asyncio.CancelledError, GeneratorExit) as error:
            self._reporter.report(begun, request, error)
            raise
        except Exception as error:  # noqa: BLE001
            await context.abort(*self._reporter.report(begun, request, error))
        self._reporter.report(begun, request)


def _call(path: str, request: Message, data: bytes, context: Any) -> Call:
    left = context.time_remaining()
    deadline = None if left is None else asyncio.get_running_loop().time() + left
    return Call(path, request, data, deadline, context.invocation_metadata() or ())
