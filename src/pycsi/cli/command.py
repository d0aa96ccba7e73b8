"""The `pycsi` command. Each subcommand imports its modules only when it runs."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pycsi import __version__

if TYPE_CHECKING:
    from pycsi.model.addresses import Address
    from pycsi.model.config import PoolConfig

_UNWRITABLE = frozenset({errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC})
"""The errors of a full or failed filesystem to which standard output is redirected."""

_POOL_HELP = (
    "A pool of volumes: a directory on a local filesystem. May be given several times. Options "
    "after the path: reserve=SIZE or PERCENT%, overcommit=RATIO, uuid=UUID, "
    "require-mount, require-pool, allow-volatile, freeze-limit=TIME, retain-for=TIME or ever."
)


def _pools(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--pool",
        "pools",
        multiple=True,
        metavar="NAME=PATH[,OPTION...]",
        envvar="PYCSI_POOL",
        help=_POOL_HELP,
    )(command)


class _Commands(click.Group):
    """The subcommands; if one cannot write its output, it exits with a message of one line."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            try:
                return super().main(*arguments, **options)
            finally:
                if sys.stdout:
                    sys.stdout.flush()
        except OSError as error:
            if error.filename is not None or error.errno not in _UNWRITABLE:
                raise
            # Python flushes standard output again at exit, and would print the error again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(f"pycsi: standard output: {error.strerror}")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pycsi")
def main() -> None:
    """Serve local storage through the Container Storage Interface (CSI)."""


@main.command(context_settings={"auto_envvar_prefix": "PYCSI"})
@click.option(
    "--endpoint",
    metavar="URL",
    envvar=["PYCSI_ENDPOINT", "CSI_ENDPOINT"],
    help="Unix socket to serve on, such as unix:///csi/csi.sock. Also CSI_ENDPOINT.",
)
@click.option(
    "--node-id",
    default="",
    metavar="NAME",
    help="This node's name.  [required, but not in mode controller]",
)
@_pools
@click.option("--driver-name", metavar="NAME", help="Name of the driver.  [default: pycsi.storage]")
@click.option(
    "--mode",
    type=click.Choice(["single-node", "node", "controller"]),
    default="single-node",
    show_default=True,
    help="single-node: the only node there is; node: one of many; controller: has no volumes, but "
    "forwards each RPC to the node that it is for.",
)
@click.option(
    "--listen-address",
    metavar="HOST:PORT",
    help="Mode node: address at which the controller calls this node, such as :9810.",
)
@click.option(
    "--node-service",
    metavar="HOST:PORT",
    help="Mode controller: a DNS name with the addresses of all nodes, and their port.",
)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME=HOST:PORT",
    envvar="PYCSI_NODE",
    help="Mode controller: a node's --node-id and its address, in place of --node-service. May be "
    "given several times.",
)
@click.option(
    "--tls-directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY",
    help="Where ca.crt, tls.crt and tls.key are, with which controller and nodes know each other.",
)
@click.option(
    "--csi-version",
    type=click.Choice(["1.12", "1.13"]),
    default="1.13",
    show_default=True,
    help="With 1.12, advertise nothing that CSI 1.13 added: some callers fail on what they do not "
    "know.",
)
@click.option(
    "--enable-attach/--no-enable-attach",
    default=False,
    help="Serve ControllerPublishVolume, for orchestrators that attach volumes.",
)
@click.option(
    "--max-volumes-per-node",
    type=int,
    default=0,
    metavar="N",
    help="Maximum number of volumes on this node; 0 is any number.  [default: 0]",
)
@click.option(
    "--metrics-address", metavar="HOST:PORT", help="Address to serve Prometheus metrics on."
)
@click.option(
    "--one-cpu/--all-cpus",
    default=True,
    show_default=True,
    help="Run on one CPU of those allowed, which is faster for Python; copies and programs use "
    "all.",
)
@click.option(
    "--log-format",
    type=click.Choice(["json", "text"]),
    default="json",
    show_default=True,
    help="Format of the log's lines.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least severe level to log.",
)
def serve(
    *,
    endpoint: str | None,
    node_id: str,
    pools: tuple[str, ...],
    driver_name: str | None,
    mode: str,
    listen_address: str | None,
    node_service: str | None,
    nodes: tuple[str, ...],
    tls_directory: Path | None,
    csi_version: str,
    enable_attach: bool,
    max_volumes_per_node: int,
    metrics_address: str | None,
    one_cpu: bool,
    log_format: str,
    log_level: str,
) -> None:
    """Run the driver. Every option can be a variable too: --node-id is PYCSI_NODE_ID."""
    # Both before gRPC is imported. The driver reports gRPC's errors itself.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # gRPC's fork handlers crash children between fork and exec, and Python forks if it cannot vfork
    # for lack of memory. No program that the driver starts uses gRPC.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    from pycsi.model import addresses, config
    from pycsi.model.errors import ConfigError
    from pycsi.server import logs

    logs.configure(log_format, log_level)
    try:
        if not endpoint:
            raise ConfigError("--endpoint is missing; give unix:///path/of/the.sock")
        settings = config.Config(
            socket=addresses.parse_endpoint(endpoint),
            node_id=node_id,
            pools=tuple(map(config.PoolConfig.parse, pools)),
            driver_name=config.DRIVER_NAME if driver_name is None else driver_name,
            mode=config.DriverMode(mode),
            csi_version=config.CsiVersion(csi_version),
            attach=enable_attach,
            max_volumes=max_volumes_per_node,
            metrics=_address(metrics_address, "--metrics-address", "127.0.0.1:9180"),
            one_cpu=one_cpu,
            listen=_address(listen_address, "--listen-address", ":9810"),
            tls=tls_directory,
            node_service=_address(node_service, "--node-service", "pycsi-nodes.pycsi.svc:9810"),
            nodes=config.parse_nodes(nodes),
        )
        if settings.mode is config.DriverMode.CONTROLLER:
            from pycsi.server.controller import serve as run
        else:
            from pycsi.server.process import serve as run
        run(settings)
    except ConfigError as error:
        sys.exit(f"pycsi: {error}")


def _address(text: str | None, option: str, example: str) -> "Address | None":
    from pycsi.model.addresses import Address

    return Address.parse(text, option, example) if text else None


_OUTPUT = click.option(
    "--output",
    "-o",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Format of the output.",
)


@main.command()
@_pools
@_OUTPUT
def volumes(*, pools: tuple[str, ...], output: str) -> None:
    """List the volumes of the pools, whether the driver runs or not."""
    _show(pools, output, "volumes")


@main.command()
@_pools
@_OUTPUT
def snapshots(*, pools: tuple[str, ...], output: str) -> None:
    """List the snapshots in the pools, whether the driver runs or not."""
    _show(pools, output, "snapshots")


@main.command()
@_pools
@_OUTPUT
def pools(*, pools: tuple[str, ...], output: str) -> None:
    """List the pools with their sizes and what they can do, whether the driver runs or not."""
    _show(pools, output, "pools")


@main.group()
def trash() -> None:
    """List what was deleted, restore it, or delete it for good."""


@trash.command("list")
@_pools
@_OUTPUT
def list_trash(*, pools: tuple[str, ...], output: str) -> None:
    """List what is in the trash of the pools, whether the driver runs or not."""
    _show(pools, output, "trash")


@trash.command("restore")
@_pools
@click.argument("entry")
def restore_trash(*, pools: tuple[str, ...], entry: str) -> None:
    """Restore the deleted volume ENTRY, with the id that it had."""
    with _failing(pools) as parsed:
        from pycsi.cli import trash as undelete

        click.echo(undelete.restore(parsed, entry))


@trash.command("empty")
@_pools
@click.argument("entries", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Delete all that is in the trash.")
def empty_trash(*, pools: tuple[str, ...], entries: tuple[str, ...], everything: bool) -> None:
    """Delete ENTRIES of the trash for good, also those that are retained."""
    if bool(entries) is everything:
        raise click.UsageError("give the entries to delete, or --all")
    with _failing(pools) as parsed:
        from pycsi.cli import trash as undelete

        for name in undelete.empty(parsed, entries):
            click.echo(name)


@main.command("delete-inline")
@_pools
@click.argument("volume")
def delete_inline(*, pools: tuple[str, ...], volume: str) -> None:
    """Delete the inline VOLUME, whose pod is gone; whether the driver runs or not."""
    with _failing(pools) as parsed:
        from pycsi.cli import trash as undelete

        click.echo(undelete.delete_inline(parsed, volume))


@contextlib.contextmanager
def _failing(pools: tuple[str, ...]) -> "Iterator[list[PoolConfig]]":
    """Yield the parsed pools to a `with` block; exit with a message of one line if it fails."""
    from pycsi.cli import tables as inspection
    from pycsi.model import config
    from pycsi.model.errors import ConfigError
    from pycsi.server import logs

    logs.configure("text", "error")  # the command itself reports unreadable records
    try:
        if not pools:
            raise ConfigError("no pool: give --pool NAME=PATH, or set PYCSI_POOL")
        parsed = [config.PoolConfig.parse(pool) for pool in pools]
        config.refuse_entangled(parsed)
        yield parsed
    except (ConfigError, inspection.InspectionError, OSError) as error:
        sys.exit(f"pycsi: {error}")


def _show(pools: tuple[str, ...], output: str, what: str) -> None:
    from pycsi.cli import tables as inspection

    with _failing(pools) as parsed:
        rows, faults = inspection.look(what, parsed)
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
    elif rows or not faults:
        inspection.print_table(what, rows)
    for fault in faults:
        click.echo(f"pycsi: {fault}", err=True)
    if faults:
        sys.exit(1)


@main.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to make the demo's pools.  [default: a temporary directory]",
)
def demo(*, directory: Path | None) -> None:
    """Run a driver and show the life of real volumes, from creation to deletion."""
    from pycsi.cli.demo import run

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.exit(run(directory))
