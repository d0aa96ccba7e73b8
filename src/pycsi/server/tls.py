"""The TCP port of a node, on which the controller calls it, with mutual TLS."""

from typing import Any

import grpc

from pycsi.model.addresses import Address
from pycsi.model.errors import ConfigError, PermissionDenied, Unavailable
from pycsi.model.ids import segment
from pycsi.routing.certificates import Certificates, KeyPair, controller_name
from pycsi.routing.link import NODE_KEY
from pycsi.server.rpc import Guard

SERVER_OPTIONS = (
    # Of two drivers on one port the second is refused, and does not take every other connection.
    ("grpc.so_reuseport", 0),
    # The controller pings each node to notice that it has gone.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # And a node pings the controller: what one has begun that has gone is given up in 15 seconds.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Each connection takes a descriptor, which mounts need as well. There are a few controllers,
    # and a client that does not say who it is must not keep them out for long.
    ("grpc.max_allowed_incoming_connections", 256),
    ("grpc.server_handshake_timeout_ms", 5_000),
)

_NAMES = "peer_dns"
"""The property of a client's certificate with its DNS names; other kinds of names say nothing."""


def bind(server: grpc.Server, address: Address, certificates: Certificates) -> None:
    """Have the server listen at `address`, for clients with a certificate of the authority.

    `ConfigError` if nobody can listen there.
    """

    def renewed() -> Any:  # None keeps the present ones, which the stubs do not know
        return _configuration(certificates.pair) if certificates.renewed() else None

    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(certificates.pair), renewed, require_client_authentication=True
    )
    host = "[::]" if address.host in {"", "::"} else address.host
    try:
        server.add_secure_port(str(address._replace(host=host.strip("[]"))), credentials)
    except RuntimeError:
        raise ConfigError(
            f"--listen-address {address}: cannot listen there; give an address of this machine, "
            "and a port that no other process has"
        ) from None


def _configuration(pair: KeyPair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], pair.authority)


def controller_only(driver_name: str, node_id: str) -> Guard:
    """Return the guard that admits the controller alone, with requests that are for this node.

    `PermissionDenied` if the client's certificate does not name the controller. `Unavailable` if
    the request is for another node, whose address this node has now.
    """
    wanted, own = controller_name(driver_name), segment(node_id)

    def check(context: Any) -> None:
        names = [
            name.decode(errors="replace").lower() for name in context.auth_context().get(_NAMES, ())
        ]
        if wanted not in names:
            raise PermissionDenied(
                f"the certificate is for {', '.join(names) or 'no name'}; only that of the "
                f"controller, {wanted}, may call a node"
            )
        for key, value in context.invocation_metadata() or ():
            if key == NODE_KEY and value != own:
                raise Unavailable(f"this is node {own}; the request is for node {value}")

    return check
