"""The commands that move volumes out of pools, into them, and between them."""

from typing import TYPE_CHECKING, Any, TextIO

import click

from pycsi.cli.commands import options
from pycsi.cli.commands.base import Command, Parsed, examples
from pycsi.cli.commands.configuration import config
from pycsi.cli.commands.volumes import (
    connected,
    driver_options,
    positive_size,
    sized,
    with_parameters,
)

if TYPE_CHECKING:
    from pycsi.model.config import PoolConfig

_rate = click.option(
    "--rate-limit",
    "rate",
    type=Parsed("size", positive_size),
    metavar="SIZE",
    help="How many bytes a second, such as 50Mi.  [default: as many as possible]",
)


@click.command(
    cls=Command,
    epilog=examples(
        "pycsi export data-monday /backup/data-monday.pycsi",
        "pycsi export data-monday - --compress | ssh other pycsi import - data",
        "pycsi export db-monday db-monday.pycsi --since db-sunday",
        "pycsi export --volume data /backup/data.pycsi",
    ),
)
@click.option("--volume", is_flag=True, help="A volume that is not in use, not a snapshot.")
@click.option(
    "--since",
    metavar="SNAPSHOT",
    help="An increment: only what has changed since this earlier snapshot of the same volume.",
)
@click.option("--compress", is_flag=True, help="Compress it with zstd.")
@click.option(
    "--resume",
    is_flag=True,
    help="Keep FILE.partial if a snapshot's export is cut off, and continue it if it is there.",
)
@_rate
@options.pools
@config
@click.argument("name")
@click.argument("file")
def export(
    *,
    pools: "tuple[PoolConfig, ...]",
    name: str,
    file: str,
    volume: bool,
    since: str | None,
    compress: bool,
    resume: bool,
    rate: int | None,
) -> None:
    """Write the snapshot NAME to FILE, whether the driver runs or not; - is standard output.

    If there is no such snapshot, the volume of that name is meant, which must not be in use.
    """
    from pycsi.cli import exporting
    from pycsi.cli.pools import chosen

    configs = chosen(pools)
    subject = exporting.find(configs, name, volume=volume)
    base = exporting.find_base(configs, since, subject) if since else None
    exporting.export(
        subject, base, file, exporting.How(compress=compress, rate=rate, resume=resume)
    )


@click.command(
    "import",
    cls=Command,
    epilog=examples(
        "pycsi import /backup/data-monday.pycsi data",
        "ssh other pycsi export data-monday - | pycsi import - data",
        "pycsi import db.pycsi db --size 20Gi -p pool=fast",
        "pycsi import db-sunday.pycsi db-monday.pycsi db    # with an increment",
    ),
)
@sized
@with_parameters
@_rate
@click.option(
    "--privileged-nodes",
    "privileged",
    is_flag=True,
    help="Keep device nodes, setuid and setgid files and security attributes of a directory.",
)
@driver_options
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.argument("name")
def import_(
    *,
    files: tuple[str, ...],
    name: str,
    size: int | None,
    rate: int | None,
    privileged: bool,
    parameters: tuple[tuple[str, str], ...],
    **driver: Any,
) -> None:
    """Make the volume NAME from the export in FILE, and print its id; - is standard input.

    More FILES are increments on the one before.

    The volume exists once all of it was checked, and not before.
    """
    with connected(**driver) as client:
        from pycsi.cli.standalone import importing

        wanted = importing.NewImport(
            name=name,
            size=size,
            parameters=dict(parameters),
            rate=rate,
            privileged=privileged,
        )
        click.echo(importing.import_volume(client, files, wanted))


@click.command(
    cls=Command,
    epilog=examples(
        "pycsi move data --to-pool fast",
        "pycsi move data --to-pool fast --prepare    # while it is in use",
        "pycsi move data --cancel",
        "pycsi move data@node-1 --to-node node-2",
    ),
)
@click.option("--to-pool", "pool", metavar="POOL", help="The pool to move it to.")
@click.option(
    "--to-node",
    "node",
    metavar="NODE",
    help="The other node to move it to. --endpoint is the socket of the controller.",
)
@click.option(
    "--prepare", is_flag=True, help="Only copy what can be copied while the volume is in use."
)
@click.option("--cancel", is_flag=True, help="Delete what a move has copied that has not ended.")
@click.option(
    "--objects",
    type=click.File(),
    metavar="FILE",
    help="What kubectl get pv,pvc,pod -A -o json writes, for the manifests of a volume that moves "
    "to another node. -: standard input.",
)
@driver_options
@click.argument("volume")
def move(
    *,
    volume: str,
    pool: str | None,
    node: str | None,
    prepare: bool,
    cancel: bool,
    objects: TextIO | None,
    **driver: Any,
) -> None:
    """Move a volume to another pool of this node, where it keeps its id, or to another node.

    While it is in use, its data is copied; then the command says so, and ends. Repeat it when the
    volume is not in use: then only what has changed is copied, and the volume is in the new place.
    What it was is in the trash of the old one. To another node, the volume gets another id, and the
    command prints the manifests with which a cluster uses it.
    """
    from pycsi.cli.errors import MistakesError
    from pycsi.cli.standalone import moving

    if (cancel and (pool or prepare)) or not (cancel or pool or node) or (objects and not node):
        raise MistakesError("give --to-pool POOL, --to-node NODE, or both; or --cancel")
    with connected(**driver) as client:
        if node and cancel:
            click.echo(moving.cancel_to_node(client, volume, node))
        elif node:
            text = objects.read() if objects else None
            journey = moving.Journey(node=node, pool=pool or "", objects=text)
            click.echo(moving.move_to_node(client, volume, journey, prepare=prepare))
        elif pool:
            click.echo(moving.move(client, volume, pool, prepare=prepare))
        else:
            click.echo(moving.cancel(client, volume))
