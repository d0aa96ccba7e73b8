"""The StorageClass parameter mkfsOptions: the options that users may pass to mkfs."""

import re
import shlex
from collections.abc import Iterable

from pycsi.linux import mkfs
from pycsi.model.errors import InvalidArgument

_VALUE = re.compile(r"[A-Za-z0-9_^=,.:%+-]+")
_REACHES_OUT = re.compile(
    r"(?:^|,)(?:device|file|logdev|name|rtdev|offset|uuid|journal_dev)(?:=|,|$)"
)


def split(options: str) -> tuple[str, ...]:
    """Split the parameter into words as a shell does; an open quote is `InvalidArgument`."""
    try:
        return tuple(shlex.split(options))
    except ValueError as error:
        raise InvalidArgument(f"parameter mkfsOptions: {error}") from None


def check(kind: str, words: Iterable[str]) -> None:
    """Raise `InvalidArgument` unless all `words` are allowed options of mkfs for `kind`.

    Options that name another file or device are refused: a user who may create volumes must not be
    able to read the node's files, and `mkfs.ext4 -d /etc` would copy them into the volume.
    """
    options = mkfs.KINDS[kind].options
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if word.startswith("-") and word[1:2] != "-" and len(word) > 2:  # noqa: PLR2004  (-b4096)
            option, equals, value = word[:2], "=", word[2:]
        if option not in options:
            raise InvalidArgument(
                f"parameter mkfsOptions: {option!r} is not allowed for {kind}; "
                f"there are {' '.join(sorted(options))}"
            )
        if options[option] and not equals:
            value = rest.pop(0) if rest else ""
        if options[option] != bool(value) or (value and not _VALUE.fullmatch(value)):
            raise InvalidArgument(f"parameter mkfsOptions: {option} has no value that it can take")
        if value and _REACHES_OUT.search(value):
            raise InvalidArgument(
                f"parameter mkfsOptions: {option} may not name files, devices or a UUID"
            )
