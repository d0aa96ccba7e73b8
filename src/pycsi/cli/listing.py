"""`pycsi get`: find, choose, sort and print."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pycsi.backends.throttle import throttle_at
from pycsi.cli import tables
from pycsi.cli.errors import MistakesError, UnknownNameError
from pycsi.cli.pools import chosen
from pycsi.cli.rows import Names, Row, look
from pycsi.model.config import PoolConfig


def show(
    kind: str,
    given: Sequence[PoolConfig],
    names: Sequence[str],
    *,
    output: str,
    no_headers: bool,
    exact: bool,
    sort_by: str | None,
    cgroup_root: Path | None = None,
) -> int:
    """Print the list of a kind of things; return the exit status, 1 if some could not be seen.

    `UnknownNameError` if one of `names` is not there, once the others are printed.
    """
    if sort_by is not None:
        sort_by = _column(kind, sort_by)
    wanted = Names(names)
    configs = chosen(given)
    rows, faults = look(kind, configs, wanted, throttle_at(cgroup_root))
    if sort_by:
        rows = tables.sorted_by(rows, sort_by)
    _print(kind, rows, output, heading=not no_headers, exact=exact)
    for fault in faults:
        click.echo(f"pycsi: {fault}", err=True)
    if not rows and not faults and not names and output in {"table", "wide"}:
        places = ", ".join(config.name for config in configs)
        click.echo(f"pycsi: {_NOTHING[kind]} in {places}", err=True)
    if wanted.missing and not faults:
        raise UnknownNameError(
            f"there is no {_ONE[kind]} {', '.join(wanted.missing)}; see: pycsi get {kind}"
        )
    return 1 if faults else 0


_NOTHING = {
    "volumes": "there are no volumes",
    "snapshots": "there are no snapshots",
    "pools": "there are no pools",
    "trash": "there is nothing in the trash",
}
_ONE = {
    "volumes": "volume",
    "snapshots": "snapshot",
    "pools": "pool",
    "trash": "entry of the trash",
}


def _column(kind: str, text: str) -> str:
    """Return the key of a column, which may be written as its heading is."""
    columns = tables.COLUMNS[kind]
    key = text.lower().replace(" ", "_").replace("-", "_")
    for column in columns:
        if key in {column.key, column.heading.lower().replace(" ", "_")}:
            return column.key
    known = ", ".join(column.key for column in columns)
    raise MistakesError(f"--sort-by {text!r}: give one of {known}")


def _print(kind: str, rows: Sequence[Row], output: str, *, heading: bool, exact: bool) -> None:
    columns = tables.COLUMNS[kind]
    if output in {"json", "yaml"}:
        click.echo(structured(rows, output))
    elif output == "name":
        tables.print_lines((tables.printable(row[columns[0].key]) for row in rows), _write)
    elif rows:
        seen = [column for column in columns if output == "wide" or not column.wide]
        made = tables.lines(seen, rows, tables.Screen(), heading=heading, exact=exact)
        tables.print_lines(made, _write)


def _write(text: str) -> None:
    click.echo(text, nl=False)


def structured(data: Any, output: str) -> str:
    """Return data as JSON or as YAML, for programs."""
    if output == "json":
        return json.dumps(data, indent=2)
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C, where libyaml is
    text: str = yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text.rstrip("\n")
