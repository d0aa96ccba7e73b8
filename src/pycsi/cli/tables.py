"""Lists as tables: which columns they have, and which of these fit the terminal.

In a pipe a table has every column, as wide as it has to be, and nothing but its heading and rows.
"""

import dataclasses
import datetime as dt
import enum
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pycsi.model.size import KIB, show

Row = Mapping[str, Any]
Found = TypeVar("Found", bound=Row)


class Content(enum.Enum):
    """What a column shows, and so how."""

    TEXT = enum.auto()
    SIZE = enum.auto()
    NUMBER = enum.auto()
    AGE = enum.auto()
    REST = enum.auto()
    """The time from now until then."""


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column with what a row has under `key`.

    On a terminal that is too narrow, columns are left out, those with the greatest `spare` first;
    never one with 0. A `wide` column is shown only if all are wanted.
    """

    key: str
    spare: int = 0
    content: Content = Content.TEXT
    title: str = ""
    wide: bool = False

    @property
    def heading(self) -> str:
        return self.title or self.key.replace("_", " ").upper()

    @property
    def is_right(self) -> bool:
        return self.content in {Content.SIZE, Content.NUMBER}


_CONDITION = Column("condition", 1)

COLUMNS: Mapping[str, Sequence[Column]] = {
    "pools": (
        Column("name"),
        Column("path", 3),
        Column("filesystem", 4),
        Column("volumes", 5, Content.NUMBER),
        Column("snapshots", 6, Content.NUMBER),
        Column("size", 2, Content.SIZE),
        Column("free", 2, Content.SIZE),
        Column("available", 1, Content.SIZE),
        Column("committed", 3, Content.SIZE),
        Column("unwritten", 6, Content.SIZE),
        Column("in_trash", 5, Content.SIZE),
        Column("reserve", content=Content.SIZE, wide=True),
        Column("overcommit", content=Content.NUMBER, wide=True),
        Column("in_snapshots", content=Content.SIZE, wide=True),
        Column("uuid", wide=True),
        Column("directory_limit", 4),
    ),
    "volumes": (
        Column("id"),
        Column("pool", 6),
        Column("namespace", 3),
        Column("pvc", 2),
        Column("type", 5),
        Column("filesystem", 6),
        Column("capacity", 1, Content.SIZE),
        Column("used", content=Content.SIZE, wide=True),
        Column("allocation", wide=True),
        Column("inline", 7),
        Column("source", wide=True),
        Column("io_limits", wide=True, title="I/O LIMITS"),
        Column("encryption", wide=True),
        Column("created", 3, Content.AGE, "AGE"),
        Column("in_use_at", 4),
        _CONDITION,
    ),
    "snapshots": (
        Column("id"),
        Column("pool", 6),
        Column("namespace", 4),
        Column("volume_snapshot", 4, title="VOLUMESNAPSHOT"),
        Column("volume", 2),
        Column("pvc", wide=True),
        Column("group", 5),
        Column("type", wide=True),
        Column("filesystem", wide=True),
        Column("size", 3, Content.SIZE),
        Column("held", 3, Content.SIZE),
        Column("created", 1, Content.AGE, "AGE"),
        _CONDITION,
    ),
    "trash": (
        Column("entry"),
        Column("id", wide=True),
        Column("pool", 5),
        Column("kind", 4),
        Column("namespace", 3),
        Column("pvc", 2),
        Column("size", 3, Content.SIZE),
        Column("deleted", 1, Content.AGE),
        Column("kept_until", 1, Content.REST, "KEPT FOR"),
        _CONDITION,
    ),
}

_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86400, 365 * 86400
_GAP = "  "
BOLD, RED, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[0m"
_WELL = frozenset({"-", "healthy"})


def age(seconds: float) -> str:
    """Return a span of time in one or two units, such as `45s`, `12m`, `3h`, `9d` or `2y30d`."""
    whole = max(0, int(seconds))
    if whole < 2 * _MINUTE:
        return f"{whole}s"
    if whole < 2 * _HOUR:
        return f"{whole // _MINUTE}m"
    if whole < 2 * _DAY:
        return f"{whole // _HOUR}h"
    if whole < 2 * _YEAR:
        return f"{whole // _DAY}d"
    return f"{whole // _YEAR}y{whole % _YEAR // _DAY}d"


def brief(size: int) -> str:
    """Return a size without a space, as options take it: `1.5Gi`, `512Ki`, or bytes alone."""
    if abs(size) < KIB:
        return str(size)
    return show(size).replace(" ", "").removesuffix("B")


def printable(text: str) -> str:
    """Return a text without what could move the cursor, or ends a line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


class Screen:
    """Where a table is shown: columns, if it is a terminal, and whether it may be coloured."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self.width = shutil.get_terminal_size().columns if terminal else None
        dumb = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.coloured = terminal and not dumb


def lines(
    columns: Sequence[Column],
    rows: Sequence[Row],
    screen: Screen,
    *,
    heading: bool = True,
    exact: bool = False,
) -> Iterable[str]:
    """Yield the lines of a table; with `exact`, sizes are in bytes, and times as they are."""
    now = time.time()
    cells = [[_cell(column, row.get(column.key), now, exact) for row in rows] for column in columns]
    widths = [
        max([_width(column.heading), *map(_width, those)])
        for column, those in zip(columns, cells, strict=True)
    ]
    shown = _fitting(columns, cells, widths, screen.width)
    if heading:
        text = _line([(columns[at].heading, widths[at], columns[at].is_right) for at in shown])
        yield f"{BOLD}{text}{PLAIN}" if screen.coloured else text
    for number in range(len(rows)):
        parts = [(cells[at][number], widths[at], columns[at].is_right) for at in shown]
        yield _painted(_cut(_line(parts), parts, screen.width), parts, columns[shown[-1]], screen)


def _cell(column: Column, value: Any, now: float, exact: bool) -> str:  # noqa: FBT001
    if value is None or value is False:
        return "-"
    if value is True:
        return "yes"
    if column.content is Content.SIZE:
        return str(value) if exact else brief(value)
    if column.content in {Content.AGE, Content.REST}:
        return value if exact or value == "ever" else _span(column.content, value, now)
    return printable(str(value))


def _span(content: Content, value: str, now: float) -> str:
    then = dt.datetime.fromisoformat(value).timestamp()
    return age(now - then if content is Content.AGE else then - now)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # takes a moment, and most lists need it never

    return cell_len(text)


def _fitting(
    columns: Sequence[Column],
    cells: Sequence[Sequence[str]],
    widths: Sequence[int],
    most: int | None,
) -> list[int]:
    """Return the columns that fit; the last one may be cut, and needs the width of its heading."""
    shown = list(range(len(columns)))
    if most is None:
        return shown

    def needed() -> int:
        *others, last = shown
        least = min(widths[last], len(columns[last].heading)) if others else widths[last]
        return sum(widths[at] + len(_GAP) for at in others) + least

    empty = [at for at in shown if columns[at].spare and all(cell == "-" for cell in cells[at])]
    order = sorted(empty, key=lambda at: -columns[at].spare)
    order += sorted(
        (at for at in shown if columns[at].spare and at not in empty),
        key=lambda at: (-columns[at].spare, at),
    )
    for at in order:
        if needed() <= most:
            break
        shown.remove(at)
    return shown


def _line(parts: Iterable[tuple[str, int, bool]]) -> str:
    padded = []
    for text, width, right in parts:
        space = " " * (width - _width(text))
        padded.append(space + text if right else text + space)
    return _GAP.join(padded).rstrip()


def _cut(line: str, parts: Sequence[tuple[str, int, bool]], most: int | None) -> str:
    """Return a line whose last column, if there are others, ends with the terminal."""
    if most is None or len(parts) == 1 or _width(line) <= most:
        return line
    whole = sum(width + len(_GAP) for _, width, _ in parts[:-1])
    if line.isascii():
        return f"{line[: max(whole, most - 1)]}…"
    from rich.cells import set_cell_size

    return f"{set_cell_size(line, max(whole, most - 1))}…"


def _painted(
    line: str, parts: Sequence[tuple[str, int, bool]], last: Column, screen: Screen
) -> str:
    ill = last.key == "condition" and parts[-1][0] not in _WELL
    return f"{RED}{line}{PLAIN}" if screen.coloured and ill else line


def sorted_by(rows: Sequence[Found], key: str) -> list[Found]:
    """Return rows in the order of what they have under `key`; those without it come last."""

    def place(row: Found) -> tuple[bool, Any]:
        value = row.get(key)
        return value is None, "" if value is None else value

    return sorted(rows, key=place)


def print_lines(made: Iterable[str], write: Callable[[str], object]) -> None:
    """Write lines at once: a terminal gets a list of thousands in one go."""
    text = "\n".join(made)
    if text:
        write(f"{text}\n")
