"""Options that several commands have."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from pycsi.cli.commands.base import Choice, Parsed

if TYPE_CHECKING:
    from pycsi.model.config import PoolConfig

    Pool: TypeAlias = PoolConfig

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

POOL_HELP = (
    "A pool of volumes: a directory on a local filesystem. May be given several times. Options "
    "after the path: reserve=SIZE or PERCENT%, overcommit=RATIO, uuid=UUID, "
    "require-mount, require-pool, allow-volatile, freeze-limit=TIME, retain-for=TIME or ever."
)


def _pool(text: str) -> "PoolConfig":
    from pycsi.model.config import PoolConfig

    return PoolConfig.parse(text)


def pools(command: Decorated) -> Decorated:
    """Give a command the option `--pool`."""
    return click.option(
        "--pool",
        "pools",
        multiple=True,
        type=Parsed("pool", _pool),
        metavar="NAME=PATH[,OPTION...]",
        envvar="PYCSI_POOL",
        show_envvar=True,
        help=POOL_HELP,
    )(command)


def cgroup_root(command: Decorated) -> Decorated:
    """Give a command that tells of the faults of volumes the option `--cgroup-root`."""
    return click.option(
        "--cgroup-root",
        type=click.Path(path_type=Path),
        metavar="DIRECTORY",
        envvar="PYCSI_CGROUP_ROOT",
        show_envvar=True,
        help="Look at limits on I/O too: the cgroup in which the kubelet has made those of pods.",
    )(command)


def output(*formats: str) -> Callable[[Decorated], Decorated]:
    """Give a command the option `--output`, with these formats, of which the first is usual."""
    return click.option(
        "--output",
        "-o",
        type=Choice(formats),
        default=formats[0],
        show_default=True,
        help="Format of the output.",
    )


def confirmed(command: Decorated) -> Decorated:
    """Give a command the option `--yes`."""
    return click.option(
        "--yes", "-y", is_flag=True, help="Do not ask before something is deleted for good."
    )(command)


def confirm(action: str, *, yes: bool, otherwise: str = "nothing was deleted") -> None:
    """Ask on the terminal whether to do what `action` says, unless that was said already.

    `otherwise` is what a person is told who does not want it.

    `MistakesError` if nobody can be asked, `CommandError` if the answer is no.
    """
    from pycsi.cli.errors import CommandError, MistakesError

    if yes:
        return
    if not (sys.stdin and sys.stdin.isatty()):
        raise MistakesError(f"this would {action}; to do that without being asked, add --yes")
    if not click.confirm(f"pycsi: {action}?", err=True):
        raise CommandError(f"it was not confirmed; {otherwise}")
