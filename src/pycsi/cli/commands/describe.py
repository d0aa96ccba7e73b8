"""`pycsi describe`: all that is known of one volume, snapshot or pool."""

from typing import Any

import click

from pycsi.cli.commands import options
from pycsi.cli.commands.base import Group, examples
from pycsi.cli.commands.configuration import config

_KINDS = {
    "volume": "its claim, size and use, mounts, snapshots, faults, and history",
    "snapshot": "its volume, size, group, and the volumes restored from it",
    "pool": "its disk, sizes, options, and faults",
}

_EXAMPLES = {"volume": "data@node-1", "snapshot": "monday@node-1", "pool": "default"}


@click.group(
    cls=Group,
    epilog=examples(
        "pycsi describe volume data@node-1",
        "pycsi describe volume data -o yaml --pool default=/var/lib/pycsi",
        "pycsi describe pool default",
    ),
)
def describe() -> None:
    """Show all that is known of volumes, snapshots or pools, whether the driver runs or not.

    Disk and kernel are read: that takes root.
    """


def _describing(kind: str, about: str) -> None:
    """Add the command that describes things of a kind."""

    @options.pools
    @config
    @options.output("text", "json", "yaml")
    @click.argument("names", nargs=-1, required=True, metavar="NAME...")
    def command(names: tuple[str, ...], **given: Any) -> int:
        from pycsi.cli import description

        return description.show(kind, given.pop("pools"), names, **given)

    command.__doc__ = f"""Show all of each {kind} NAME, by id or name: {about}."""
    describe.command(
        kind,
        short_help=f"Show {about}.",
        epilog=examples(
            f"pycsi describe {kind} {_EXAMPLES[kind]}",
            f"pycsi describe {kind} {_EXAMPLES[kind]} -o json",
        ),
    )(options.cgroup_root(command) if kind == "volume" else command)


for _kind, _about in _KINDS.items():
    _describing(_kind, _about)
