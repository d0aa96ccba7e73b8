"""`pycsi get`: lists of volumes, snapshots, pools, and what is in the trash."""

from typing import Any

import click

from pycsi.cli.commands import options
from pycsi.cli.commands.base import Group, examples
from pycsi.cli.commands.configuration import config

_KINDS = {
    "volumes": "the volumes, where each is in use, and what is wrong with it",
    "snapshots": "the snapshots, and what they hold of the disk",
    "pools": "the pools with their sizes, and what they offer",
    "trash": "what was deleted and is still on the disk",
}


class _Kinds(Group):
    """The kinds of things; one of a kind may be written in the singular."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, f"{cmd_name}s")


@click.group(
    cls=_Kinds,
    epilog=examples(
        "pycsi get volumes --pool default=/var/lib/pycsi",
        "pycsi get volumes -o wide --sort-by created",
        "pycsi get snapshots -o name",
        "pycsi get pools -o json --pool fast=/srv/nvme --pool slow=/srv/disk",
    ),
)
def get() -> None:
    """List volumes, snapshots, pools or the trash, whether the driver runs or not.

    Disk and kernel are read: that takes root.
    """


def _listing(kind: str, about: str) -> None:
    """Add the command that lists things of a kind."""

    @options.pools
    @config
    @options.output("table", "wide", "name", "json", "yaml")
    @click.option("--no-headers", is_flag=True, help="Leave the heading of a table out.")
    @click.option("--bytes", "exact", is_flag=True, help="Show sizes in bytes, and exact times.")
    @click.option("--sort-by", metavar="COLUMN", help="Sort by a column, such as capacity.")
    @click.argument("names", nargs=-1, metavar="[NAME]...")
    def command(names: tuple[str, ...], **given: Any) -> int:
        from pycsi.cli import listing

        return listing.show(kind, given.pop("pools"), names, **given)

    command.__doc__ = f"""List {about}; or only those that are named, by id or name."""
    get.command(
        kind,
        short_help=f"List {about}.",
        epilog=examples(
            f"pycsi get {kind}",
            f"pycsi get {kind} -o wide --bytes",
            f"pycsi get {kind} -o json --pool default=/var/lib/pycsi",
        ),
    )(options.cgroup_root(command) if kind == "volumes" else command)


for _kind, _about in _KINDS.items():
    _listing(_kind, _about)
