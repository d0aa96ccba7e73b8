"""Deleting, modifying and growing volumes, and comparing what a caller takes them for.

Callers hold the volume's lock.
"""

import dataclasses
from collections.abc import Mapping

from pycsi.model import encryption, iolimits, parameters, triminterval
from pycsi.model.errors import (
    FailedPrecondition,
    InvalidArgument,
    OutOfRange,
)
from pycsi.model.records import Volume
from pycsi.model.request import Access, CapacityRange
from pycsi.model.spec import size_for
from pycsi.pool import changing
from pycsi.pool.departures import refuse_departing
from pycsi.pool.pool import Pool
from pycsi.pool.trash import Fate
from pycsi.volumes.iolimits import require_everywhere
from pycsi.volumes.staging import Staging


def delete(pool: Pool, volume: Volume) -> None:
    """Delete a volume. `FailedPrecondition` if it is in use; `PoolMissing` if its pool is away.

    Without its pool it is not known whether the volume is in use.
    """
    pool.check(writable=False)
    staging = Staging(pool.backend(volume))
    staging.backend.refuse_foreign()
    if where := staging.in_use():
        raise FailedPrecondition(
            f"volume {volume.id} is in use at {where}; unpublish and unstage it first"
        )
    staging.backend.release()
    retained = volume.settings["onDelete"] == "retain" and volume.handle is None
    changing.delete(pool, staging.backend, Fate.KEPT if retained else Fate.GONE)


def modify(
    pool: Pool, volume: Volume, mutable: Mapping[str, str], secrets: Mapping[str, str]
) -> None:
    """Change all the settings of a volume that are in `mutable`, or none; others stay as they are.

    `secrets` with a passphrase and the previous one have that replaced. `InvalidArgument` for
    settings that the volume cannot have, `FailedPrecondition` for limits on I/O to which whoever
    uses it cannot be held, `Unauthenticated` if neither passphrase is the volume's.
    """
    parameters.check_mutable(mutable)
    refuse_departing(pool.volumes.place(volume.id), volume.id)
    if parameters.wants_check(mutable) and volume.filesystem is None:
        kind = "raw block volume" if volume.access is Access.BLOCK else volume.type.value
        raise InvalidArgument(
            f"volume {volume.id} is a {kind}, without a filesystem of its own to check; leave fsck "
            "out"
        )
    changed = dataclasses.replace(volume, settings={**volume.settings, **mutable})
    if triminterval.of(changed) is not None:
        triminterval.check(changed.type, changed.access, thick=changed.thick)
    if iolimits.are_wanted(mutable):
        iolimits.check(changed.type)
        require_everywhere(pool, changed)
    passphrase = encryption.passphrase(secrets)
    if volume.encryption and passphrase and passphrase.previous:
        pool.check()
        pool.backend(volume, passphrase=passphrase).renew_passphrase()
    changing.update(pool, changed)
    pool.throttle.ensure(pool.backend(changed))


def expand(pool: Pool, volume: Volume, wanted: CapacityRange) -> Volume:
    """Grow a volume to `wanted`, and return it; one that is large enough keeps its size.

    `OutOfRange` if the volume is larger than the limit.
    """
    refuse_departing(pool.volumes.place(volume.id), volume.id)
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
