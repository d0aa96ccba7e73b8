"""The demo's output: readable on a terminal and in a pipe, from 60 columns on."""

import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROWEST = 60
WIDE = 80
"""From here on details stand beside what they belong to; on a narrower screen, below it."""
WIDEST = 110

_CALL = 27
_STATUS = 16
_TIME = 10
_LABEL = 12


class Screen:
    """Prints titles, calls, proofs and remarks, and a table at the end."""

    def __init__(self) -> None:
        self._width = min(max(Console().width, NARROWEST), WIDEST)
        self._console = Console(width=self._width, highlight=False)

    def title(self, text: str) -> None:
        lines = textwrap.wrap(text, self._width - len(" ---"))
        lines[-1] = f"{lines[-1]} ".ljust(self._width, "-")
        self._console.print()
        self._line(Text("\n".join(lines), "bold"))

    def remark(self, text: str) -> None:
        self._beside(Text(), len(text) - len(text.lstrip()), text.lstrip())

    def log(self, text: str) -> None:
        """Print lines of a log unchanged, however long."""
        self._line(Text(text, "dim"))

    def call(self, name: str, status: str, seconds: float, detail: str) -> None:
        """Print an RPC, its status, its duration (given in seconds, shown in ms), and a detail."""
        head = Text.assemble(
            f"  {name}".ljust(_CALL + 1),
            (status.ljust(_STATUS + 1), "green" if status == "OK" else "yellow"),
            (f"{seconds * 1000:.1f} ms".rjust(_TIME), "cyan"),
        )
        if self._width >= WIDE:
            self._beside(head, len(head) + 1, detail)
        else:
            self._line(head)
            if detail:
                self._beside(Text(), _LABEL + 1, detail)

    def answer(self, text: str) -> None:
        """Print an answer of the driver."""
        self._labelled("says", "dim", text)

    def command(self, text: str) -> None:
        """Print a command that is run while the driver runs."""
        self._labelled("runs", "dim", text)

    def proved(self, text: str) -> None:
        self._labelled("proved", "bold green", text)

    def disproved(self, expected: str, found: str) -> None:
        self._labelled("NOT SO", "bold red", f"expected: {expected}")
        self._labelled("", "", f"found:    {found}")

    def _labelled(self, label: str, style: str, text: str) -> None:
        self._beside(Text.assemble((f"      {label}", style)), _LABEL + 1, text)

    def _beside(self, head: Text, column: int, text: str) -> None:
        """Print `head`, and `text` from `column` on, in as many lines as it takes."""
        room = self._width - column
        wrap = textwrap.TextWrapper(room, break_on_hyphens=False).wrap
        lines = [part for line in text.splitlines() for part in wrap(line)]
        for line in lines or [""]:
            if line:
                head.pad_right(column - len(head))
            self._line(head + Text(line))
            head = Text()

    def _line(self, text: Text) -> None:
        """Print lines that are as they should be."""
        self._console.print(text, soft_wrap=True)

    def summary(self, rows: Sequence[tuple[str, str, str, str]]) -> None:
        """Print a table of the stages: name, kind of volume, proved claims, and total time."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("SHOWN", no_wrap=True)
        if self._width >= WIDE:
            table.add_column("MADE OF", overflow="fold")
        table.add_column("PROVED", overflow="fold", ratio=1)
        table.add_column("TIME", justify="right", no_wrap=True)
        for name, made_of, proved, time in rows:
            middle = (made_of, proved) if self._width >= WIDE else (f"{made_of}: {proved}",)
            table.add_row(*map(Text, (name, *middle, time)))
        with self._console.capture() as drawn:
            self._console.print(table)
        for line in Text.from_ansi(drawn.get()).split():
            line.rstrip()
            self._line(line)
