"""The encryption of images at rest: the parameter, and the passphrase that a request brings."""

import dataclasses
from collections.abc import Mapping

from pycsi.model.errors import InvalidArgument
from pycsi.model.records import VolumeType

NONE = "none"
LUKS2 = "luks2"

SECRET = "encryptionPassphrase"  # noqa: S105  (its name)
"""The key of the passphrase in the secrets of a request."""

PREVIOUS = "previousEncryptionPassphrase"
"""The key of the one that it replaces, in the secrets of a request."""

_SHORTEST = 16
"""The fewest bytes of a passphrase: what derives a key from it is cheap, so it has to be strong."""

_LONGEST = 4096
"""The most bytes of one; cryptsetup reads it from a pipe, which takes more than that at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Passphrase:
    """A passphrase, which is never shown; it replaces the `previous` one where that is in force."""

    value: bytes = dataclasses.field(repr=False)
    previous: bytes | None = dataclasses.field(repr=False, default=None)


def passphrase(secrets: Mapping[str, str]) -> Passphrase | None:
    """Return the passphrase in the secrets of a request; None if there is none.

    `InvalidArgument` if it is longer than a map of the protocol may be.
    """
    for key in (SECRET, PREVIOUS):
        if len(secrets.get(key, "").encode()) > _LONGEST:
            raise InvalidArgument(f"the secret {key} has over {_LONGEST} bytes; take a shorter one")
    if SECRET not in secrets:
        return None
    previous = secrets[PREVIOUS].encode() if PREVIOUS in secrets else None
    return Passphrase(secrets[SECRET].encode(), previous or None)


def need(given: Passphrase | None, what: str) -> bytes:
    """Return the passphrase that a request for an encrypted volume brings.

    `InvalidArgument` if it brings none; `what` names the volume.
    """
    if given is None or not given.value:
        raise InvalidArgument(
            f"{what} is encrypted, and the request has no passphrase: give a secret with the key "
            f"{SECRET}"
        )
    return given.value


def need_strong(given: Passphrase | None, what: str) -> bytes:
    """Return a passphrase that may protect a volume from now on; errors as of `need`."""
    value = need(given, what)
    if len(value) < _SHORTEST:
        raise InvalidArgument(
            f"{what}: the secret {SECRET} has less than {_SHORTEST} bytes; take a random one, as "
            "of: openssl rand -base64 32"
        )
    return value


def check(type_: VolumeType) -> None:
    """Raise `InvalidArgument` if a volume of this type cannot be encrypted."""
    if type_ is VolumeType.DIRECTORY:
        raise InvalidArgument(
            f"parameter encryption: {LUKS2} is for images and raw block volumes: a directory has "
            "no device of its own; use type: image, or leave it out"
        )
