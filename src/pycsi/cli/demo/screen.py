"""The demo's output: readable on a terminal and in a pipe, from 80 columns on."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROWEST = 80
WIDEST = 110

_CALL = 27
_STATUS = 16
_TIME = 10


class Screen:
    """Prints titles, calls, proofs and remarks, and a table at the end."""

    def __init__(self) -> None:
        width = min(max(Console().width, NARROWEST), WIDEST)
        self._console = Console(width=width, highlight=False)

    def title(self, text: str) -> None:
        self._console.print()
        self._console.rule(Text(text, "bold"), align="left", characters="-")

    def remark(self, text: str) -> None:
        self._console.print(Text(text))

    def log(self, text: str) -> None:
        """Print lines of a log unchanged, however long."""
        self._console.print(Text(text, "dim"), soft_wrap=True)

    def call(self, name: str, status: str, seconds: float, detail: str) -> None:
        """Print an RPC, its status, its duration (given in seconds, shown in ms), and a detail."""
        row = Table.grid(padding=(0, 1))
        row.add_column(width=_CALL)
        row.add_column(width=_STATUS, no_wrap=True)
        row.add_column(width=_TIME, justify="right")
        row.add_column(overflow="fold")
        row.add_row(
            Text(f"  {name}"),
            Text(status, "green" if status == "OK" else "yellow"),
            Text(f"{seconds * 1000:.1f} ms", "cyan"),
            Text(detail),
        )
        self._console.print(row)

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
        row = Table.grid(padding=(0, 1))
        row.add_column(width=len("      proved"))
        row.add_column(overflow="fold")
        row.add_row(Text(f"      {label}", style), Text(text))
        self._console.print(row)

    def summary(self, rows: Sequence[tuple[str, str, str, str]]) -> None:
        """Print a table of the stages: name, kind of volume, proved claims, and total time."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("SHOWN", no_wrap=True)
        table.add_column("MADE OF", overflow="fold")
        table.add_column("PROVED", overflow="fold", ratio=1)
        table.add_column("TIME", justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)
