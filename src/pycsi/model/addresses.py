"""Addresses as the operator writes them: of a unix socket, and of a TCP port."""

import re
from pathlib import Path
from typing import NamedTuple, Self

from pycsi.model.errors import ConfigError

_PORT = re.compile(r"\d{1,5}", re.ASCII)
_LONGEST_SOCKET_PATH = 107


class Address(NamedTuple):
    """A TCP port of a host, which is a name or an IP address; "" stands for all addresses."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, option: str, example: str) -> Self:
        """Return the address `HOST:PORT`, `[::1]:PORT` or `:PORT`; others: `ConfigError`.

        The error names the `option`, and gives `example` as one that is right.
        """
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        bracketed = len(host) - len(bare) == len("[]")
        wrong = (
            bare != host and not bracketed,
            ":" in bare and not bracketed,
            bracketed and not bare,
        )
        if not colon or not _PORT.fullmatch(port) or not 0 < int(port) < 2**16 or any(wrong):
            raise ConfigError(
                f"{option} {text!r}: give HOST:PORT, such as {example}, with a port from 1 to 65535"
            )
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Path:
    """Return the socket's path for `unix:///run/csi.sock`, `unix:/run/csi.sock` or a bare path.

    A relative path, one that is not UTF-8 and one over 107 bytes (unix(7)) raise `ConfigError`.
    """
    path = text
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = "/" + path.lstrip("/") if path.startswith("/") else path
    if not path.startswith("/"):
        raise ConfigError(f"--endpoint {text!r}: give unix:///absolute/path/of/the.sock")
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"--endpoint {text!r} is not UTF-8; rename the directory") from None
    if length > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"--endpoint: {path} has over {_LONGEST_SOCKET_PATH} bytes, too long for a socket; "
            "give a shorter path"
        )
    return Path(path)
