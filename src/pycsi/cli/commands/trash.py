"""`pycsi trash` and `pycsi delete-inline`: what the driver need not run for."""

import click

from pycsi.cli.commands import options
from pycsi.cli.commands.base import Command, Group, examples
from pycsi.cli.commands.configuration import config


@click.group(
    cls=Group,
    epilog=examples(
        "pycsi get trash",
        "pycsi trash restore data@node-1",
        "pycsi trash empty --all --yes",
    ),
)
def trash() -> None:
    """Restore what was deleted, or delete it for good.

    `pycsi get trash` lists what there is. An ENTRY is one of that list, or the id of a volume that
    has one entry only.
    """


@trash.command(epilog=examples("pycsi trash restore data@node-1"))
@options.pools
@config
@click.argument("entry")
def restore(*, pools: "tuple[options.Pool, ...]", entry: str) -> None:
    """Restore the deleted volume ENTRY, with the id that it had, and print that."""
    from pycsi.cli import trash as undelete
    from pycsi.cli.pools import chosen

    click.echo(undelete.restore(chosen(pools), entry))


@trash.command(epilog=examples("pycsi trash empty data@node-1", "pycsi trash empty --all --yes"))
@options.pools
@config
@options.confirmed
@click.argument("entries", nargs=-1, metavar="[ENTRY]...")
@click.option("--all", "everything", is_flag=True, help="Delete all that is in the trash.")
def empty(
    *, pools: "tuple[options.Pool, ...]", entries: tuple[str, ...], everything: bool, yes: bool
) -> None:
    """Delete ENTRIES of the trash for good, also those that are retained.

    Prints each one that is gone.
    """
    from pycsi.cli import trash as undelete
    from pycsi.cli.errors import MistakesError
    from pycsi.cli.pools import chosen

    if bool(entries) is everything:
        raise MistakesError("give the entries to delete, or --all; see: pycsi get trash")
    configs = chosen(pools)
    doomed = undelete.doomed(configs, entries)
    options.confirm(f"delete {', '.join(doomed)} for good", yes=yes or not doomed)
    for name in undelete.empty(configs, entries):
        click.echo(name)


@click.command(
    "delete-inline", cls=Command, epilog=examples("pycsi delete-inline ephemeral-0f3a@node-1")
)
@options.pools
@config
@options.confirmed
@click.argument("volume")
def delete_inline(*, pools: "tuple[options.Pool, ...]", volume: str, yes: bool) -> None:
    """Delete the inline VOLUME, whose pod is gone; whether the driver runs or not."""
    from pycsi.cli import trash as undelete
    from pycsi.cli.pools import chosen

    configs = chosen(pools)
    volume_id = undelete.inline(configs, volume)
    options.confirm(f"delete {volume_id} and its data for good", yes=yes)
    click.echo(undelete.delete_inline(configs, volume))
