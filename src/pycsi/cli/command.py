"""The `pycsi` command. Each subcommand imports its modules only when it runs."""

import sys
from pathlib import Path

import click

from pycsi import __version__
from pycsi.cli.commands import transfer, trash, volumes
from pycsi.cli.commands.adopt import adopt
from pycsi.cli.commands.base import Command, Group, examples
from pycsi.cli.commands.describe import describe
from pycsi.cli.commands.doctor import doctor
from pycsi.cli.commands.get import get
from pycsi.cli.commands.serve import serve
from pycsi.cli.commands.version import version


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "pycsi serve --endpoint /run/pycsi/csi.sock --pool default=/var/lib/pycsi",
        "pycsi create data --size 10Gi && pycsi mount data /mnt/data",
        "pycsi get volumes",
        "pycsi describe volume data@node-1",
        "pycsi doctor",
    ),
)
@click.version_option(__version__, prog_name="pycsi", message="%(prog)s %(version)s")
def main() -> None:
    """Serve local storage through the Container Storage Interface (CSI)."""


@click.command(cls=Command, epilog=examples("pycsi demo", "pycsi demo --directory /srv/tmp"))
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to make the demo's pools.  [default: a temporary directory]",
)
def demo(*, directory: Path | None) -> None:
    """Run a driver and show the life of real volumes, from creation to deletion."""
    from pycsi.cli.demo import run

    sys.exit(run(directory))


for _command in (
    serve,
    get,
    describe,
    doctor,
    volumes.create,
    volumes.mount,
    volumes.unmount,
    volumes.expand,
    volumes.snapshot,
    volumes.clone,
    volumes.restore,
    volumes.delete,
    transfer.export,
    transfer.import_,
    transfer.move,
    trash.trash,
    trash.delete_inline,
    adopt,
    demo,
    version,
):
    main.add_command(_command)
