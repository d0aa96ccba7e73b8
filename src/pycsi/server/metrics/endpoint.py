"""The HTTP server: /metrics, /healthz and /readyz."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app
from prometheus_client.registry import CollectorRegistry

from pycsi.model.addresses import Address
from pycsi.model.errors import ConfigError, CsiError
from pycsi.server.socket import reason

_MOST = 16
"""The number of connections that are served at once; others are closed."""

_PATIENCE = 10
"""Seconds to wait for a client that does not go on with its request."""

Check = Callable[[], None]
"""Raises `CsiError` with the reason why the process is not ready."""


def serve(address: Address, registry: CollectorRegistry, check: Check) -> None:
    """Serve the metrics of `registry` at `address`, from threads of its own.

    /readyz answers 503 with the reason if `check` raises one, /healthz that the process is there.
    `ConfigError` if nobody can listen there. An empty host stands for all addresses, including IPv6
    where the machine has it.
    """
    try:
        server = _Server(_listening(*address))
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--metrics-address {address}: cannot listen there: {reason(error)}; give an address "
            "of this machine, and a port that no other process has"
        ) from None
    server.set_app(_Pages(make_wsgi_app(registry), check))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Pages:
    """The WSGI application: which path has which answer."""

    def __init__(self, metrics: Callable[..., Iterable[bytes]], check: Check) -> None:
        self._metrics = metrics
        self._check = check

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)
            case "/healthz":
                status, text = "200 OK", "ok"
            case "/readyz":
                status, text = self._readiness()
            case _:
                status, text = "404 Not Found", "there are /metrics, /healthz and /readyz"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    def _readiness(self) -> tuple[str, str]:
        try:
            self._check()
        except CsiError as error:
            return "503 Service Unavailable", str(error)
        return "200 OK", "ok"


def _listening(host: str, port: int) -> socket.socket:
    if host in {"", "::"} and socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    if not host:
        return socket.create_server(("", port))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family)


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone, or does not go on
            super().handle()

    def log_message(self, *_: object) -> None:
        """Do not log HTTP requests: standard error is for the driver's own log."""


class _Server(ThreadingMixIn, WSGIServer):
    """An HTTP server on a socket that is already listening."""

    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = host, port
        self.setup_environ()
        self._slots = threading.BoundedSemaphore(_MOST)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread can be started
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that break off: standard error is for the driver's own log."""
