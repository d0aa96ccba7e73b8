"""The `pycsi` command. What a command needs is imported when it runs."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pycsi import __version__

_POOL_HELP = (
    "A pool of volumes: a directory on a local filesystem. May be given several times. Options "
    "after the path: reserve=SIZE or PERCENT%, overcommit=RATIO, uuid=UUID, "
    "require-mount, allow-volatile."
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
@click.option("--node-id", default="", metavar="NAME", help="This node's name.  [required]")
@_pools
@click.option("--driver-name", metavar="NAME", help="Name of the driver.  [default: pycsi.storage]")
@click.option(
    "--mode",
    type=click.Choice(["single-node", "node", "controller"]),
    default="single-node",
    show_default=True,
    help="What to advertise: all; what works on one node of many; what a resizer needs.",
)
@click.option(
    "--enable-attach/--no-enable-attach",
    default=False,
    help="Serve ControllerPublishVolume, for orchestrators that attach.",
)
@click.option(
    "--max-volumes-per-node", type=int, default=0, metavar="N", help="0: any number.  [default: 0]"
)
@click.option("--metrics-address", metavar="HOST:PORT", help="Serve Prometheus metrics there.")
@click.option(
    "--log-format", type=click.Choice(["json", "text"]), default="json", show_default=True
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def serve(
    *,
    endpoint: str | None,
    node_id: str,
    pools: tuple[str, ...],
    driver_name: str | None,
    mode: str,
    enable_attach: bool,
    max_volumes_per_node: int,
    metrics_address: str | None,
    log_format: str,
    log_level: str,
) -> None:
    """Run the driver. Every option can be a variable too: --node-id is PYCSI_NODE_ID."""
    from pycsi import config, logs

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would say, we say
    logs.configure(log_format, log_level)
    try:
        if not endpoint:
            raise config.ConfigError("no --endpoint: give unix:///path/of/the.sock")
        settings = config.Config(
            socket=config.parse_endpoint(endpoint),
            node_id=node_id,
            pools=tuple(map(config.PoolConfig.parse, pools)),
            driver_name=config.DRIVER_NAME if driver_name is None else driver_name,
            mode=config.DriverMode(mode),
            attach=enable_attach,
            max_volumes=max_volumes_per_node,
            metrics=config.parse_metrics_address(metrics_address) if metrics_address else None,
        )
        from pycsi.server import serve as run

        run(settings)
    except config.ConfigError as error:
        sys.exit(f"pycsi: {error}")


_OUTPUT = click.option(
    "--output", "-o", type=click.Choice(["table", "json"]), default="table", show_default=True
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
def pools(*, pools: tuple[str, ...], output: str) -> None:
    """List the pools with their sizes and what they can do, whether the driver runs or not."""
    _show(pools, output, "pools")


def _show(pools: tuple[str, ...], output: str, what: str) -> None:
    from pycsi import config, inspection, logs

    logs.configure("text", "warning")
    try:
        if not pools:
            raise config.ConfigError("no pool: give --pool NAME=PATH, or set PYCSI_POOL")
        parsed = [config.PoolConfig.parse(pool) for pool in pools]
        rows: list[dict[str, Any]] = getattr(inspection, what)(parsed)
    except (config.ConfigError, inspection.InspectionError) as error:
        sys.exit(f"pycsi: {error}")
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
    else:
        inspection.print_table(what, rows)


@main.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to make the demo's pools.  [default: a temporary directory]",
)
def demo(*, directory: Path | None) -> None:
    """Run a driver and show the life of real volumes, from creation to deletion."""
    from pycsi.demo import run

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.exit(run(directory))
