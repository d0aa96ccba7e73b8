"""The certificates with which controller and nodes prove to each other who they are.

Both sides have a directory with `ca.crt`, `tls.crt` and `tls.key`, the keys of a Kubernetes Secret
of type kubernetes.io/tls. The certificates name their roles: `controller.<driver name>` and
`node.<driver name>` are DNS names in the extension subjectAltName.
"""

import contextlib
import dataclasses
import datetime as dt
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import structlog

from pycsi.model.errors import ConfigError

log = structlog.get_logger()

_FILES = ("ca.crt", "tls.key", "tls.crt")
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

_WEAK = ("_TOO_SMALL", "_TOO_WEAK")
"""How OpenSSL's reasons end where its security level refuses a certificate."""

_OTHER_NAME = 62
_FAULTS = {
    7: "its signature is not that of the authority in ca.crt",
    9: "it is not valid yet",
    10: "it, or that of its authority, has expired",
    24: "ca.crt is not the certificate of an authority (basicConstraints)",
    26: "it is not for this purpose (extendedKeyUsage)",
    **dict.fromkeys((2, 18, 19, 20, 21), "the authority in ca.crt has not signed it"),
}
"""What X509_V_ERR_* mean (X509_STORE_CTX_get_error(3)), of which `ssl` knows the numbers only."""

_CONTEXT_0, _UTC_TIME = 0xA0, 0x17
"""Tags of DER (X.690)."""


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


def expiries(text: str) -> list[float]:
    """Return when the certificates in a PEM text end, in seconds since the epoch.

    `ValueError` if it has no certificate, or one that is damaged.
    """
    ends = [_expiry(ssl.PEM_cert_to_DER_cert(pem)) for pem in _CERTIFICATE.findall(text)]
    if not ends:
        raise ValueError("there is no certificate")
    return ends


def _expiry(certificate: bytes) -> float:
    """Return `notAfter` of a certificate in DER (RFC 5280, section 4.1).

    Python's `ssl` tells it of authorities, and of a peer whose certificate is valid, but not of
    one's own, or of one that has expired.
    """
    _, body, _ = _element(certificate)
    _, fields, _ = _element(body)
    tag, _, after_version = _element(fields)
    rest = after_version if tag == _CONTEXT_0 else fields  # the version is left out if it is 1
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, rest = _element(rest)
    _, validity, _ = _element(rest)
    _, _, rest = _element(validity)  # notBefore
    tag, moment, _ = _element(rest)
    digits = moment.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 50 and above are of the last century
        digits = ("19" if digits >= "50" else "20") + digits
    parsed = dt.datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC)
    return parsed.timestamp()


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the content of the first element of DER, and what follows it.

    `ValueError` if it is not complete.
    """
    tag, length, start = *data[:2], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start])
    if len(data) < start + length:
        raise ValueError("the certificate is cut off")
    return tag, data[start : start + length], data[start + length :]


class Certificates:
    """The certificates in `directory`, read again when the files change.

    `node`: the certificate is a node's, and has this name; None: it is the controller's.
    `ConfigError` if a file is missing or damaged when the driver starts. Later such files are
    logged, and what was read before is kept.
    """

    def __init__(self, directory: Path, node: str | None) -> None:
        self._directory = directory
        self._node = node
        self._refused = ""
        self._seen = self._versions()
        self.pair = self._read()
        self.refusal()

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
        self.refusal()
        return True

    def refusal(self) -> str:
        """Return why who has the same authority refuses the certificate now; "": he accepts it.

        In TLS 1.3 a client is not told. A reason that is new is logged.
        """
        fault = _refusal(self.pair, self._node)
        if fault and fault != self._refused:
            log.warning(
                "the certificate is refused by whoever has this ca.crt; renew it",
                directory=str(self._directory),
                error=fault,
            )
        self._refused = fault
        return fault and f"{self._directory / 'tls.crt'} is refused: {fault}"

    def _versions(self) -> list[tuple[int, ...]]:
        """Return what changes with the files, which others write or replace."""
        return [_version(self._directory / name) for name in _FILES]

    def _read(self) -> KeyPair:
        paths = [self._directory / name for name in _FILES]
        try:
            pair = KeyPair(*(path.read_bytes() for path in paths))
        except OSError as error:
            raise ConfigError(
                f"--tls-directory: {error.filename}: {error.strerror}; put ca.crt, tls.crt and "
                "tls.key there"
            ) from None
        _refuse_unusable(pair, *paths)
        return pair


def _refuse_unusable(pair: KeyPair, authority: Path, key: Path, chain: Path) -> None:
    """Raise `ConfigError` unless these are an authority, a private key, and its certificate."""
    for content, path in ((pair.authority, authority), (pair.chain, chain)):
        if not _holds_certificates(content):
            raise ConfigError(
                f"--tls-directory: {path} has no certificate that can be read; write there one in "
                "PEM"
            )
    try:
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), pair)
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"--tls-directory: {key} is not the key of the certificate in {chain}; write both "
                "anew, which belong together"
            ) from None
        if reason.endswith(_WEAK):
            raise ConfigError(
                f"--tls-directory: the certificate in {chain} has a key that is too short, or a "
                "signature that is too weak; make one with ECDSA and P-256, or RSA of 2048 bits"
            ) from None
        raise ConfigError(
            f"--tls-directory: {key} has no private key that can be read; write there that of "
            f"{chain} in PEM, without a password"
        ) from None


def _holds_certificates(content: bytes) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        with _file(content) as path:
            context.load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True


def _version(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Have a context use a pair; `ssl.SSLError` unless it is a key with its certificate."""
    with _file(pair.authority) as authority, _file(pair.key) as key, _file(pair.chain) as chain:
        context.load_cert_chain(chain, key, password=lambda: "")
        context.load_verify_locations(authority)


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[str]:
    """Yield the path of a file in memory: OpenSSL reads files, and those on disk may change."""
    with os.fdopen(os.memfd_create("pem"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _refusal(pair: KeyPair, node: str | None) -> str:
    """Return why a certificate is refused by whoever has its authority; "" if it is not.

    That is tried, in memory: the name of a `node` is checked as the controller does.
    """
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    calling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    calling.check_hostname = bool(node)
    calling.verify_mode = ssl.CERT_REQUIRED if node else ssl.CERT_NONE
    accepting.verify_mode = ssl.CERT_NONE if node else ssl.CERT_REQUIRED
    for context in (accepting, calling):
        _load(context, pair)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = accepting.wrap_bio(to_server, to_client, server_side=True)
    client = calling.wrap_bio(to_client, to_server, server_hostname=node)
    try:
        for side in (client, server, client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _OTHER_NAME:
            return f"it does not have the DNS name {node}"
        return _FAULTS.get(error.verify_code, "it does not pass the verification of TLS")
    except ssl.SSLError:
        return "its key or its signature is of a kind that TLS does not take here"
    return ""
