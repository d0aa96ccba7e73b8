"""The faults of pools and volumes, as their health tells them, with the commands that mend them."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from pycsi.backends import Backend
from pycsi.backends.filesystem import FilesystemImage
from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding, Mend
from pycsi.cli.doctor.look import Look
from pycsi.cli.doctor.mending import locked
from pycsi.model.health import Fault, Reason
from pycsi.model.parameters import CLAIM_NAME, CLAIM_NAMESPACE
from pycsi.model.records import Volume, VolumeType
from pycsi.model.size import MIB
from pycsi.pool.layout import Layout, volume_catalog
from pycsi.volumes.health import look_at
from pycsi.volumes.notes import Notes

_OF_POOLS = frozenset(reason for reason in Reason if reason.value.startswith("Pool"))
_LONGEST = 125
"""A message of this many bytes or more may have been cut."""

_ONE_GROUP = 128 * MIB
"""The size up to which an ext4 with blocks of 4 KiB has no copy of its superblock."""

_GROWS = 2
"""How many times as large a volume is to become that is nearly full."""


def of_pool(look: Look) -> Iterator[Finding | None]:
    """Yield the faults of a pool."""
    seen = look.seen
    check = seen.check(look.kernel)
    found = list(check.faults)
    limited = seen.limiter.name or any(
        volume.type is VolumeType.DIRECTORY and volume.enforced for volume in look.volumes.values()
    )
    if limited and not check.out_of_reach and (fault := check.limit_fault()):
        found.append(fault)
    for folder in seen.layout.folders:
        place = seen.location.real(str(folder))
        if over := look.kernel.mounts.topmost(place):
            yield look.finding(
                Code.POOL_HIDDEN,
                place,
                f"a part of pool {look.name} is hidden: {over.fstype} {over.source} is mounted at "
                f"{place}",
                commands.typed("umount", place),
            )
    for fault in found:
        text = fault.message.removeprefix(f"pool {look.name}: ")
        if fault.reason is Reason.LIMIT_NOT_ENFORCED:
            text = f"the sizes of its directories are not enforced: {seen.limiter.fault()}"
        command, placeholder = _for_pool(look, fault.reason)
        yield look.finding(
            Code.of(fault.reason),
            look.given.path,
            f"pool {look.name}: {text}{placeholder}",
            command,
        )


def of_volumes(look: Look) -> Iterator[Finding | None]:
    """Yield the faults of a pool's volumes; those of the pool itself are left out."""
    check = look.seen.check(look.kernel)
    for backend in look.backends():
        yield None
        for fault in look_at(check, backend):
            if fault.reason not in _OF_POOLS and fault.reason is not Reason.LIMIT_NOT_ENFORCED:
                yield _finding(look, backend, fault)


def _finding(look: Look, backend: Backend, fault: Fault) -> Finding:
    volume_id, text = backend.volume.id, fault.message
    if len(text.encode()) >= _LONGEST:
        text = f"{text.rstrip('(')}…"
    command, placeholder = _FOR_VOLUMES[fault.reason](look, backend)
    mend = None
    if fault.reason is Reason.LIMIT_DIFFERS and not look.served:
        mend = Mend(
            text=f"set the limit of {volume_id} to its size", act=lambda: _limit(look, backend)
        )
    return look.finding(
        Code.of(fault.reason),
        volume_id,
        f"volume {volume_id}: {text}{placeholder}",
        command,
        mend,
    )


def _limit(look: Look, backend: Backend) -> None:
    """Set a directory's limit to its volume's size, as it is recorded now."""
    with locked(look.given):
        volumes = volume_catalog(Layout(look.given.path))
        volumes.load()
        if volume := volumes.get(backend.volume.id):
            look.seen.limiter.limit(backend.content, volume.project, volume.capacity)


# Pools


def _for_pool(look: Look, reason: Reason) -> tuple[str, str]:
    """Return the command that mends a pool's fault, and what a message says of placeholders."""
    if reason in {Reason.POOL_NEARLY_FULL, Reason.POOL_FEW_INODES}:
        return make_room(look)
    return _for_disk(look, reason), ""


def _for_disk(look: Look, reason: Reason) -> str:
    mounted = look.seen.location.mount
    disk, place = mounted.source, mounted.target
    match reason:
        case Reason.POOL_READ_ONLY:
            return commands.typed("mount", "-o", "remount,rw", place)
        case Reason.LIMIT_NOT_ENFORCED:
            return commands.enforce(look.seen.limiter, look.seen.location.real_path, mounted)
        case Reason.POOL_ERRORS if mounted.fstype == "btrfs":
            return (
                f"{commands.typed('btrfs', 'scrub', 'start', '-B', place)} && "
                f"{commands.typed('btrfs', 'device', 'stats', '-z', place)}"
            )
        case Reason.POOL_ERRORS:
            check = commands.typed("e2fsck", "-f", "-p", disk)
            again = commands.typed("mount", disk, place)
            return f"{commands.typed('umount', place)} && {check}; {again}"
        case _:
            return commands.KERNEL_LOG


def make_room(look: Look) -> tuple[str, str]:
    """Return the command that frees space of a pool's disk, and what is said of placeholders."""
    if look.seen.trash:
        return look.pycsi("trash", "empty", "--all", "--yes"), ""
    which = "; VOLUME is one that nobody needs"
    return look.pycsi("delete", "volume", "VOLUME", "--yes"), which


# Volumes

_Command: TypeAlias = Callable[[Look, Backend], tuple[str, str]]
"""Returns a command, and what a message says of the placeholders in it."""


def _kernel_log(_look: Look, _backend: Backend) -> tuple[str, str]:
    return commands.KERNEL_LOG, ""


def _stage_anew(look: Look, backend: Backend) -> tuple[str, str]:
    return commands.stage_anew(look.given, backend.volume.id, Notes(backend.where).published)


def _image(backend: Backend) -> str:
    return shlex.quote(str(backend.content))


def _delete(look: Look, backend: Backend) -> tuple[str, str]:
    volume = backend.volume
    if volume.handle is not None:
        return look.pycsi("delete-inline", volume.id, "--yes"), ""
    held = [item.id for item in look.seen.snapshots if item.volume.id == volume.id]
    more = f"; {held[-1]} is a snapshot of it, which can be restored" if held else ""
    return look.pycsi("delete", "volume", volume.id, "--yes"), more


def _extend(_look: Look, backend: Backend) -> tuple[str, str]:
    return f"truncate --size={backend.volume.held} {_image(backend)}", ""


def _repair(look: Look, backend: Backend) -> tuple[str, str]:
    """Return the command that repairs the unmounted filesystem in an image, from its copies."""
    if backend.volume.filesystem == "ext4" and backend.volume.capacity <= _ONE_GROUP:
        command, more = _delete(look, backend)
        return command, f"; it is too small to have a copy of its superblock{more}"
    kind = backend.kind if isinstance(backend, FilesystemImage) else ""
    repairs = {
        "xfs": f"xfs_repair {_image(backend)}",
        "btrfs": f"btrfs rescue super-recover -y {_image(backend)}",
    }
    return repairs.get(kind, f"e2fsck -f -y {_image(backend)}"), ""


def _check(look: Look, backend: Backend) -> tuple[str, str]:
    """Return the command that checks a filesystem which has counted errors."""
    mounts = backend.mounts()
    if isinstance(backend, FilesystemImage) and backend.kind == "btrfs" and mounts:
        place = mounts[0].target
        return (
            f"{commands.typed('btrfs', 'scrub', 'start', '-B', place)} && "
            f"{commands.typed('btrfs', 'device', 'stats', '-z', place)}"
        ), ""
    if backend.volume.encryption:
        command, placeholder = _stage_anew(look, backend)
        return command, f"; with fsck=true it is checked then{placeholder}"
    if mounts:
        command, placeholder = _stage_anew(look, backend)
        return command, f"; unmounted, check it: e2fsck -f -p {_image(backend)}{placeholder}"
    return f"e2fsck -f -p {_image(backend)}", ""


def _uncover(look: Look, backend: Backend) -> tuple[str, str]:
    """Return the command that unmounts what is in a volume's place."""
    mounts, location = look.kernel.mounts, look.seen.location
    for place in (look.seen.layout.volumes, backend.where, backend.inside):
        if mounts.topmost(location.real(str(place))):
            return commands.typed("umount", location.real(str(place))), ""
    notes, ours = Notes(backend.where), backend.mounts()
    places = [
        target
        for target in sorted({*notes.staged, *notes.published})
        if (seen := mounts.topmost(target)) and seen not in ours
    ]
    return " && ".join(commands.typed("umount", place) for place in places) or "findmnt", ""


def _expand_again(look: Look, backend: Backend) -> tuple[str, str]:
    return look.pycsi("expand", backend.volume.id, str(backend.volume.capacity)), ""


def _grow(look: Look, backend: Backend) -> tuple[str, str]:
    return (
        _stage_anew(look, backend)
        if backend.mounts()
        else commands.stage_anew(look.given, backend.volume.id, ())
    )


def _enlarge(look: Look, backend: Backend) -> tuple[str, str]:
    volume = backend.volume
    size = _GROWS * volume.capacity
    return _patch_claim(volume, size) or look.pycsi("expand", volume.id, str(size)), ""


def _patch_claim(volume: Volume, size: int) -> str | None:
    """Return the command by which the claim of a volume asks for another size, if it is known."""
    given = volume.request.parameters
    namespace, claim = given.get(CLAIM_NAMESPACE), given.get(CLAIM_NAME)
    if not (namespace and claim):
        return None
    patch = f'{{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}'
    return commands.typed(
        "kubectl", "patch", "pvc", claim, "-n", namespace, "--type=merge", "-p", patch
    )


def _clone(look: Look, backend: Backend) -> tuple[str, str]:
    return look.pycsi("clone", backend.volume.id, "NAME"), "; NAME is that of the new volume"


def _discards(look: Look, backend: Backend) -> tuple[str, str]:
    command, placeholder = _stage_anew(look, backend)
    return f"mount -o remount,rw /sys && {command}", placeholder


def _put_header_back(_: Look, backend: Backend) -> tuple[str, str]:
    command = f"cryptsetup luksHeaderRestore {_image(backend)} --header-backup-file FILE"
    return command, "; FILE is a backup of the header"


_FOR_VOLUMES: Mapping[Reason, _Command] = {
    Reason.DATA_MISSING: _delete,
    Reason.IMAGE_TRUNCATED: _extend,
    Reason.FOREIGN_DATA: _repair,
    Reason.HEADER_MISSING: _put_header_back,
    Reason.UNREADABLE: _kernel_log,
    Reason.NOT_RESPONDING: _kernel_log,
    Reason.FILESYSTEM_SHUT_DOWN: _stage_anew,
    Reason.FILESYSTEM_READ_ONLY: _stage_anew,
    Reason.FILESYSTEM_ERRORS: _check,
    Reason.MOUNT_REPLACED: _uncover,
    Reason.LIMIT_DIFFERS: _expand_again,
    Reason.GROWTH_FAILED: _grow,
    Reason.IO_NOT_LIMITED: _stage_anew,
    Reason.DISCARDS_ACCEPTED: _discards,
    Reason.COPIED_ON_WRITE: _clone,
    Reason.ORPHANED: lambda look, backend: (
        look.pycsi("delete-inline", backend.volume.id, "--yes"),
        "",
    ),
    Reason.NEARLY_FULL: _enlarge,
    Reason.FEW_INODES: _enlarge,
}
