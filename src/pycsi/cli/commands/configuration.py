"""`--config FILE`: options of the commands in a TOML file, under the same names.

An option on the command line comes first, then its variable, then the file.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from pycsi.cli.commands.base import note

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

USUAL = Path("/etc/pycsi/config.toml")
"""The file that is read if none is given, provided that it is there."""


def config(command: Decorated) -> Decorated:
    """Give a command the option `--config`, and its other options what the file says."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar="PYCSI_CONFIG",
        show_envvar=True,
        is_eager=True,
        expose_value=False,
        callback=_load,
        help=f'TOML file with options, such as pool = ["default=/srv"].  [default: {USUAL}, if '
        "there is one]",
    )(command)


def _load(ctx: click.Context, _: click.Parameter, given: Path | None) -> None:
    if ctx.resilient_parsing:
        return
    path = given or USUAL
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        if given:
            note(ctx, f"--config {path}: there is no such file; correct the path")
        return
    except OSError as error:
        note(ctx, f"--config {path}: it cannot be read ({error.strerror}); give a readable file")
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        at = re.search(r"\(at (.+)\)$", str(error))
        where = f" ({at[1]})" if at else ""
        note(ctx, f'--config {path} is no TOML{where}; write lines such as node-id = "a"')
        return
    ctx.default_map = dict(_defaults(ctx, path, content))


def _defaults(
    ctx: click.Context, path: Path, content: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the values for the command's options, by the names of its parameters."""
    own = {_key(option): option for option in _options(ctx.command)}
    known = {_key(option) for option in _all_options(ctx.find_root().command)}
    for key, value in content.items():
        if key not in known:
            note(ctx, f"{path}: there is no option {key!r}; there are {', '.join(sorted(own))}")
        elif key in own:
            option = own[key]
            if fitting := _fitting(option, value):
                yield str(option.name), fitting[0]
            else:
                note(ctx, f"{path}: {key} = {value!r}: give {_wanted(option)}")


def _options(command: click.Command) -> Iterator[click.Option]:
    """Yield the options of a command that a file can have."""
    for param in command.params:
        if isinstance(param, click.Option) and param.name not in {"config", "help", "yes"}:
            yield param


def _all_options(command: click.Command) -> Iterator[click.Option]:
    yield from _options(command)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from _all_options(inner)


def _key(option: click.Option) -> str:
    return max(option.opts, key=len).removeprefix("--")


def _fitting(option: click.Option, value: Any) -> list[Any]:
    """Return the value for an option, alone in a list; an empty list if its type is not right."""
    if option.is_flag:
        return [value] if isinstance(value, bool) else []
    if option.multiple:
        values = value if isinstance(value, list) else [value]
        return [values] if all(isinstance(item, str) for item in values) else []
    if isinstance(value, bool) or not isinstance(value, str | int):
        return []
    return [str(value)]


def _wanted(option: click.Option) -> str:
    if option.is_flag:
        return "true or false"
    return 'a list of texts, such as ["..."]' if option.multiple else 'a text, such as "..."'
