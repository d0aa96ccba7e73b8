"""Mounting and unmounting a volume with the calls of the Node service."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pycsi.cli.errors import CommandError, MistakesError, UnknownNameError
from pycsi.cli.standalone.client import Client
from pycsi.cli.standalone.mounts import Mounted, Mounts
from pycsi.cli.standalone.volumes import capability, is_block
from pycsi.linux.kernel import topmost
from pycsi.linux.mount import OF_ONE_MOUNT
from pycsi.model import ids, mountflags
from pycsi.model.errors import InvalidArgument
from pycsi.proto import csi_pb2 as csi


def mount(
    client: Client,
    mounts: Mounts,
    volume: str,
    path: Path,
    *,
    readonly: bool,
    flags: Sequence[str],
    secrets: Mapping[str, str],
) -> str:
    """Mount a volume at a path, which need not exist; return the path without symbolic links.

    A raw block volume becomes a device node there. Repeated, it does nothing. `secrets` have the
    passphrase of an encrypted volume.
    """
    volume_id = client.id_of(volume)
    request = csi.ControllerGetVolumeRequest(volume_id=volume_id)
    context = client.call("ControllerGetVolume", request).volume.volume_context
    block = is_block(client, volume_id)
    own = _of_filesystem(flags)
    with mounts.held(), _recorded(client, mounts, volume_id, _target(path), own) as mounted:
        staging = mounts.staging(volume_id)
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        stage = csi.NodeStageVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(staging),
            volume_capability=capability(block=block, flags=mounted.options),
            volume_context=context,
            secrets=secrets,
        )
        client.call("NodeStageVolume", stage)
        publish = csi.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(staging),
            target_path=mounted.target,
            volume_capability=capability(block=block, flags=flags),
            readonly=readonly,
            volume_context=context,
        )
        client.call("NodePublishVolume", publish)
        _refuse_hidden(client, mounted.target)
    return mounted.target


def _of_filesystem(flags: Sequence[str]) -> tuple[str, ...]:
    """Return the options of the filesystem itself; the others are those of one mount of it."""
    try:
        return tuple(item for item in mountflags.split(flags) if item not in OF_ONE_MOUNT)
    except InvalidArgument as error:
        raise MistakesError(str(error)) from None


def _target(path: Path) -> str:
    """Return a path without symbolic links, except in its last name."""
    folder = path.parent.resolve()
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a directory; make it first")
    if path.name in {"", ".."}:
        raise CommandError(f"{path}: give a path that ends with a name")
    return str(folder / path.name)


@contextlib.contextmanager
def _recorded(
    client: Client, mounts: Mounts, volume_id: str, target: str, options: tuple[str, ...]
) -> Iterator[Mounted]:
    """Record that a volume is about to be mounted at a target; undo all if that fails."""
    known = mounts.at(target)
    if known and known.volume_id == volume_id:
        yield known
        return
    if known and _is_seen(target):
        raise CommandError(
            f"{known.volume_id} is mounted at {target}; give another path, or unmount it"
        )
    point = None
    if os.path.lexists(target):
        status = os.lstat(target)
        point = status.st_mode, status.st_uid, status.st_gid
    others = mounts.of_volume(volume_id)
    mounted = Mounted(
        volume_id=volume_id,
        target=target,
        options=others[0].options if others else options,
        mount_point=point,
    )
    mounts.put(mounted)
    try:
        yield mounted
    except CommandError:
        with contextlib.suppress(CommandError):
            _unpublish(client, mounted)
        with contextlib.suppress(CommandError):
            _unstage(client, mounts, mounted)
        mounted.restore_mount_point()
        mounts.drop(mounted)
        raise


def _is_seen(target: str) -> bool:
    return topmost(target) is not None


def _refuse_hidden(client: Client, target: str) -> None:
    if not _is_seen(target):
        raise CommandError(
            f"the driver at {client.path} has mounted it where this command does not see it, in a "
            "mount namespace of its own; run both in the same"
        )


def unmount(client: Client, mounts: Mounts, what: str) -> list[str]:
    """Unmount a path, or a volume from wherever `mount` has mounted it; return the paths."""
    with mounts.held():
        found = _meant(client, mounts, what)
        for mounted in found:
            _undo(client, mounts, mounted)
    return [mounted.target for mounted in found]


def _meant(client: Client, mounts: Mounts, what: str) -> list[Mounted]:
    if "/" in what:
        target = _target(Path(what))
        known = mounts.at(target)
        if known is None:
            foreign = topmost(target)
            raise UnknownNameError(
                f"what is mounted at {target} was not mounted by pycsi mount; use umount(8)"
                if foreign
                else f"no volume is mounted at {target}; a reboot unmounts all of them"
            )
        return [known]
    volume_id = what if ids.node_of(what) else client.id_of(what)
    known_mounts = mounts.of_volume(volume_id)
    if not known_mounts:
        raise UnknownNameError(
            f"{volume_id} is not mounted by pycsi mount; a reboot unmounts all volumes"
        )
    return known_mounts


def _undo(client: Client, mounts: Mounts, mounted: Mounted) -> None:
    """Unmount a volume from a target; unstage it if that was the last one."""
    _unpublish(client, mounted)
    _unstage(client, mounts, mounted)
    mounted.restore_mount_point()
    mounts.drop(mounted)


def _unpublish(client: Client, mounted: Mounted) -> None:
    request = csi.NodeUnpublishVolumeRequest(
        volume_id=mounted.volume_id, target_path=mounted.target
    )
    client.call("NodeUnpublishVolume", request)


def _unstage(client: Client, mounts: Mounts, mounted: Mounted) -> None:
    """Unstage a volume unless it is mounted elsewhere too."""
    if mounts.of_volume(mounted.volume_id) != [mounted]:
        return
    staging = mounts.staging(mounted.volume_id)
    request = csi.NodeUnstageVolumeRequest(
        volume_id=mounted.volume_id, staging_target_path=str(staging)
    )
    client.call("NodeUnstageVolume", request)
    with contextlib.suppress(FileNotFoundError):
        staging.rmdir()
