"""What all commands have in common: how mistakes and failures are told, and exit statuses."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from pycsi.cli.errors import CommandError, MistakesError

_MISTAKES = "pycsi.mistakes"
"""The key of a context under which the mistakes are that were found so far."""

_UNWRITABLE = frozenset({errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC})
"""The errors of a full or failed filesystem to which standard output is redirected."""

_ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "run this as root"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space there"),
    errno.EBUSY: "try again",
    errno.EROFS: "mount its filesystem read-write",
}
"""What to do about an error of the kernel that no command has foreseen."""

_USAGE = 2


def note(ctx: click.Context | None, mistake: str) -> None:
    """Keep a mistake, to be told with all others before the command runs."""
    if ctx is None:
        raise MistakesError(mistake)
    ctx.meta.setdefault(_MISTAKES, []).append(mistake)


class Command(click.Command):
    """A command that runs only if nothing that it was given is a mistake."""

    def invoke(self, ctx: click.Context) -> Any:
        if mistakes := ctx.meta.get(_MISTAKES):
            raise MistakesError(*dict.fromkeys(mistakes))
        return super().invoke(ctx)


class Group(click.Group):
    """A group of commands; the outermost ends the process as a failure or a mistake demands."""

    command_class = Command
    group_class = type

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run, and exit: with one line for each thing that is wrong, never with a traceback."""
        # Both before gRPC is imported. Its errors are told by the commands themselves.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # gRPC's fork handlers crash children between fork and exec, and Python forks if it cannot
        # vfork for lack of memory. No program that a command starts uses gRPC.
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        if hasattr(sys.stdout, "reconfigure"):  # names that the locale cannot write are escaped
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            try:
                status = super().main(
                    *arguments, **(options | {"prog_name": "pycsi", "standalone_mode": False})
                )
            finally:
                if sys.stdout:
                    sys.stdout.flush()
        except click.Abort:
            sys.exit(_failed(["it was not confirmed; nothing was done"], 1))
        except click.ClickException as error:
            sys.exit(_misused(error))
        except MistakesError as error:
            sys.exit(_failed(error.messages, error.exit_status))
        except CommandError as error:
            sys.exit(_failed([str(error)], error.exit_status))
        except OSError as error:
            sys.exit(_refused(error))
        sys.exit(status if isinstance(status, int) else 0)


def _failed(messages: Sequence[str], status: int) -> int:
    for message in messages:
        click.echo(f"pycsi: {message}", err=True)
    return status


def _misused(error: click.ClickException) -> int:
    message = error.format_message()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(message, err=True)
        return _USAGE
    messages = [message[:1].lower() + message[1:].removesuffix(".")]
    ctx = getattr(error, "ctx", None)
    if ctx is not None:
        messages = [*ctx.meta.get(_MISTAKES, ()), *messages]
    messages[-1] += f"; see: {ctx.command_path if ctx else 'pycsi'} --help"
    return _failed(messages, _USAGE)


def _refused(error: OSError) -> int:
    """Tell what the kernel refused; if nobody reads standard output, nobody has to be told."""
    if error.filename is not None or error.errno not in _UNWRITABLE | {errno.EPIPE}:
        place = f"{error.filename}: " if error.filename is not None else ""
        advice = _ADVICE.get(error.errno or 0, "try again, or look at the kernel's log")
        return _failed([f"{place}{error.strerror}; {advice}"], 1)
    # Python flushes standard output again at exit, and would print the error again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return 1
    return _failed([f"standard output: {error.strerror}; write it elsewhere"], 1)


class Parsed(click.ParamType[Any]):
    """The type of an option whose text `parse` reads.

    It raises `ConfigError`, which names the option, or `ValueError`, which need not.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from pycsi.model.errors import ConfigError

        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ConfigError as error:
            note(ctx, str(error))
        except ValueError as error:
            note(ctx, f"{_named(param)}: {error}")
        return None


class Choice(click.Choice[str]):
    """One of some words, in any case."""

    def __init__(self, choices: Sequence[str]) -> None:
        super().__init__(choices, case_sensitive=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            known = ", ".join(map(str, self.choices))
            note(ctx, f"{_named(param)} {value!r}: give one of {known}")
            return None


def _named(param: click.Parameter | None) -> str:
    if param is None:
        return "the value"
    return param.opts[0] if isinstance(param, click.Option) else param.opts[0].upper()


def examples(*lines: str) -> str:
    """Return the end of a command's help: examples, each on a line of its own."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
