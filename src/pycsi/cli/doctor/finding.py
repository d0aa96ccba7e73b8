"""Findings, and how the safe ones are mended."""

import dataclasses
from collections.abc import Callable

from pycsi.cli.doctor.codes import Code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """A safe way to mend something: nothing that anybody may want is lost by it.

    `text` says what `act` does. Two with the same text are the same. `act` looks again before it
    changes anything, and raises `OSError`, `CsiError` or `ConfigError` if it cannot.
    """

    text: str
    act: Callable[[], None] = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    `subject` is what it is about: a volume's or snapshot's id, a path, a device, an object's name.
    `message` is one sentence. `command` is what somebody types to mend it; a word in capitals in it
    is for that person to choose, and the message says of what.
    """

    code: Code
    subject: str
    pool: str | None
    message: str
    command: str
    mend: Mend | None = None

    @property
    def key(self) -> tuple[Code, str, str | None]:
        """What is the same when it is found again."""
        return self.code, self.subject, self.pool
