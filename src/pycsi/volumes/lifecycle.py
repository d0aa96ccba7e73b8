"""Delete, modify and grow volumes, and check how they are used. Callers hold the volume's lock."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from pycsi.model import mountflags, parameters, triminterval
from pycsi.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    OutOfRange,
)
from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import Access, Capability, CapacityRange
from pycsi.model.spec import asked_for, size_for
from pycsi.pool.pool import Pool
from pycsi.pool.trash import Fate
from pycsi.volumes.staging import Staging


def delete(pool: Pool, volume: Volume) -> None:
    """Delete a volume that nobody uses. The caller holds its lock.

    Of one whose pool is away nobody can tell that, and what is left of it may be in use.
    """
    pool.check(writable=False)
    staging = Staging(pool.backend(volume))
    staging.backend.refuse_strangers()
    if where := staging.in_use():
        raise FailedPrecondition(
            f"volume {volume.id} is in use at {where}; unpublish and unstage it first"
        )
    staging.backend.release()
    retained = volume.settings["onDelete"] == "retain" and volume.handle is None
    pool.delete(staging.backend, Fate.KEPT if retained else Fate.GONE)


def undoing(pool: Pool, volume: Volume) -> Staging:
    """Return the node's side of a volume to who undoes something, whatever has become of its disk.

    To unmount needs nothing of it.
    """
    try:
        pool.check(writable=False)
    except FailedPrecondition:
        return Staging(pool.backend(volume), away=True)
    return Staging(pool.backend(volume))


@contextlib.contextmanager
def noting(pool: Pool, volume: Volume) -> Iterator[Staging]:
    """Yield the node's side of a volume, to who may note something of it."""
    try:
        yield Staging(pool.backend(volume))
    finally:
        pool.volumes.touch(volume.id)


def modify(pool: Pool, volume: Volume, mutable: Mapping[str, str]) -> None:
    """Change settings of a volume: all of `mutable`, or none; others stay as they are."""
    parameters.check_mutable(mutable)
    if parameters.wants_check(mutable) and volume.filesystem is None:
        kind = "raw block volume" if volume.access is Access.BLOCK else volume.type.value
        raise InvalidArgument(
            f"volume {volume.id} is a {kind}, without a filesystem of its own to check; leave fsck "
            "out"
        )
    changed = dataclasses.replace(volume, settings={**volume.settings, **mutable})
    if triminterval.of(changed) is not None:
        triminterval.check(changed.type, changed.access, thick=changed.thick)
    pool.update(changed)


def expand(pool: Pool, volume: Volume, wanted: CapacityRange) -> Volume:
    """Make a volume as large as `wanted` says; it stays as it is where it is large enough."""
    size = max(volume.capacity, size_for(wanted, 0) if wanted.required else 0)
    if not wanted.holds(size):
        raise OutOfRange(
            f"volume {volume.id} would have {size} bytes, over limit_bytes {wanted.limit}; a "
            "volume cannot shrink"
        )
    # Also where the size is right already: an earlier call may have ended half way.
    return pool.resize(volume, size)


def check_echo(
    volume: Volume,
    *,
    context: Mapping[str, str],
    parameters: Mapping[str, str],
    mutable: Mapping[str, str],
) -> None:
    """Refuse what an orchestrator repeats of a volume (ValidateVolumeCapabilities) if it is wrong.

    What is empty is not repeated.
    """
    # Orchestrators add keys of their own to a context; theirs have a prefix.
    ours = {key: value for key, value in context.items() if "/" not in key}
    if ours and ours != volume.context:
        raise InvalidArgument("volume_context is not this volume's")
    if parameters and dict(parameters) != volume.request.parameters:
        raise InvalidArgument("parameters are not those that the volume was created with")
    if mutable and dict(mutable) != volume.request.mutable:
        raise InvalidArgument("mutable_parameters are not those of the volume's creation")


def check_usable(pool: Pool, volume: Volume, wanted: Capability, path: str) -> None:
    """Refuse to stage or publish a volume at `path` with a capability that it does not have.

    Where it is there already, it is with another one: that is ALREADY_EXISTS.
    """
    try:
        check_fits(pool, volume, wanted, FailedPrecondition)
    except FailedPrecondition as refusal:
        if Staging(pool.backend(volume)).holds(path):
            raise AlreadyExists(f"{refusal}; it is at {path} with another capability") from None
        raise


def check_fits(
    pool: Pool,
    volume: Volume,
    wanted: Capability,
    refusal: type[InvalidArgument | FailedPrecondition],
) -> None:
    """Raise `refusal` where a volume cannot be used with a capability."""
    if wanted.access is not volume.access:
        raise refusal(f"volume {volume.id} is a {volume.access} volume, not {wanted.access}")
    if wanted.filesystem and wanted.filesystem != volume.filesystem:
        if volume.type is VolumeType.IMAGE:
            raise refusal(
                f"volume {volume.id} has {volume.filesystem}, not {wanted.filesystem}; change "
                "fs_type"
            )
        pool_filesystem = pool.mount.fstype
        if wanted.filesystem not in {pool_filesystem, *asked_for(volume.request)}:
            raise refusal(
                f"volume {volume.id} is a directory on {pool_filesystem}, not {wanted.filesystem}; "
                "leave the fs_type out"
            )
    try:
        mountflags.check(wanted, volume.type, volume.filesystem, thick=volume.thick)
    except InvalidArgument as error:
        raise refusal(str(error)) from None
