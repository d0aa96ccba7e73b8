"""Deleting, modifying and growing volumes, and checking how they are to be used.

Callers hold the volume's lock.
"""

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
from pycsi.pool import changing
from pycsi.pool.pool import Pool
from pycsi.pool.trash import Fate
from pycsi.volumes.staging import Staging


def delete(pool: Pool, volume: Volume) -> None:
    """Delete a volume. `FailedPrecondition` if it is in use; `PoolMissing` if its pool is away.

    Without its pool it is not known whether the volume is in use.
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
    changing.delete(pool, staging.backend, Fate.KEPT if retained else Fate.GONE)


def undoing(pool: Pool, volume: Volume) -> Staging:
    """Return a volume's staging for undoing a stage or publish call, also if its pool is away.

    Unmounting does not need the pool's disk.
    """
    try:
        pool.check(writable=False)
    except FailedPrecondition:
        return Staging(pool.backend(volume), away=True)
    return Staging(pool.backend(volume))


@contextlib.contextmanager
def noting(pool: Pool, volume: Volume) -> Iterator[Staging]:
    """Yield a volume's staging to a caller that may write its notes, and drop cached results."""
    try:
        yield Staging(pool.backend(volume))
    finally:
        pool.volumes.touch(volume.id)


def modify(pool: Pool, volume: Volume, mutable: Mapping[str, str]) -> None:
    """Change all the settings of a volume that are in `mutable`, or none; others stay as they are.

    `InvalidArgument` for settings that the volume cannot have.
    """
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
    changing.update(pool, changed)


def expand(pool: Pool, volume: Volume, wanted: CapacityRange) -> Volume:
    """Grow a volume to `wanted`, and return it; one that is large enough keeps its size.

    `OutOfRange` if the volume is larger than the limit.
    """
    size = max(volume.capacity, size_for(wanted, 0) if wanted.required else 0)
    if not wanted.holds(size):
        raise OutOfRange(
            f"volume {volume.id} would have {size} bytes, over limit_bytes {wanted.limit}; a "
            "volume cannot shrink"
        )
    # Even if the size is right already: an earlier call may have ended half way.
    return changing.resize(pool, volume, size)


def check_echo(
    volume: Volume,
    *,
    context: Mapping[str, str],
    parameters: Mapping[str, str],
    mutable: Mapping[str, str],
) -> None:
    """Raise `InvalidArgument` if fields of ValidateVolumeCapabilities are not the volume's.

    An empty field was not sent, and is not compared.
    """
    # Orchestrators add keys of their own to a context, which have a prefix.
    ours = {key: value for key, value in context.items() if "/" not in key}
    if ours and ours != volume.context:
        raise InvalidArgument("volume_context is not this volume's")
    if parameters and dict(parameters) != volume.request.parameters:
        raise InvalidArgument("parameters are not those that the volume was created with")
    if mutable and dict(mutable) != volume.request.mutable:
        raise InvalidArgument("mutable_parameters are not those of the volume's creation")


def check_usable(pool: Pool, volume: Volume, wanted: Capability, path: str) -> None:
    """Raise `FailedPrecondition` if a volume cannot be staged or published with a capability.

    `AlreadyExists` if the volume is at `path` already, which is with another capability.
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
    """Raise `refusal` if a volume cannot be used with a capability."""
    if wanted.access is not volume.access:
        raise refusal(f"volume {volume.id} is a {volume.access} volume, not {wanted.access}")
    if wanted.filesystem and wanted.filesystem != volume.filesystem:
        if volume.type is VolumeType.IMAGE:
            raise refusal(
                f"volume {volume.id} has {volume.filesystem}, not {wanted.filesystem}; change "
                "fs_type"
            )
        pool_filesystem = pool.location.mount.fstype
        if wanted.filesystem not in {pool_filesystem, *asked_for(volume.request)}:
            raise refusal(
                f"volume {volume.id} is a directory on {pool_filesystem}, not {wanted.filesystem}; "
                "leave the fs_type out"
            )
    if wanted.mount_flags:
        try:
            mountflags.check(wanted.mount_flags, volume.type, volume.filesystem, thick=volume.thick)
        except InvalidArgument as error:
            raise refusal(str(error)) from None
