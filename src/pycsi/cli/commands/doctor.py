"""`pycsi doctor`: what is wrong, and how to mend it."""

from typing import TYPE_CHECKING, Any

import click

from pycsi.cli.commands import options
from pycsi.cli.commands.base import Command, Parsed, examples
from pycsi.cli.commands.configuration import config

if TYPE_CHECKING:
    from pycsi.cli.doctor.codes import Code as _Code


def _code(text: str) -> "_Code":
    from pycsi.cli.doctor.codes import Code

    return Code.named(text)


@click.command(
    cls=Command,
    epilog=examples(
        "pycsi doctor",
        "pycsi doctor --fix",
        "pycsi doctor -o json --pool fast=/srv/nvme --pool slow=/srv/disk",
        "kubectl get pv,volumesnapshotcontents -o json | pycsi doctor --cluster -",
    ),
)
@options.pools
@config
@options.cgroup_root
@click.option(
    "--cluster",
    metavar="FILE|-",
    help="Compare with the cluster's objects: a file, or - for standard input, with what "
    "`kubectl get pv,volumesnapshotcontents -o json` lists.",
)
@click.option(
    "--driver-name",
    metavar="NAME",
    default="pycsi.storage",
    show_default=True,
    envvar="PYCSI_DRIVER_NAME",
    show_envvar=True,
    help="The CSI driver's name in those objects.",
)
@click.option(
    "--node-id",
    metavar="NAME",
    envvar="PYCSI_NODE_ID",
    show_envvar=True,
    help="The name of this node in those objects.  [default: that in the ids of what is in the "
    "pools]",
)
@click.option(
    "--ignore",
    "ignored",
    metavar="CODE",
    multiple=True,
    type=Parsed("code", _code),
    help="Leave out what has this code, such as PoolOvercommitted. May be given several times.",
)
@click.option("--fix", is_flag=True, help="Mend what is safe to mend; asks before it does.")
@click.option("--yes", "-y", is_flag=True, help="With --fix: do not ask.")
@options.output("text", "table", "json", "yaml")
def doctor(*, pools: "tuple[options.Pool, ...]", **given: Any) -> int:
    """Tell what is wrong with pools, volumes and this machine, and the command that mends it.

    Works whether the driver runs or not, and changes nothing without --fix. The exit status is 0 if
    nothing is wrong, 1 if something is, and 2 if it could not look. Takes root.
    """
    from pycsi.cli.doctor import report

    return report.show(pools, **given)
