"""`pycsi serve`: run the driver."""

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pycsi.cli.commands import options
from pycsi.cli.commands.base import Choice, Command, Parsed, examples
from pycsi.cli.commands.configuration import config

if TYPE_CHECKING:
    from pycsi.model.addresses import Address
    from pycsi.model.config import Config


def _address(option: str, example: str) -> Parsed:
    def parse(text: str) -> "Address":
        from pycsi.model.addresses import Address

        return Address.parse(text, option, example)

    return Parsed("address", parse)


def _endpoint(text: str) -> Path:
    from pycsi.model.addresses import parse_endpoint

    return parse_endpoint(text)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number; give one such as 100") from None


@click.command(
    cls=Command,
    context_settings={"auto_envvar_prefix": "PYCSI", "show_default": True},
    epilog=examples(
        "pycsi serve --endpoint /run/pycsi/csi.sock --pool default=/var/lib/pycsi",
        "pycsi serve --config /etc/pycsi/config.toml --log-format text",
        "pycsi serve --mode controller --endpoint unix:///csi/csi.sock \\",
        "    --node-service pycsi-nodes:9810 --tls-directory /etc/pycsi/tls",
    ),
)
@click.option(
    "--endpoint",
    "socket_path",
    type=Parsed("url", _endpoint),
    metavar="URL",
    envvar=["PYCSI_ENDPOINT", "CSI_ENDPOINT"],
    show_envvar=True,
    help="Unix socket to serve on, such as unix:///run/pycsi/csi.sock.  [required]",
)
@click.option(
    "--node-id",
    metavar="NAME",
    show_envvar=True,
    help="This node's name, part of every volume's id.  [default: the host's name]",
)
@options.pools
@click.option(
    "--driver-name",
    metavar="NAME",
    default="pycsi.storage",
    show_envvar=True,
    help="Name of the driver.",
)
@click.option(
    "--mode",
    type=Choice(["single-node", "node", "controller"]),
    default="single-node",
    show_envvar=True,
    help="single-node: the only node there is; node: one of many; controller: has no volumes, but "
    "forwards each RPC to the node that it is for.",
)
@click.option(
    "--listen-address",
    type=_address("--listen-address", ":9810"),
    metavar="HOST:PORT",
    show_envvar=True,
    help="Mode node: address at which the controller calls this node, such as :9810.",
)
@click.option(
    "--node-service",
    type=_address("--node-service", "pycsi-nodes.pycsi.svc:9810"),
    metavar="HOST:PORT",
    show_envvar=True,
    help="Mode controller: a DNS name with the addresses of all nodes, and their port.",
)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME=HOST:PORT",
    envvar="PYCSI_NODE",
    show_envvar=True,
    help="Mode controller: a node's --node-id and its address, in place of --node-service. May be "
    "given several times.",
)
@click.option(
    "--tls-directory",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    show_envvar=True,
    help="Where ca.crt, tls.crt and tls.key are, with which controller and nodes know each other.",
)
@click.option(
    "--csi-version",
    type=Choice(["1.12", "1.13"]),
    default="1.13",
    show_envvar=True,
    help="With 1.12, advertise nothing that CSI 1.13 added: some callers fail on what they do not "
    "know.",
)
@click.option(
    "--enable-attach/--no-enable-attach",
    default=False,
    show_envvar=True,
    help="Serve ControllerPublishVolume, for orchestrators that attach volumes.",
)
@click.option(
    "--max-volumes-per-node",
    type=Parsed("number", _number),
    default="0",
    metavar="N",
    show_envvar=True,
    help="Maximum number of volumes on this node; 0 is any number.",
)
@click.option(
    "--cgroup-root",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    show_envvar=True,
    help="Allow limits on I/O: the cgroup, of version 2, in which the kubelet has made those of "
    "pods, such as /sys/fs/cgroup.",
)
@click.option(
    "--metrics-address",
    type=_address("--metrics-address", "127.0.0.1:9180"),
    metavar="HOST:PORT",
    show_envvar=True,
    help="Address to serve Prometheus metrics and probes on.",
)
@click.option(
    "--metrics-volumes",
    type=Parsed("number", _number),
    default="500",
    metavar="N",
    show_envvar=True,
    help="Maximum number of volumes that have metrics of their own; 0 is none.",
)
@click.option(
    "--tracing/--no-tracing",
    default=False,
    show_envvar=True,
    help="Send the traces of RPCs to an OTLP receiver, as the variables OTEL_* say. Needs the "
    "extra: pip install 'pycsi-driver[otel]'.",
)
@click.option(
    "--one-cpu/--all-cpus",
    default=True,
    show_envvar=True,
    help="Run on one CPU of those allowed, which is faster for Python; copies and programs use "
    "all.",
)
@click.option(
    "--log-format",
    type=Choice(["json", "text"]),
    default="json",
    show_envvar=True,
    help="Format of the log's lines.",
)
@click.option(
    "--log-level",
    type=Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_envvar=True,
    help="The least severe level to log.",
)
@config
def serve(*, log_format: str, log_level: str, **given: Any) -> None:
    """Run the driver in the foreground, until SIGTERM.

    An option on the command line comes before its variable, and that before the configuration file.
    """
    from pycsi.model.config import DriverMode
    from pycsi.model.errors import ConfigError
    from pycsi.server import logs

    logs.configure(log_format, log_level, traced=given["tracing"])
    settings = _settings(**given)
    try:
        if settings.mode is DriverMode.CONTROLLER:
            from pycsi.server.controller import serve as run
        else:
            from pycsi.server.process import serve as run
        run(settings)
    except ConfigError as error:
        logs.refuse(str(error))
        sys.exit(1)


def _host(mode: str) -> str:
    """Return the name of a node that was given none; a controller needs none."""
    return "" if mode == "controller" else socket.gethostname()


def _settings(
    *,
    socket_path: Path | None,
    node_id: str | None,
    mode: str,
    nodes: tuple[str, ...],
    tls_directory: Path | None,
    **given: Any,
) -> "Config":
    """Return the driver's configuration; `MistakesError` with all that is wrong with it."""
    from pycsi.cli.errors import MistakesError
    from pycsi.model import config as model
    from pycsi.model.errors import ConfigError

    mistakes: list[str] = []
    addresses: dict[str, Address] = {}
    if socket_path is None:
        mistakes.append("--endpoint is missing; give unix:///path/of/the.sock")
    try:
        addresses = model.parse_nodes(nodes)
    except ConfigError as error:
        # Without its nodes, whatever else is said of a controller could be wrong.
        raise MistakesError(*mistakes, *error.messages) from None
    try:
        settings = model.Config(
            socket=socket_path or Path(),
            node_id=_host(mode) if node_id is None else node_id,
            pools=given["pools"],
            driver_name=given["driver_name"],
            mode=model.DriverMode(mode),
            csi_version=model.CsiVersion(given["csi_version"]),
            attach=given["enable_attach"],
            max_volumes=given["max_volumes_per_node"],
            metrics=given["metrics_address"],
            cgroup_root=given["cgroup_root"],
            metrics_volumes=given["metrics_volumes"],
            tracing=given["tracing"],
            one_cpu=given["one_cpu"],
            listen=given["listen_address"],
            tls=tls_directory,
            node_service=given["node_service"],
            nodes=addresses,
        )
    except ConfigError as error:
        mistakes += error.messages
    if mistakes:
        raise MistakesError(*mistakes)
    return settings
