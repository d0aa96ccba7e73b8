"""The certificates with which controller and nodes prove to each other who they are.

Both sides have a directory with `ca.crt`, `tls.crt` and `tls.key`, the keys of a Kubernetes Secret
of type kubernetes.io/tls. The certificates name their roles: `controller.<driver name>` and
`node.<driver name>` are DNS names in the extension subjectAltName.
"""

import dataclasses
import ssl
from pathlib import Path

import structlog

from pycsi.model.errors import ConfigError

log = structlog.get_logger()

_FILES = ("ca.crt", "tls.key", "tls.crt")


def controller_name(driver_name: str) -> str:
    """Return the name in the certificate of a driver's controller."""
    return f"controller.{driver_name.lower()}"


def node_name(driver_name: str) -> str:
    """Return the name in the certificates of a driver's nodes."""
    return f"node.{driver_name.lower()}"


@dataclasses.dataclass(frozen=True, slots=True)
class KeyPair:
    """The PEM texts of an authority, and of a private key and its certificate chain."""

    authority: bytes
    key: bytes = dataclasses.field(repr=False)
    chain: bytes


class Certificates:
    """The certificates in `directory`, read again when the files change.

    `ConfigError` if one is missing or damaged when the driver starts. Later such files are logged,
    and what was read before is kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen = self._versions()
        self.pair = self._read()

    def renewed(self) -> bool:
        """Read the files again if they have changed; tell whether there is a new, valid pair."""
        versions = self._versions()
        if versions == self._seen:
            return False
        self._seen = versions
        try:
            pair = self._read()
        except ConfigError as error:
            log.warning("new certificates cannot be used; the old ones stay", error=str(error))
            return False
        if pair == self.pair:
            return False
        self.pair = pair
        log.info("certificates are read again", directory=str(self._directory))
        return True

    def _versions(self) -> list[tuple[int, ...]]:
        """Return what changes with the files, which others write or replace."""
        return [_version(self._directory / name) for name in _FILES]

    def _read(self) -> KeyPair:
        paths = [self._directory / name for name in _FILES]
        _check(*paths)
        try:
            return KeyPair(*(path.read_bytes() for path in paths))
        except OSError as error:
            raise _unreadable(error) from None


def _version(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _check(authority: Path, key: Path, chain: Path) -> None:
    """Raise `ConfigError` unless the files are a certificate with its key, and an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        for path in (authority, key, chain):
            path.open("rb").close()
        context.load_cert_chain(chain, key, password=lambda: "")
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise ConfigError(
            f"--tls-directory: {chain} and {key} are no certificate with its key, or {authority} "
            f"is no certificate ({error.reason or error}); write all three anew"
        ) from None
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> ConfigError:
    return ConfigError(
        f"--tls-directory: {error.filename}: {error.strerror}; put ca.crt, tls.crt and tls.key "
        "there"
    )
