"""The commands that use volumes on a machine without an orchestrator."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pycsi.cli.commands import options
from pycsi.cli.commands.base import Choice, Command, Group, Parsed, examples
from pycsi.cli.commands.configuration import config

if TYPE_CHECKING:
    from pycsi.cli.standalone.client import Client
    from pycsi.cli.standalone.mounts import Mounts

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_BLOCK = "block"
"""The type of a raw block volume; the others are those of the driver's parameter `type`."""


def _endpoint(text: str) -> Path:
    from pycsi.model.addresses import parse_endpoint

    return parse_endpoint(text)


def positive_size(text: str) -> int:
    """Return the bytes of a size such as 10Gi; `ValueError` for 0 and for other text."""
    from pycsi.model.size import parse_size

    size = parse_size(text)
    if not size:
        raise ValueError("a size of 0 is none; give one such as 10Gi")
    return size


def _parameter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is no KEY=VALUE; give one such as onDelete=retain")
    return key, value


def driver_options(command: Decorated) -> Decorated:
    """Give a command the options that say which driver it calls."""
    for option in (
        config,
        click.option(
            "--node-id",
            metavar="NAME",
            envvar="PYCSI_NODE_ID",
            show_envvar=True,
            help="The name of this node, if a driver has to be started.  [default: that in the "
            "ids of the pool's volumes, or the host's name]",
        ),
        options.pools,
        click.option(
            "--endpoint",
            type=Parsed("url", _endpoint),
            metavar="URL",
            envvar=["PYCSI_ENDPOINT", "CSI_ENDPOINT"],
            show_envvar=True,
            help="Unix socket of the driver. If none listens there, one is started for this "
            "command.  [default: unix:///run/pycsi/csi.sock]",
        ),
    ):
        command = option(command)
    return command


sized = click.option(
    "--size",
    type=Parsed("size", positive_size),
    metavar="SIZE",
    help="Size, such as 10Gi.  [default: 1Gi, or that of the source]",
)
with_parameters = click.option(
    "--parameter",
    "-p",
    "parameters",
    multiple=True,
    type=Parsed("parameter", _parameter),
    metavar="KEY=VALUE",
    help="A parameter as in a StorageClass, such as pool=fast or onDelete=retain. May be given "
    "several times.",
)
_encrypted = click.option(
    "--key-file",
    metavar="FILE",
    help="Encrypt the volume with the passphrase in FILE, or on standard input (-). That of a copy "
    "is its source's.",
)
_run_directory = click.option(
    "--run-directory",
    type=click.Path(path_type=Path),
    default=Path("/run/pycsi"),
    show_default=True,
    envvar="PYCSI_RUN_DIRECTORY",
    show_envvar=True,
    help="Where it is kept what is mounted, until the next reboot.",
)


@contextlib.contextmanager
def connected(
    endpoint: Path | None, pools: "tuple[options.Pool, ...]", node_id: str | None
) -> "Iterator[Client]":
    """Yield a client of the driver that a command's options name, or of one for the command."""
    from pycsi.cli.standalone import client as standalone

    with standalone.connected(endpoint, pools, node_id) as client:
        yield client


def _secrets(key_file: str | None, previous: str | None = None) -> dict[str, str]:
    from pycsi.cli.standalone import keys

    return keys.secrets(key_file, previous)


def _mounts(run_directory: Path) -> "Mounts":
    from pycsi.cli.standalone.mounts import Mounts

    return Mounts(run_directory)


@click.command(
    cls=Command,
    epilog=examples(
        "pycsi create data --size 10Gi --pool default=/var/lib/pycsi",
        "pycsi create db --size 50Gi --type image --fs-type xfs -p onDelete=retain",
        "pycsi create disk --size 20Gi --type block",
    ),
)
@sized
@click.option(
    "--type",
    "kind",
    type=Choice(["directory", "image", _BLOCK]),
    help="directory; image: with a filesystem of its own; block: a raw block device.  "
    "[default: what the pool does best]",
)
@click.option(
    "--fs-type", metavar="NAME", help="Filesystem of an image: ext4, xfs or btrfs.  [default: ext4]"
)
@_encrypted
@with_parameters
@driver_options
@click.argument("name")
def create(
    *,
    name: str,
    size: int | None,
    kind: str | None,
    fs_type: str | None,
    key_file: str | None,
    parameters: tuple[tuple[str, str], ...],
    **driver: Any,
) -> None:
    """Create the volume NAME, and print its id.

    Repeated, the command finds the volume that it has created.
    """
    secrets = _secrets(key_file)
    with connected(**driver) as client:
        from pycsi.cli.standalone import volumes

        typed = {"type": kind} if kind and kind != _BLOCK else {}
        wanted = volumes.NewVolume(
            name=name,
            size=size,
            parameters=typed | dict(parameters),
            block=kind == _BLOCK,
            fs_type=fs_type or "",
            secrets=secrets,
        )
        click.echo(volumes.create(client, wanted))


@click.command(
    cls=Command,
    epilog=examples("pycsi snapshot data monday", "pycsi snapshot db@node-1 before-upgrade"),
)
@with_parameters
@driver_options
@click.argument("volume")
@click.argument("name")
def snapshot(
    *, volume: str, name: str, parameters: tuple[tuple[str, str], ...], **driver: Any
) -> None:
    """Take the snapshot NAME of VOLUME, in use or not, and print its id."""
    with connected(**driver) as client:
        from pycsi.cli.standalone import volumes

        click.echo(volumes.snapshot(client, volume, name, dict(parameters)))


@click.command(
    cls=Command,
    epilog=examples("pycsi clone data data-copy", "pycsi clone data larger --size 20Gi"),
)
@sized
@_encrypted
@with_parameters
@driver_options
@click.argument("volume")
@click.argument("name")
def clone(
    *,
    volume: str,
    name: str,
    size: int | None,
    key_file: str | None,
    parameters: tuple[tuple[str, str], ...],
    **driver: Any,
) -> None:
    """Create the volume NAME with the content that VOLUME has now, and print its id."""
    secrets = _secrets(key_file)
    with connected(**driver) as client:
        from pycsi.cli.standalone import volumes

        wanted = volumes.NewVolume(
            name=name, size=size, parameters=dict(parameters), secrets=secrets
        )
        click.echo(volumes.clone(client, volume, wanted))


@click.command(
    cls=Command,
    epilog=examples("pycsi restore monday data-again", "pycsi restore disk-1 disk-again --block"),
)
@sized
@click.option("--block", is_flag=True, help="The new volume is a raw block device.")
@_encrypted
@with_parameters
@driver_options
@click.argument("snapshot", metavar="SNAPSHOT")
@click.argument("name")
def restore(
    *,
    snapshot: str,
    name: str,
    size: int | None,
    block: bool,
    key_file: str | None,
    parameters: tuple[tuple[str, str], ...],
    **driver: Any,
) -> None:
    """Create the volume NAME with the content of SNAPSHOT, and print its id.

    To have a deleted volume back: pycsi trash restore.
    """
    secrets = _secrets(key_file)
    with connected(**driver) as client:
        from pycsi.cli.standalone import volumes

        wanted = volumes.NewVolume(
            name=name, size=size, parameters=dict(parameters), block=block, secrets=secrets
        )
        click.echo(volumes.restore(client, snapshot, wanted))


@click.command(cls=Command, epilog=examples("pycsi expand data 20Gi"))
@_run_directory
@driver_options
@click.argument("volume")
@click.argument("size", type=Parsed("size", positive_size))
def expand(*, volume: str, size: int, run_directory: Path, **driver: Any) -> None:
    """Make VOLUME as large as SIZE, also while it is mounted, and print its size in bytes."""
    with connected(**driver) as client:
        from pycsi.cli.standalone import volumes

        click.echo(volumes.expand(client, _mounts(run_directory), volume, size))


@click.command(
    cls=Command,
    epilog=examples(
        "pycsi mount data /mnt/data",
        "pycsi mount data /mnt/read --read-only -o noexec",
        "pycsi mount disk /srv/disk    # a raw block volume: a device node",
    ),
)
@click.option("--read-only", is_flag=True, help="Mount it read-only.")
@click.option(
    "--option",
    "-o",
    "flags",
    multiple=True,
    metavar="FLAG",
    help="A mount option, such as noexec. May be given several times.",
)
@click.option(
    "--key-file",
    metavar="FILE",
    help="The passphrase of an encrypted volume is in FILE, or on standard input (-).",
)
@click.option(
    "--previous-key-file",
    metavar="FILE",
    help="Replace the passphrase in FILE, where it is still in force, by that of --key-file.",
)
@_run_directory
@driver_options
@click.argument("volume")
@click.argument("path", type=click.Path(path_type=Path))
def mount(
    *,
    volume: str,
    path: Path,
    read_only: bool,
    flags: tuple[str, ...],
    key_file: str | None,
    previous_key_file: str | None,
    run_directory: Path,
    **driver: Any,
) -> None:
    """Mount VOLUME at PATH, and print the path.

    It stays mounted after the command, and after the driver, until pycsi unmount or a reboot: mount
    it again after that, as from a systemd unit.
    """
    secrets = _secrets(key_file, previous_key_file)
    with connected(**driver) as client:
        from pycsi.cli.standalone import mounting

        there = mounting.mount(
            client,
            _mounts(run_directory),
            volume,
            path,
            readonly=read_only,
            flags=flags,
            secrets=secrets,
        )
        click.echo(there)


@click.command(
    cls=Command, epilog=examples("pycsi unmount /mnt/data", "pycsi unmount data    # everywhere")
)
@_run_directory
@driver_options
@click.argument("what", metavar="PATH|VOLUME")
def unmount(*, what: str, run_directory: Path, **driver: Any) -> None:
    """Unmount what pycsi mount has mounted at PATH, or VOLUME everywhere; print the paths.

    PATH has a slash in it.
    """
    with connected(**driver) as client:
        from pycsi.cli.standalone import mounting

        for target in mounting.unmount(client, _mounts(run_directory), what):
            click.echo(target)


@click.group(
    cls=Group,
    epilog=examples("pycsi delete volume data", "pycsi delete snapshot monday --yes"),
)
def delete() -> None:
    """Delete volumes or snapshots.

    A volume with onDelete=retain can be had back for a while: pycsi trash restore.
    """


def _deleting(kind: str, name: str) -> None:
    """Add the command that deletes things of a kind, such as the one called `name`."""

    @options.confirmed
    @_run_directory
    @driver_options
    @click.argument("names", nargs=-1, required=True, metavar="NAME...")
    def command(names: tuple[str, ...], *, yes: bool, run_directory: Path, **driver: Any) -> None:
        with connected(**driver) as client:
            from pycsi.cli.standalone import volumes

            act = volumes.delete if kind == "volume" else volumes.delete_snapshot
            doomed = [client.id_of(name) for name in names]
            options.confirm(f"delete the {kind} {', '.join(doomed)}", yes=yes)
            for object_id in doomed:
                act(client, _mounts(run_directory), object_id)
                click.echo(object_id)

    command.__doc__ = f"""Delete each {kind} NAME, by id or name, and print its id.

    What is not there is deleted already.
    """
    delete.command(kind, epilog=examples(f"pycsi delete {kind} {name} --yes"))(command)


_deleting("volume", "data")
_deleting("snapshot", "monday")
