"""The passphrases of encrypted volumes, which commands read from files."""

import os

from pycsi.cli import streams
from pycsi.cli.errors import CommandError, MistakesError
from pycsi.linux.coredump import forbid
from pycsi.model import encryption

_MOST = 64 * 1024
"""The most bytes that are read of a file: enough for the driver to say that it is too long."""


def secrets(file: str | None, previous: str | None = None) -> dict[str, str]:
    """Return the secrets of a request: the passphrase in a file, and the one that it replaces.

    A name of `-` is standard input; the end of the last line is no part of a passphrase. Without
    files there are none. From the first one on this process makes no core dump.
    """
    if previous is not None and previous == file:
        raise MistakesError("--previous-key-file is --key-file; give the old passphrase there")
    if previous is not None and file is None:
        raise MistakesError("give the new passphrase too: --key-file")
    names = {encryption.SECRET: file, encryption.PREVIOUS: previous}
    return {key: _passphrase(name) for key, name in names.items() if name is not None}


def _passphrase(name: str) -> str:
    forbid()
    text = b""
    with streams.read(name) as fd:
        while len(text) <= _MOST and (part := os.read(fd, _MOST)):
            text += part
    try:
        return text.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise CommandError(
            f"the passphrase in {name} is no text in UTF-8; make one: openssl rand -base64 32"
        ) from None
