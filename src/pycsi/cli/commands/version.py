"""`pycsi version`: what is installed here."""

import click

from pycsi.cli.commands import options
from pycsi.cli.commands.base import Command, examples


@click.command(cls=Command, epilog=examples("pycsi version", "pycsi version -o json"))
@options.output("text", "json", "yaml")
def version(*, output: str) -> None:
    """Show the version, the commit that it was built from, and what it runs on."""
    from pycsi.cli import build, listing

    found = build.described()
    if output != "text":
        click.echo(listing.structured(found, output))
        return
    commit = f" (commit {found['commit']})" if found["commit"] else ""
    click.echo(f"pycsi {found['version']}{commit}")
    click.echo(f"CSI {found['csi']}, Python {found['python']}, {found['kernel']}")
