"""`pycsi adopt`: take over what others have left on the node."""

from typing import Any

import click

from pycsi.cli.commands import options
from pycsi.cli.commands.base import Choice, Command, Parsed, examples
from pycsi.cli.commands.configuration import config
from pycsi.cli.commands.volumes import positive_size

_LAYOUTS = ("csi-hostpath", "directpv", "rawfile", "local-path", "openebs-hostpath", "bare")


@click.command(
    cls=Command,
    epilog=examples(
        "pycsi adopt --from /opt/local-path-provisioner",
        "kubectl get pv,pvc,pod -A -o json | pycsi adopt --from - -o manifests",
        "pycsi adopt --from /srv/data --size 20Gi --yes",
        "pycsi adopt --undo data@node-1",
        "pycsi adopt --finish data@node-1",
    ),
)
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="PATH",
    help="A directory or an image, or the directory in which another driver keeps its volumes. "
    "-: standard input has what kubectl get pv,pvc,pod -A -o json writes. May be given several "
    "times.",
)
@click.option(
    "--layout",
    type=Choice(_LAYOUTS),
    help="Whose volumes are in PATH; bare: PATH is one.  [default: what it looks like]",
)
@click.option("--name", metavar="NAME", help="Name of the volume, if there is only one.")
@click.option("--block", is_flag=True, help="Images are block volumes, whatever is in them.")
@click.option(
    "--size",
    type=Parsed("size", positive_size),
    metavar="SIZE",
    help="Size of the volumes that have less, or of which none is known.",
)
@click.option(
    "--no-limit", is_flag=True, help="Adopt directories also where the pool cannot limit them."
)
@click.option("--into", metavar="POOL", help="The pool, if there are several.  [default: default]")
@click.option(
    "--storage-class", metavar="NAME", help="Class in the manifests.  [default: the old one]"
)
@click.option(
    "--node-id",
    metavar="NAME",
    envvar="PYCSI_NODE_ID",
    show_envvar=True,
    help="The name of this node.  [default: that in the ids of the pool's volumes, or the host's "
    "name]",
)
@click.option(
    "--driver-name",
    metavar="NAME",
    default="pycsi.storage",
    envvar="PYCSI_DRIVER_NAME",
    show_envvar=True,
    help="Name of the driver.",
)
@options.output("text", "manifests", "json")
@click.option("--undo", is_flag=True, help="Give the volumes ID their old names again.")
@click.option("--finish", is_flag=True, help="Give up the old names of the volumes ID.")
@click.option("--yes", "-y", is_flag=True, help="Do it. Without this it is only told.")
@options.pools
@config
@click.argument("ids", nargs=-1, metavar="[ID]...")
def adopt(
    *,
    pools: "tuple[options.Pool, ...]",
    ids: tuple[str, ...],
    undo: bool,
    finish: bool,
    yes: bool,
    output: str,
    size: int | None,
    no_limit: bool,
    **order: Any,
) -> int:
    """Make volumes of directories and images that another driver, or nobody, looks after.

    Nothing is done without --yes: it is told what would become of each, and what speaks against it.
    On the pool's filesystem they are moved, or share their blocks; from elsewhere they are copied.
    --undo puts an adopted volume back, until --finish.
    """
    from pycsi.cli.adoption import run
    from pycsi.cli.adoption.plan import Wish
    from pycsi.cli.errors import MistakesError

    if (
        (undo or finish) is not bool(ids)
        or (undo and finish)
        or bool(ids) is bool(order["sources"])
    ):
        raise MistakesError("give --from PATH; or --undo, or --finish, and the ids of volumes")
    if undo:
        run.undo(pools, ids)
        return 0
    if finish:
        doomed = run.doomed(pools, ids)
        options.confirm(f"delete {', '.join(doomed)} for good", yes=yes or not doomed)
        run.finish(pools, ids)
        return 0
    wish = Wish(size=size, unlimited=no_limit)
    return run.adopt(pools, run.Order(wish=wish, **order), output, yes=yes)
