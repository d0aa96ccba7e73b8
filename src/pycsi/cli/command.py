"""The `pycsi` command. Each subcommand imports its modules only when it runs."""

import sys
from pathlib import Path

import click

from pycsi.cli.commands import trash
from pycsi.cli.commands.base import Command, Group, examples
from pycsi.cli.commands.describe import describe
from pycsi.cli.commands.get import get
from pycsi.cli.commands.serve import serve


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "pycsi serve --endpoint unix:///run/pycsi/csi.sock --pool default=/var/lib/pycsi",
        "pycsi get volumes",
        "pycsi describe volume data@node-1",
    ),
)
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


for _command in (serve, get, describe, trash.trash, trash.delete_inline, demo):
    main.add_command(_command)
