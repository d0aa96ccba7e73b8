"""All commands of pycsi, as click knows them: what is tried of each is tried of new ones too."""

from collections.abc import Iterator

import click

from pycsi.cli import main

Words = tuple[str, ...]


def _below(command: click.Command, words: Words = ()) -> Iterator[tuple[Words, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _below(inner, (*words, name))


COMMANDS = dict(_below(main))
"""Every command and group of commands, by its words after `pycsi`."""

GROUPS = {words for words, command in COMMANDS.items() if isinstance(command, click.Group)}


def examples(words: Words) -> list[str]:
    """Return the command lines that a command's help ends with."""
    _, _, shown = (COMMANDS[words].epilog or "").partition("Examples:\n")
    lines = [line.strip() for line in shown.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]
