"""Authorities and certificates of any kind, also of those that nobody should accept."""

import base64
import shutil
import ssl
from pathlib import Path

import grpc
from conftest import needs, run

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
FILES = ("ca.crt", "tls.crt", "tls.key")
BOTH = "clientAuth,serverAuth"


class Authority:
    """An authority in `folder`, which signs whatever it is asked to."""

    def __init__(self, folder: Path) -> None:
        needs("openssl", met=shutil.which("openssl") is not None)
        folder.mkdir(parents=True)
        self.folder = folder
        self.certificate = folder / "ca.crt"
        subject = ("-subj", "/CN=authority", "-days", "10")
        key = folder / "ca.key"
        run("openssl", "req", "-x509", *CURVE, *subject, "-keyout", key, "-out", self.certificate)

    def issue(
        self,
        into: Path,
        names: str,
        *,
        usage: str = BOTH,
        days: int = 5,
        subject: str = "somebody",
    ) -> Path:
        """Write ca.crt, tls.crt and tls.key into a directory, and return that.

        `names` are what subjectAltName holds, as openssl writes it; "": there is none. With
        negative `days` the certificate has expired.
        """
        into.mkdir(parents=True, exist_ok=True)
        request, extensions = self.folder / "request", self.folder / "extensions"
        key = into / "tls.key"
        subject = f"/CN={subject}"
        run("openssl", "req", "-new", *CURVE, "-subj", subject, "-keyout", key, "-out", request)
        lines = ["basicConstraints=critical,CA:FALSE", f"extendedKeyUsage={usage}"]
        extensions.write_text("\n".join([*lines, *([f"subjectAltName={names}"] if names else [])]))
        signing = ("-CA", self.certificate, "-CAkey", self.folder / "ca.key", "-CAcreateserial")
        more = ("-days", str(days), "-extfile", extensions, "-out", into / "tls.crt")
        run("openssl", "x509", "-req", "-in", request, *signing, *more)
        shutil.copy(self.certificate, into / "ca.crt")
        return into


def credentials(folder: Path) -> grpc.ChannelCredentials:
    """Return what a client with the certificate in a directory needs."""
    authority, chain, key = ((folder / name).read_bytes() for name in FILES)
    return grpc.ssl_channel_credentials(authority, key, chain)


def served_at(address: str) -> bytes:
    """Return the certificate, in PEM, of the server at an address."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=30).encode()


def secret_lines(folder: Path) -> list[str]:
    """Return parts of the private key in a directory as they could be in a log."""
    text = (folder / "tls.key").read_text()
    lines = [line for line in text.splitlines() if "KEY" not in line]
    whole = base64.b64decode("".join(lines))
    return [*lines, whole.hex(), repr(whole)]
