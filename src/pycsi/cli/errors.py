"""How a command fails: the message is one line for whoever typed it, the class has the exit status.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | it could not be done, or not all of it could be seen |
| 2 | a mistake in the command line, in a variable or in the configuration file; nothing was done |
| 3 | there is no such volume, snapshot, pool or entry |
"""


class CommandError(Exception):
    """It cannot be done now; the message says why, and what to do."""

    exit_status = 1


class InspectionError(CommandError):
    """A pool cannot be read or changed."""


class UnknownNameError(CommandError):
    """What was named is not there."""

    exit_status = 3


class MistakesError(CommandError):
    """What was typed or configured cannot be meant so; `messages` has each mistake."""

    exit_status = 2

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages
